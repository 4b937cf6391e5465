// The pointwise engine on CUDA: sizes that the host needs before a launch, and entry points for the
// binding, which a loss instantiates for its options.
#pragma once

#include <cuda_runtime.h>

#include "../core/pointwise.h"

namespace fusedloss::cuda {

constexpr int kPointwiseThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;  // half occupancy: 64 registers a thread
constexpr int kSumThreads = 1024;            // of the one block that adds all totals
// Vectors of a thread. The end of a block, its sum, costs as much as a vector or two, so large
// tensors take many; small ones are spread over more blocks.
constexpr int kFewestVectors = 2, kMostVectors = 8;
constexpr int64_t kEnoughBlocks = 1024;
// Elements of one block: the narrowest vector (2 elements) gives the smallest tile.
constexpr int64_t kSmallestTile = int64_t{kPointwiseThreads} * kFewestVectors * 2;

// What a block leaves behind for the finishing kernel.
struct BlockTotals {
  double loss;
  int64_t valid;
};

}  // namespace fusedloss::cuda

namespace fusedloss {

inline int64_t pointwise_workspace_bytes(const PointwiseCall& call, cudaStream_t) {
  if (call.reduction == Reduction::kNone) return 0;
  const int64_t numel = call.shape.numel();
  const int64_t blocks = (numel + cuda::kSmallestTile - 1) / cuda::kSmallestTile;
  return blocks * static_cast<int64_t>(sizeof(cuda::BlockTotals));
}

template <class Options>
LabelReport launch_pointwise_fwd(const PointwiseCall& call, const Options& options,
                                 cudaStream_t stream);
template <class Options>
void launch_pointwise_bwd(const PointwiseCall& call, const Options& options, cudaStream_t stream);

}  // namespace fusedloss
