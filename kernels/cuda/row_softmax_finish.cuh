// The end of a forward of the row-softmax engine: what each block leaves, and the kernel that adds
// it up.
#pragma once

#include "row_softmax_selected.cuh"

namespace fusedloss::cuda {

constexpr int kFinishThreads = 1024;

// `spread`: every thread has totals; else thread 0 alone. They go to the `slot`-th place.
template <class T>
__device__ __forceinline__ void leave_row_totals(const RowSoftmaxCall& call,
                                                 const RowTotals<T>& totals, bool spread,
                                                 int64_t slot) {
  __shared__ T slots[3][kWarp];
  __shared__ int valid_slots[kWarp];
  if (call.reduction == Reduction::kNone) {
    if (blockIdx.x == 0 && threadIdx.x < 2) static_cast<T*>(call.scale)[threadIdx.x] = T(1);
    return;
  }
  RowTotals<T> all = totals;
  if (spread) {
    all.main = block_sum(totals.main, slots[0]);
    all.by_row = block_sum(totals.by_row, slots[1]);
    all.weight = block_sum(totals.weight, slots[2]);
    all.valid = block_sum(totals.valid, valid_slots);
  }
  if (threadIdx.x == 0)
    static_cast<RowBlockTotals*>(call.workspace)[slot] = {
        static_cast<double>(all.main), static_cast<double>(all.by_row),
        static_cast<double>(all.weight), all.valid};
}

// Before a block's first row, and after its last.
template <Pass kPass, class Loss>
__device__ __forceinline__ void begin_rows(const Loss& loss) {
  if constexpr (kMines<Loss> && kPass != Pass::kGrad) loss.begin();
}
template <Pass kPass, class T, class Loss>
__device__ __forceinline__ void end_rows(const RowSoftmaxCall& call, const Loss& loss,
                                         const RowTotals<T>& totals, bool spread) {
  if constexpr (kPass == Pass::kGrad)
    return;
  else if constexpr (kMines<Loss>)
    loss.end(totals, spread);
  else
    leave_row_totals(call, totals, spread, blockIdx.x);
}

// Adds the blocks' totals and applies the mean's divisors: the loss, and the scale for backward.
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    row_finish_kernel(const __grid_constant__ RowSoftmaxCall call, int64_t rows, int64_t blocks) {
  __shared__ double slots[3][kWarp];
  __shared__ long long valid_slots[kWarp];
  RowBlockTotals sum{0.0, 0.0, 0.0, 0};
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < blocks; b += kFinishThreads) {
    const RowBlockTotals& block = static_cast<const RowBlockTotals*>(call.workspace)[b];
    sum.main += block.main;
    sum.by_row += block.by_row;
    sum.weight += block.weight;
    sum.valid += block.valid;
  }
  sum.main = block_sum(sum.main, slots[0]);
  sum.by_row = block_sum(sum.by_row, slots[1]);
  sum.weight = block_sum(sum.weight, slots[2]);
  sum.valid = block_sum(static_cast<long long>(sum.valid), valid_slots);
  if (threadIdx.x != 0) return;

  const bool mean = call.reduction == Reduction::kMean;
  const double valid = static_cast<double>(sum.valid);
  const double divisor = true_divisor<T>(call, call.weighted_mean ? sum.weight : valid);
  const double row_divisor = mean ? valid : 1.0;
  // The mean of nothing has no gradient; its value is the loss's choice.
  const bool nothing = mean && sum.valid == 0;
  const double of_nothing = call.nothing_is_zero ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  const double loss = sum.main / divisor + sum.by_row / row_divisor;
  const double expected = static_cast<double>(expected_divisor<T>(call, rows));
  T* scale = static_cast<T*>(call.scale);
  scale[0] = static_cast<T>(nothing ? 0.0 : expected / divisor);
  scale[1] = static_cast<T>(nothing ? 0.0 : expected / row_divisor);
  if (call.reduction != Reduction::kNone)
    *static_cast<T*>(call.loss.data) = static_cast<T>(nothing ? of_nothing : loss);
}

}  // namespace fusedloss::cuda
