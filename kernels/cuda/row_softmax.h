// The row-softmax engine on CUDA: sizes that the host needs before a launch.
#pragma once

#include <cuda_runtime.h>

#include "../core/row_softmax.h"

namespace fusedloss::cuda {

// Blocks take several pieces of work where there are more than this many: the end of a block, four
// sums over its threads, costs as much as the exponentials of a small tile, and the finishing
// kernel is a single block. 4096 is still 8 times what an H100 holds at once: little is lost to the
// last, partly filled wave.
constexpr int64_t kMaxRowBlocks = 4096;

// What a block leaves behind for the finishing kernel.
struct RowBlockTotals {
  double main, by_row, weight;
  int64_t valid;
};

}  // namespace fusedloss::cuda

namespace fusedloss {

inline int64_t row_softmax_workspace_bytes(const RowSoftmaxCall& call, cudaStream_t) {
  const int64_t numel = call.shape.numel();
  if (call.reduction == Reduction::kNone || numel == 0) return 0;
  // No block has less than one row.
  const int64_t blocks = std::min(numel / call.num_classes, cuda::kMaxRowBlocks);
  return blocks * static_cast<int64_t>(sizeof(cuda::RowBlockTotals));
}

}  // namespace fusedloss
