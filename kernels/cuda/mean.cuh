// What a mean divides by, for the calls of every engine.
#pragma once

#include <cuda_runtime.h>

#include "../core/loss_call.h"
#include "../core/math.h"

namespace fusedloss::cuda {

// As the gradient written in forward assumes it (see design.md, "prescale"): the normalizer, or
// all `count` elements or rows. Never 0: what 1/0 makes of the mean is left to backward.
template <class T, class Call>
__device__ __forceinline__ T expected_divisor(const Call& call, int64_t count) {
  if (call.reduction != Reduction::kMean || !call.prescale) return T(1);
  T expected = static_cast<T>(count);
  if (call.normalizer_value > 0.0) expected = static_cast<T>(call.normalizer_value);
  if (call.normalizer != nullptr) expected = *static_cast<const T*>(call.normalizer);
  return expected == T(0) ? T(1) : expected;
}

// As it is: the normalizer, or what was counted; 1 where nothing is averaged.
template <class T, class Call>
__device__ __forceinline__ double true_divisor(const Call& call, double counted) {
  if (call.reduction != Reduction::kMean) return 1.0;
  if (call.normalizer != nullptr) return *static_cast<const T*>(call.normalizer);
  return call.normalizer_value > 0.0 ? call.normalizer_value : counted;
}

}  // namespace fusedloss::cuda
