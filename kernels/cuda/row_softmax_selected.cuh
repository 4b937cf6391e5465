// A backward over selected rows, for losses that mine. Of other losses every row is selected, and
// nothing of this is left in their code.
#pragma once

#include "../core/mining.h"
#include "row_softmax.cuh"

namespace fusedloss::cuda {

// Which part of N rows' gradients counts: all of it, unless rows are selected. Then the rows that
// are not become ignored ones. Loaded apart, as labels are.
template <int N, Pass kPass, class Loss>
struct RowShares {
  using T = typename Loss::value_type;
  Mark<T> marks[N];

  __device__ __forceinline__ void load(const RowSoftmaxCall& call, int64_t saved_at) {
    if constexpr (kSelects<kPass, Loss>)
      load_apart(static_cast<const Mark<T>*>(call.saved.data) + saved_at,
                 call.saved.strides[call.shape.ndim - 1], marks);
  }

  __device__ __forceinline__ T of(const Loss& loss, int k) const {
    if constexpr (kSelects<kPass, Loss>) return share_of(*loss.selection, marks[k]);
    return T(1);
  }

  // Returns whether a row is left.
  __device__ __forceinline__ bool select(const Loss& loss, int (&labels)[N]) const {
    if constexpr (!kSelects<kPass, Loss>) return true;
    bool any = false;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (of(loss, k) == T(0)) labels[k] = kIgnored;
      any |= labels[k] != kIgnored;
    }
    return any;
  }
};

// The same of a row of which `share` is selected.
template <Pass kPass, class Loss, class T>
__device__ __forceinline__ RowScale<T> row_scale(const RowSoftmaxCall& call, const RowPlan& plan,
                                                 const Loss&, T upstream, T share) {
  if constexpr (kSelects<kPass, Loss>)
    return {share * (upstream * *static_cast<const T*>(call.scale)), T(0)};
  else
    return row_scale<kPass, T>(call, plan, upstream);
}

}  // namespace fusedloss::cuda
