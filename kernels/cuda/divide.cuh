// Division by a number that is fixed for a launch, without a divide instruction.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fusedloss::cuda {

// Quotient and remainder for any 0 <= n < 2^63 and d >= 1. Multiplying by floor((2^64 - 1) / d) and
// keeping the high half gives the quotient or one less; one comparison settles which.
struct Divider {
  uint64_t divisor, magic;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint64_t>(d)), magic(~uint64_t{0} / divisor) {}

  __device__ __forceinline__ int64_t divide(int64_t n, int64_t& remainder) const {
    uint64_t quotient = __umul64hi(static_cast<uint64_t>(n), magic);
    uint64_t rest = static_cast<uint64_t>(n) - quotient * divisor;
    if (rest >= divisor) {
      rest -= divisor;
      ++quotient;
    }
    remainder = static_cast<int64_t>(rest);
    return static_cast<int64_t>(quotient);
  }
};

// Calls visit(d, index) with the place of the `element`-th element in each of `ndim` dimensions,
// the innermost first; `by_size` divides by their sizes.
template <class Visit>
__device__ __forceinline__ void for_each_index(int ndim, const Divider* by_size, int64_t element,
                                               const Visit& visit) {
#pragma unroll 1
  for (int d = ndim - 1; d >= 0; --d) {
    int64_t index = element;
    if (d > 0) element = by_size[d].divide(element, index);
    visit(d, index);
  }
}

}  // namespace fusedloss::cuda
