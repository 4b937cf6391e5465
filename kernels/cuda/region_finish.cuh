// The end of a forward of the region engine, for both of its walks. Each block of a walk leaves
// what it has seen of its regions; region_sums_kernel adds that up, a warp for each region, and
// region_finish_kernel, a single block, makes losses and slopes of the sums and joins the other
// loss. Every sum has a fixed order.
#pragma once

#include "../loss/overlap.h"
#include "block.cuh"
#include "launch.cuh"
#include "mean.cuh"
#include "region.h"

namespace fusedloss::cuda {

constexpr int kRegionSumThreads = 256;
constexpr int kRegionFinishThreads = 512;

enum RegionNumber : int { kOverlap, kMass, kTruth, kRegionNumbers };

// What blocks leave: one number of one region for each of its parts, parts side by side.
template <class T>
struct RegionPartials {
  T* data;
  int64_t regions, parts;

  __device__ __forceinline__ T* at(int number, int64_t region) const {
    return data + (number * regions + region) * parts;
  }
};

template <class T>
__global__ void __launch_bounds__(kRegionSumThreads)
    region_sums_kernel(const RegionPartials<T> partials, RegionSums* sums) {
  const int64_t region =
      static_cast<int64_t>(blockIdx.x) * (kRegionSumThreads / kWarp) + threadIdx.x / kWarp;
  if (region >= partials.regions) return;
  const int lane = threadIdx.x % kWarp;
  double sum[kRegionNumbers] = {};
#pragma unroll
  for (int k = 0; k < kRegionNumbers; ++k) {
    const T* from = partials.at(k, region);
#pragma unroll 4
    for (int64_t part = lane; part < partials.parts; part += kWarp)
      sum[k] += static_cast<double>(from[part]);
    sum[k] = warp_sum(sum[k]);
  }
  if (lane == 0) sums[region] = {sum[kOverlap], sum[kMass], sum[kTruth]};
}

// What the finishing kernel adds up of the joined loss.
struct JoinedTotals {
  double main, by_row, divisor, valid;
};

__device__ __forceinline__ JoinedTotals totals_of(const RowSoftmaxCall& call,
                                                  const RowBlockTotals& block) {
  const double valid = static_cast<double>(block.valid);
  return {block.main, block.by_row, call.weighted_mean ? block.weight : valid, valid};
}
__device__ __forceinline__ JoinedTotals totals_of(const PointwiseCall&, const BlockTotals& block) {
  const double valid = static_cast<double>(block.valid);
  return {block.loss, 0.0, valid, valid};
}

// What backward multiplies the joined gradient with: RowScale over rows, one number over elements.
template <class T>
__device__ __forceinline__ void store_scale(const RowSoftmaxCall& call, double main,
                                            double by_row) {
  static_cast<T*>(call.scale)[0] = static_cast<T>(main);
  static_cast<T*>(call.scale)[1] = static_cast<T>(by_row);
}
template <class T>
__device__ __forceinline__ void store_scale(const PointwiseCall& call, double main, double by_row) {
  static_cast<T*>(call.scale)[0] = static_cast<T>(main);
  static_cast<T*>(call.scale)[1] = static_cast<T>(by_row);
}

// The joined loss with its factor, valid in thread 0, which writes the scale. Over nothing both are
// 0.
template <class T, class Totals, class Call>
__device__ __forceinline__ double joined_loss(const Call& call, const RegionCall& region,
                                              const Totals* blocks, int64_t num_blocks) {
  __shared__ double slots[4][kWarp];
  JoinedTotals sum{0.0, 0.0, 0.0, 0.0};
  for (int64_t b = threadIdx.x; b < num_blocks; b += kRegionFinishThreads) {
    const JoinedTotals block = totals_of(call, blocks[b]);
    sum.main += block.main;
    sum.by_row += block.by_row;
    sum.divisor += block.divisor;
    sum.valid += block.valid;
  }
  sum.main = block_sum(sum.main, slots[0]);
  sum.by_row = block_sum(sum.by_row, slots[1]);
  sum.divisor = block_sum(sum.divisor, slots[2]);
  sum.valid = block_sum(sum.valid, slots[3]);
  if (threadIdx.x != 0) return 0.0;
  const bool mean = call.reduction == Reduction::kMean;
  const bool nothing = mean && sum.valid == 0.0;
  const double divisor = mean && !nothing ? sum.divisor : 1.0;
  const double row_divisor = mean && !nothing ? sum.valid : 1.0;
  const double factor = nothing || !region.joined ? 0.0 : region.joined_factor;
  store_scale<T>(call, factor / divisor, factor / row_divisor);
  return region.joined && !nothing ? factor * (sum.main / divisor + sum.by_row / row_divisor) : 0.0;
}

// A unit is what has a ratio of its own; see ../loss/overlap.h.
template <class T, class Totals, class Call>
__global__ void __launch_bounds__(kRegionFinishThreads)
    region_finish_kernel(const __grid_constant__ Call call,
                         const __grid_constant__ RegionCall region, const Totals* blocks,
                         int64_t num_blocks, const RegionSums* all_sums) {
  __shared__ double loss_slots[kWarp];
  __shared__ long long left_slots[kWarp];
  __shared__ double unit_factor;
  const double joined = joined_loss<T>(call, region, blocks, num_blocks);
  const auto sums = [&](int64_t r) { return all_sums[r]; };
  T* out = static_cast<T*>(region.loss);
  const bool none = region.reduction == Reduction::kNone;
  double total = 0.0;
  long long left = 0;
  for (int64_t unit = threadIdx.x; unit < num_units(region); unit += kRegionFinishThreads) {
    const UnitLoss value = unit_loss<T>(region, sums, unit);
    total += value.loss;
    left += value.left ? 1 : 0;
    const int64_t at = none ? unit_output(region, unit) : -1;
    if (at >= 0) out[at] = static_cast<T>(region.factor * value.loss);
  }
  total = block_sum(total, loss_slots);
  left = block_sum(left, left_slots);
  if (threadIdx.x == 0) {
    unit_factor = unit_scale(region, left);
    if (!none) *out = static_cast<T>((left > 0 ? unit_factor * total : 0.0) + joined);
  }
  __syncthreads();
  for (int64_t unit = threadIdx.x; unit < num_units(region); unit += kRegionFinishThreads)
    store_slopes<T>(region, sums, unit, unit_factor);
}

// --- Host side

// The places of a workspace.
template <class T, class Totals>
struct RegionPlaces {
  Totals* totals;
  RegionSums* sums;
  RegionPartials<T> partials;

  RegionPlaces(void* workspace, const RegionCall& region, int64_t blocks, int64_t parts) {
    const RegionWorkspace size = region_workspace(region, blocks, sizeof(Totals), parts, sizeof(T));
    unsigned char* at = static_cast<unsigned char*>(workspace);
    totals = reinterpret_cast<Totals*>(at);
    sums = reinterpret_cast<RegionSums*>(at + size.totals_bytes);
    partials = {reinterpret_cast<T*>(at + size.totals_bytes + size.sums_bytes),
                region.num_regions(), parts};
  }
};

// After a walk of `blocks` blocks.
template <class T, class Totals, class Call>
void finish_regions(const Call& call, const RegionCall& region,
                    const RegionPlaces<T, Totals>& places, int64_t blocks, cudaStream_t stream) {
  constexpr int64_t kWarps = kRegionSumThreads / kWarp;
  launch("region sums kernel", region_sums_kernel<T>,
         {(region.num_regions() + kWarps - 1) / kWarps, kRegionSumThreads}, stream, places.partials,
         places.sums);
  launch("region finish kernel", region_finish_kernel<T, Totals, Call>, {1, kRegionFinishThreads},
         stream, call, region, static_cast<const Totals*>(places.totals), blocks,
         static_cast<const RegionSums*>(places.sums));
}

// The dimension of `index` that numbers classes (step 1) or groups, or -1 where there is one only.
inline int region_dim(const Shape& shape, const RegionCall& region, bool of_classes) {
  for (int d = 0; d < shape.ndim; ++d) {
    if (shape.sizes[d] == 1 || region.index.strides[d] == 0) continue;
    const bool classes = region.num_classes > 1 && region.index.strides[d] == 1;
    if (classes == of_classes) return d;
  }
  return -1;
}

inline void take_dim_out(Shape& shape, TensorView* const* views, int num_views, int dim) {
  for (int d = dim; d + 1 < shape.ndim; ++d) {
    shape.sizes[d] = shape.sizes[d + 1];
    for (int v = 0; v < num_views; ++v) views[v]->strides[d] = views[v]->strides[d + 1];
  }
  --shape.ndim;
  if (shape.class_dim == dim) shape.class_dim = -1;
  if (shape.class_dim > dim) --shape.class_dim;
}

}  // namespace fusedloss::cuda
