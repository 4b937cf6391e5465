// The region engine on CUDA: how work is cut into blocks, and sizes that the host needs before a
// launch.
#pragma once

#include <cuda_runtime.h>

#include "../core/pointwise.h"
#include "../core/region.h"
#include "pointwise.h"
#include "row_softmax.h"

namespace fusedloss::cuda {

// A block's sums cost memory and are added up again, so there are at most this many in all (one for
// each group or region at least): still 4 waves of what an H100 holds at once.
constexpr int64_t kMaxRegionBlocks = 2048;
// Tiles that a block has at least, where there are as many: its sums are written once for all.
constexpr int64_t kTilesOfRegionBlock = 2;

// How the rows or elements of one group or region are shared out.
inline int64_t region_parts(int64_t tiles, int64_t owners) {
  const int64_t wanted = (tiles + kTilesOfRegionBlock - 1) / kTilesOfRegionBlock;
  const int64_t most = std::max<int64_t>(kMaxRegionBlocks / std::max<int64_t>(owners, 1), 1);
  return std::max<int64_t>(std::min(wanted, most), 1);
}

// What a forward keeps beside its outputs, one after the other: the totals of the joined loss by
// block, the sums of every region, and what each block has seen of them.
struct RegionWorkspace {
  int64_t totals_bytes, sums_bytes, partials_bytes;

  int64_t bytes() const { return totals_bytes + sums_bytes + partials_bytes; }
};

inline RegionWorkspace region_workspace(const RegionCall& region, int64_t blocks,
                                        int64_t bytes_of_totals, int64_t parts,
                                        int64_t number_size) {
  return {blocks * bytes_of_totals, region.num_regions() * static_cast<int64_t>(sizeof(RegionSums)),
          3 * region.num_regions() * parts * number_size};
}

// Rows or elements of the smallest tile of either walk: the parts that it makes are the most.
constexpr int64_t kSmallestRegionTile = 256;

}  // namespace fusedloss::cuda

namespace fusedloss {

inline int64_t softmax_regions_workspace_bytes(const RowSoftmaxCall& call, const RegionCall& region,
                                               cudaStream_t) {
  const int64_t rows = call.shape.numel() / std::max<int64_t>(region.num_regions(), 1);
  const int64_t tiles = (rows + cuda::kSmallestRegionTile - 1) / cuda::kSmallestRegionTile;
  const int64_t parts = cuda::region_parts(tiles, region.num_groups);
  return cuda::region_workspace(region, region.num_groups * parts, sizeof(cuda::RowBlockTotals),
                                parts, size_of(call.accumulator()))
      .bytes();
}

inline int64_t element_regions_workspace_bytes(const PointwiseCall& call, const RegionCall& region,
                                               cudaStream_t) {
  const int64_t regions = region.num_regions();
  const int64_t elements = call.shape.numel() / std::max<int64_t>(regions, 1);
  const int64_t tiles = (elements + cuda::kSmallestRegionTile - 1) / cuda::kSmallestRegionTile;
  const int64_t parts = cuda::region_parts(tiles, regions);
  return cuda::region_workspace(region, regions * parts, sizeof(cuda::BlockTotals), parts,
                                size_of(call.accumulator()))
      .bytes();
}

}  // namespace fusedloss
