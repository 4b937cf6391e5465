// Regions over single elements, host side: how a call is cut up, and its launches.
#pragma once

#include "pointwise_launch.cuh"
#include "region_elements.cuh"

namespace fusedloss::cuda {

// Shorter runs of neighbours leave most threads of a block without a vector.
constexpr int64_t kShortestRun = 1024;

// Takes the dimensions of classes and groups out of the call's shape and views; their strides go to
// the plan. The region's index is no longer valid then. Returns V, or 0 where there are no runs.
template <Pass kPass, class X>
int plan_region_elements(PointwiseCall& call, RegionCall& region, RegionElementPlan& plan) {
  call.ignored_target = as_stored(call.ignore_index, call.target.dtype);
  TensorView* views[] = {&call.logits, &call.target, &call.grad, &call.side, &region.index};
  constexpr int kViews = 5;
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  plan.target_size = size_of(call.target.dtype);
  for (const bool of_classes : {false, true}) {
    const int dim = region_dim(call.shape, region, of_classes);
    if (dim < 0) continue;
    if (of_classes) {
      plan.logits_class = call.logits.strides[dim];
      plan.target_class = call.target.strides[dim];
      plan.grad_class = call.grad.strides[dim];
      plan.side_class = call.side.strides[dim];
    } else {
      plan.logits_group = call.logits.strides[dim];
      plan.target_group = call.target.strides[dim];
      plan.grad_group = call.grad.strides[dim];
    }
    take_dim_out(call.shape, views, kViews, dim);
  }
  call.shape.class_dim = -1;
  if (call.shape.ndim == 0) {
    call.shape.ndim = 1;
    call.shape.sizes[0] = 1;
    for (TensorView* view : views) view->strides[0] = 0;
  }
  plan.elements.numel = call.shape.numel();
  if (plan.elements.numel == 0) return 0;
  simplify(call.shape, views, kViews);
  for (int d = 0; d < call.shape.ndim; ++d) plan.elements.by_size[d] = Divider(call.shape.sizes[d]);

  const int inner = call.shape.ndim - 1;
  const bool runs = call.shape.sizes[inner] >= kShortestRun && call.logits.strides[inner] == 1 &&
                    call.target.strides[inner] == 1 &&
                    (kPass != Pass::kGrad || call.grad.strides[inner] == 1);
  plan.target_word = std::min<int64_t>(V * plan.target_size, kVectorBytes);
  plan.run = runs ? call.shape.sizes[inner] : plan.elements.numel;
  const int64_t tile = runs ? int64_t{kPointwiseThreads} * V * kRunVectors : kSmallestTile;
  plan.tiles_of_run = (plan.run + tile - 1) / tile;
  plan.tiles = plan.elements.numel / plan.run * plan.tiles_of_run;
  plan.by_run_tiles = Divider(plan.tiles_of_run);
  return runs ? V : 0;
}

template <Pass kPass, int V, class X, class Loss>
void launch_region_elements(const PointwiseCall& call, const RegionCall& region,
                            const RegionElementPlan& plan, const Loss& loss,
                            const RegionPartials<typename Loss::value_type>& partials,
                            cudaStream_t stream) {
  launch("region elements kernel", region_elements_kernel<kPass, V, X, Loss>,
         {region.num_regions() * plan.parts, kPointwiseThreads}, stream, call, region, plan, loss,
         partials);
}

// `make_loss(T)` gives the functor of region_elements.cuh for accumulators of T's type.
template <class MakeLoss>
LabelReport region_elements_forward(PointwiseCall call, RegionCall region,
                                    const MakeLoss& make_loss, cudaStream_t stream) {
  if (call.reduction == Reduction::kNone) call.reduction = Reduction::kSum;
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Accumulator<X>;
    constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
    const auto loss = make_loss(T{});
    RegionElementPlan plan{};
    const bool runs = plan_region_elements<Pass::kLoss, X>(call, region, plan) > 0;
    plan.parts = region_parts(plan.tiles, region.num_regions());
    const int64_t blocks = region.num_regions() * plan.parts;
    const RegionPlaces<T, BlockTotals> places(call.workspace, region, blocks, plan.parts);
    call.workspace = places.totals;
    if (blocks > 0 && runs)
      launch_region_elements<Pass::kLoss, V, X>(call, region, plan, loss, places.partials, stream);
    else if (blocks > 0)
      launch_region_elements<Pass::kLoss, 0, X>(call, region, plan, loss, places.partials, stream);
    finish_regions<T>(call, region, places, blocks, stream);
  });
  return {};  // a bad label makes the sums NaN; finding it here would wait for the device
}

template <class MakeLoss>
void region_elements_backward(PointwiseCall call, RegionCall region, const MakeLoss& make_loss,
                              cudaStream_t stream) {
  if (call.shape.numel() == 0) return;
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    using T = Accumulator<X>;
    constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
    const auto loss = make_loss(T{});
    RegionElementPlan plan{};
    const bool runs = plan_region_elements<Pass::kGrad, X>(call, region, plan) > 0;
    const int64_t most = std::max<int64_t>(kMaxRowBlocks / region.num_regions(), 1);
    plan.parts = std::max<int64_t>(std::min(plan.tiles, most), 1);
    const RegionPartials<T> nothing{};
    if (runs)
      launch_region_elements<Pass::kGrad, V, X>(call, region, plan, loss, nothing, stream);
    else
      launch_region_elements<Pass::kGrad, 0, X>(call, region, plan, loss, nothing, stream);
  });
}

}  // namespace fusedloss::cuda
