// The pointwise engine on CUDA, host side: which walk a call takes, with which vectors, and its
// launches.
#pragma once

#include "pointwise.cuh"

namespace fusedloss::cuda {

inline Follows how_it_follows(const Shape& shape, const TensorView& view) {
  if (view.data == nullptr || is_constant(shape, view)) return Follows::kConstant;
  if (is_linear(shape, view)) return Follows::kElement;
  if (shape.ndim != 2) return Follows::kOther;
  if (view.strides[0] == 0 && view.strides[1] == 1) return Follows::kClass;
  if (view.strides[0] == 1 && view.strides[1] == 0) return Follows::kRow;
  return Follows::kOther;
}

// Whether an operand that is read or written element by element is wider than the logits, so that
// vectors of V elements of it would take more than one access, each using half of its sectors.
inline bool has_wider_operand(const PointwiseCall& call, int vector) {
  const auto wider = [&](const TensorView& view) {
    return view.data != nullptr && !is_constant(call.shape, view) &&
           size_of(view.dtype) * vector > kVectorBytes;
  };
  return (!call.indexed && wider(call.target)) || wider(call.weight) || wider(call.grad_output) ||
         (call.reduction == Reduction::kNone && wider(call.loss));
}

// Plans the linear walk with vectors of V elements; false where the call does not allow it.
template <int V, class T>
bool plan_linear(const PointwiseCall& call, LinearPlan<T>& plan) {
  const Shape& shape = call.shape;
  if (shape.ndim > 2 || !is_linear(shape, call.logits)) return false;
  plan.numel = shape.numel();
  plan.head = 0;
  while (plan.head < V && !is_aligned(call.logits, plan.head, V)) ++plan.head;
  const auto fits = [&](const TensorView& view) {
    return view.data == nullptr || (is_linear(shape, view) && is_aligned(view, plan.head, V));
  };
  const bool elementwise_loss =
      call.reduction == Reduction::kNone && call.grad_output.data == nullptr;
  if (!fits(call.grad) || (elementwise_loss && !fits(call.loss))) return false;
  if (!call.indexed && !fits(call.target)) return false;

  const auto side_operand = [&](const TensorView& view, double constant) {
    return SideOperand<T>{static_cast<const T*>(view.data), how_it_follows(shape, view),
                          static_cast<T>(constant)};
  };
  plan.side = side_operand(call.side, call.side_value);
  plan.weight = side_operand(call.weight, 1.0);
  plan.upstream = side_operand(call.grad_output, 1.0);
  plan.by_row = call.indexed;
  const TensorView* views[] = {&call.side, &call.weight, &call.grad_output};
  const SideOperand<T>* sides[] = {&plan.side, &plan.weight, &plan.upstream};
  for (int i = 0; i < 3; ++i) {
    if (sides[i]->follows == Follows::kOther) return false;
    if (views[i]->data != nullptr && views[i]->dtype != call.accumulator()) return false;
    if (sides[i]->follows == Follows::kElement && !fits(*views[i])) return false;
    plan.by_row |= sides[i]->follows == Follows::kClass || sides[i]->follows == Follows::kRow;
  }
  plan.classes = shape.ndim == 2 ? shape.sizes[1] : plan.numel;
  if (call.indexed && shape.class_dim < 0) {  // one class: every element is a row
    if (shape.ndim != 1) return false;
    plan.classes = 1;
  } else if (call.indexed && shape.class_dim != shape.ndim - 1) {
    return false;
  }
  if (call.indexed && plan.classes != plan.numel && call.target.strides[0] != 1) return false;
  plan.by_classes = Divider(plan.classes);

  plan.head = plan.head < plan.numel ? plan.head : plan.numel;
  plan.vectors = (plan.numel - plan.head) / V;
  return true;
}

template <Pass kPass, int V, class X, class Loss>
bool try_linear(const PointwiseCall& call, const Loss& loss, cudaStream_t stream, int64_t& blocks) {
  LinearPlan<typename Loss::value_type> plan{};
  if (!plan_linear<V>(call, plan)) return false;
  constexpr int64_t kVectors = int64_t{kPointwiseThreads} * kVectorsPerThread;
  blocks = plan.vectors > kVectors ? (plan.vectors + kVectors - 1) / kVectors : 1;
  launch("pointwise linear kernel", linear_kernel<kPass, V, X, Loss>, {blocks, kPointwiseThreads},
         stream, call, plan, loss);
  return true;
}

// Launches the walk; returns its number of blocks.
template <Pass kPass, class X, class Loss>
int64_t walk(const PointwiseCall& call, const Loss& loss, cudaStream_t stream) {
  constexpr int kFull = kVectorBytes / static_cast<int>(sizeof(X));
  int64_t blocks = 0;
  const bool narrow_first = kFull > 2 && has_wider_operand(call, kFull);
  if (!narrow_first && try_linear<kPass, kFull, X>(call, loss, stream, blocks)) return blocks;
  if constexpr (kFull > 2) {
    if (try_linear<kPass, kFull / 2, X>(call, loss, stream, blocks)) return blocks;
  }
  StridedPlan plan{};
  plan.numel = call.shape.numel();
  for (int d = 0; d < call.shape.ndim; ++d) plan.by_size[d] = Divider(call.shape.sizes[d]);
  blocks = (plan.numel + kSmallestTile - 1) / kSmallestTile;
  launch("pointwise strided kernel", strided_kernel<kPass, X, Loss>, {blocks, kPointwiseThreads},
         stream, call, plan, loss);
  return blocks;
}

template <class X, class Loss>
void pointwise_forward(PointwiseCall call, const Loss& loss, cudaStream_t stream) {
  using T = typename Loss::value_type;
  simplify_call(call);
  const bool empty = call.shape.numel() == 0;
  int64_t blocks = 0;
  if (!empty)
    blocks = call.grad.data != nullptr ? walk<Pass::kLossAndGrad, X>(call, loss, stream)
                                       : walk<Pass::kLoss, X>(call, loss, stream);
  if (empty || call.reduction != Reduction::kNone)
    launch("pointwise finish kernel", finish_kernel<T>, {1, kPointwiseThreads}, stream, call,
           blocks);
}

template <class X, class Loss>
void pointwise_backward(PointwiseCall call, const Loss& loss, cudaStream_t stream) {
  simplify_call(call);
  if (call.shape.numel() > 0) walk<Pass::kGrad, X>(call, loss, stream);
}

}  // namespace fusedloss::cuda
