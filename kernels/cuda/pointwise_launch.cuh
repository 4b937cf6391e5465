// The pointwise engine on CUDA, host side: which walk a call takes, with which vectors, and its
// launches.
#pragma once

#include "pointwise_plain.cuh"

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
  plan.rounds = kFewestVectors;
  while (plan.rounds < kMostVectors &&
         plan.vectors >= 2 * kPointwiseThreads * plan.rounds * kEnoughBlocks)
    plan.rounds *= 2;
  plan.step_rows = static_cast<int>(kPointwiseThreads * V / plan.classes);
  plan.step_classes = static_cast<int>(kPointwiseThreads * V % plan.classes);
  return true;
}

template <class T>
Grid linear_grid(const LinearPlan<T>& plan, int rounds) {
  const int64_t of_block = int64_t{kPointwiseThreads} * rounds;
  return {plan.vectors > of_block ? (plan.vectors + of_block - 1) / of_block : 1,
          kPointwiseThreads};
}

// What plain_kernel serves, but for its targets.
template <class T>
bool is_plain(const PointwiseCall& call, const LinearPlan<T>& plan) {
  const bool elementwise_loss =
      call.reduction == Reduction::kNone && call.grad_output.data == nullptr;
  return call.side.data == nullptr && call.weight.data == nullptr && !elementwise_loss &&
         plan.upstream.follows == Follows::kConstant;
}

template <class Targets>
struct TargetsTag {
  using type = Targets;
};

// `forms.dense(run)` and `forms.labels(run)` call `run` with the loss in its form for such targets,
// or return false where there is none; `forms.general()` serves all.
template <Pass kPass, class X, class Forms>
bool try_plain(const PointwiseCall& call, const Forms& forms, cudaStream_t stream,
               int64_t& blocks) {
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  LinearPlan<Accumulator<X>> plan{};
  if (!plan_linear<V>(call, plan) || !is_plain(call, plan)) return false;
  const bool dense = !call.indexed && call.target.dtype == call.logits.dtype;
  const bool labels = call.indexed && plan.classes >= V && plan.classes < kMostClasses;
  if (!dense && !labels) return false;
  const Grid grid = linear_grid(plan, plan.rounds);
  blocks = grid.blocks;
  const auto run = [&](auto targets) {
    return [&](const auto& loss) {
      using Targets = typename decltype(targets)::type;
      launch("pointwise plain kernel",
             plain_kernel<kPass, V, X, std::decay_t<decltype(loss)>, Targets>, grid, stream, call,
             plan, loss);
    };
  };
  return dense ? forms.dense(run(TargetsTag<DenseTargets<V, X>>{}))
               : forms.labels(run(TargetsTag<LabelTargets<V, X>>{}));
}

template <Pass kPass, int V, class X, class Loss>
bool try_linear(const PointwiseCall& call, const Loss& loss, cudaStream_t stream, int64_t& blocks) {
  LinearPlan<typename Loss::value_type> plan{};
  if (!plan_linear<V>(call, plan)) return false;
  const Grid grid = linear_grid(plan, kFewestVectors);
  blocks = grid.blocks;
  launch("pointwise linear kernel", linear_kernel<kPass, V, X, Loss>, grid, stream, call, plan,
         loss);
  return true;
}

// Launches the walk; returns its number of blocks.
template <Pass kPass, class X, class Forms>
int64_t walk(const PointwiseCall& call, const Forms& forms, cudaStream_t stream) {
  const auto loss = forms.general();
  using Loss = std::decay_t<decltype(loss)>;
  constexpr int kFull = kVectorBytes / static_cast<int>(sizeof(X));
  int64_t blocks = 0;
  // Double is there for tests, not for speed.
  if constexpr (sizeof(X) < sizeof(double)) {
    if (try_plain<kPass, X>(call, forms, stream, blocks)) return blocks;
  }
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

template <class X, class Forms>
void pointwise_forward(PointwiseCall call, const Forms& forms, cudaStream_t stream) {
  simplify_call(call);
  const bool empty = call.shape.numel() == 0;
  int64_t blocks = 0;
  if (!empty)
    blocks = call.grad.data != nullptr ? walk<Pass::kLossAndGrad, X>(call, forms, stream)
                                       : walk<Pass::kLoss, X>(call, forms, stream);
  if (empty || call.reduction != Reduction::kNone)
    launch("pointwise finish kernel", finish_kernel<Accumulator<X>>, {1, kSumThreads}, stream, call,
           blocks);
}

template <class X, class Forms>
void pointwise_backward(PointwiseCall call, const Forms& forms, cudaStream_t stream) {
  simplify_call(call);
  if (call.shape.numel() > 0) walk<Pass::kGrad, X>(call, forms, stream);
}

// A loss whose one functor serves dense targets, in every kernel.
template <class Loss>
struct DenseForm {
  Loss loss;

  const Loss& general() const { return loss; }
  template <class Run>
  bool labels(const Run&) const {
    return false;
  }
  template <class Run>
  bool dense(const Run& run) const {
    run(loss);
    return true;
  }
};

}  // namespace fusedloss::cuda

namespace fusedloss {

// The forms of a loss in arithmetic of T. A loss with several has an overload for its options.
template <class T, class Options>
auto forms_of(const Options& options) {
  const auto loss = options.template functor<T>();
  return cuda::DenseForm<std::decay_t<decltype(loss)>>{loss};
}

template <class Options>
LabelReport launch_pointwise_fwd(const PointwiseCall& call, const Options& options,
                                 cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::pointwise_forward<X>(call, forms_of<Accumulator<X>>(options), stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

template <class Options>
void launch_pointwise_bwd(const PointwiseCall& call, const Options& options, cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::pointwise_backward<X>(call, forms_of<Accumulator<X>>(options), stream);
  });
}

}  // namespace fusedloss
