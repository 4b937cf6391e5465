// Regions over the rows of a softmax, host side: how a call is cut up, and its launches.
#pragma once

#include "region_rows_gradient.cuh"
#include "row_softmax_launch.cuh"

namespace fusedloss::cuda {

// Shared memory of a block: four of them fit into a multiprocessor from sm_80 on.
constexpr int64_t kRegionSharedBytes = 39 * 1024;

// Takes the dimensions of classes and groups out of the call's shape and views; their strides go to
// the plan. The region's index is no longer valid then.
template <class T>
RegionRowPlan plan_region_rows(RowSoftmaxCall& call, const RegionCall& region) {
  RegionRowPlan plan{};
  plan.classes = static_cast<int>(call.num_classes);
  const int64_t of_class = kRegionNumbers * (kRowThreads / kWarp) * static_cast<int64_t>(sizeof(T));
  plan.window = static_cast<int>(std::min<int64_t>(plan.classes, kRegionSharedBytes / of_class));
  plan.windows = (plan.classes + plan.window - 1) / plan.window;
  plan.parts = 1;
  const int group = region_dim(call.shape, region, false);
  if (group >= 0) {
    plan.logits_group = call.logits.strides[group];
    plan.target_group = call.target.strides[group];
    plan.saved_group = call.saved.strides[group];
    plan.grad_group = call.grad.strides[group];
    TensorView* views[] = {&call.logits, &call.target, &call.grad_output,
                           &call.loss,   &call.saved,  &call.grad};
    take_dim_out(call.shape, views, 6, group);
  }
  if (call.shape.numel() > 0) plan.rows = take_classes_out(call);
  return plan;
}

// Whether vectors of V rows are aligned in `view` for every class and group.
inline bool allows_group_vectors(const RowSoftmaxCall& call, const TensorView& view, int64_t step,
                                 int64_t group, int vector) {
  return group % vector == 0 && allows_vectors(call, view, step, vector);
}

// The sums, the saved numbers and the totals of the joined loss, and their finish.
template <int V, class X, class Loss>
void walk_region_rows(RowSoftmaxCall& call, const RegionCall& region, RegionRowPlan& plan,
                      const Loss& loss, cudaStream_t stream) {
  using T = typename Loss::value_type;
  plan.tiles = ceil_div(plan.rows.rows, kRowThreads * V);
  plan.parts = region_parts(plan.tiles, region.num_groups);
  const int64_t blocks = region.num_groups * plan.parts;
  const RegionPlaces<T, RowBlockTotals> places(call.workspace, region, blocks, plan.parts);
  call.workspace = places.totals;
  const int shared = kRegionNumbers * (kRowThreads / kWarp) * plan.window * sizeof(T);
  if (blocks > 0)
    launch("region rows kernel", region_rows_kernel<V, X, Loss>,
           {blocks * plan.windows, kRowThreads, shared}, stream, call, region, plan, loss,
           places.partials);
  finish_regions<T>(call, region, places, blocks, stream);
}

template <int V, bool kFar, class X, class Loss>
void walk_region_gradients(const RowSoftmaxCall& call, const RegionCall& region,
                           RegionRowPlan& plan, const Loss& loss, cudaStream_t stream) {
  plan.tiles = ceil_div(plan.rows.rows, kRowThreads * V);
  plan.parts = std::min(plan.tiles, std::max<int64_t>(kMaxRowBlocks / region.num_groups, 1));
  const int64_t padded = (plan.classes + 3) / 4 * 4;
  const int64_t shared = !kFar ? 2 * padded * sizeof(typename Loss::value_type) : 0;
  launch("region rows gradient kernel", region_rows_gradient_kernel<V, kFar, X, Loss>,
         {region.num_groups * plan.parts, kRowThreads, static_cast<int>(shared)}, stream, call,
         region, plan, loss);
}

// `make_loss(T)` gives the joined functor for accumulators of T's type.
template <class MakeLoss>
LabelReport region_rows_forward(RowSoftmaxCall call, RegionCall region, const MakeLoss& make_loss,
                                cudaStream_t stream) {
  // The rows' own losses are of nobody's interest.
  if (call.reduction == Reduction::kNone) call.reduction = Reduction::kSum;
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    constexpr int V = kPixelVector<X>;
    const auto loss = make_loss(Accumulator<X>{});
    RegionRowPlan plan = plan_region_rows<Accumulator<X>>(call, region);
    if (plan.rows.rows > 0 &&
        allows_group_vectors(call, call.logits, plan.rows.logits_step, plan.logits_group, V))
      walk_region_rows<V, X>(call, region, plan, loss, stream);
    else
      walk_region_rows<1, X>(call, region, plan, loss, stream);
  });
  return {};  // a bad label makes the sums NaN; finding it here would wait for the device
}

template <class MakeLoss>
void region_rows_backward(RowSoftmaxCall call, const RegionCall& region, const MakeLoss& make_loss,
                          cudaStream_t stream) {
  if (call.shape.numel() == 0) return;
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    constexpr int V = kPixelVector<X>;
    const auto loss = make_loss(Accumulator<X>{});
    RegionRowPlan plan = plan_region_rows<Accumulator<X>>(call, region);
    const bool vectors =
        allows_group_vectors(call, call.logits, plan.rows.logits_step, plan.logits_group, V) &&
        allows_group_vectors(call, call.grad, plan.rows.grad_step, plan.grad_group, V);
    // A group's slopes must fit into shared memory, padded for vectors.
    const int64_t padded = (plan.classes + 3) / 4 * 4;
    if (2 * padded * static_cast<int64_t>(sizeof(Accumulator<X>)) > kRegionSharedBytes)
      walk_region_gradients<1, true, X>(call, region, plan, loss, stream);
    else if (vectors)
      walk_region_gradients<V, false, X>(call, region, plan, loss, stream);
    else
      walk_region_gradients<1, false, X>(call, region, plan, loss, stream);
  });
}

}  // namespace fusedloss::cuda
