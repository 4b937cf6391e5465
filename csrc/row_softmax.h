// What the operators of the row-softmax engine share: the call from tensors, the outputs.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../kernels/core/row_softmax.h"
#include "device.h"
#include "tensor_view.h"

namespace fusedloss {

inline int64_t row_softmax_workspace_bytes(const RowSoftmaxCall&, const cpu::Threads&) { return 0; }

// Logits [C], [N, C] or [N, C, d1, ...]; class indices without the class dimension, or
// probabilities of the logits' shape; `class_weight` [C] of the accumulator type.
inline RowSoftmaxCall make_row_call(const Tensor& input, const Tensor& target,
                                    const std::optional<Tensor>& class_weight, int64_t ignore_index,
                                    int64_t reduction) {
  check_same_device(input, target);
  check_same_device(input, class_weight);
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "fusedloss: unknown reduction");
  STD_TORCH_CHECK(input.dim() >= 1, "fusedloss: input has no class dimension");
  RowSoftmaxCall call{};
  const int class_dim = input.dim() == 1 ? 0 : 1;
  call.shape = shape_of(input, class_dim);
  call.num_classes = input.size(class_dim);
  STD_TORCH_CHECK(call.num_classes >= 1 && call.num_classes < int64_t{1} << 31,
                  "fusedloss: the number of classes must lie between 1 and 2^31 - 1");
  call.logits = view_of(input, call.shape);
  STD_TORCH_CHECK(is_float_type(call.logits.dtype), "fusedloss: logits of an unsupported dtype");
  if (target.dim() == input.dim()) {
    call.target = view_of(target, call.shape);
    STD_TORCH_CHECK(is_float_type(call.target.dtype),
                    "fusedloss: probabilities of an unsupported dtype");
    call.terms = Terms::kProbabilities;
  } else {
    call.target = view_of_labels(target, call.shape);
  }
  if (class_weight.has_value()) {
    const Tensor& weight = *class_weight;
    STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == call.num_classes &&
                        weight.is_contiguous() && weight.scalar_type() == accumulator_of(input),
                    "fusedloss: class weights must be a contiguous [C] of the loss's dtype");
    call.class_weight = weight.data_ptr();
  }
  call.weight_value = 1.0;
  call.ignore_index = ignore_index;
  call.reduction = static_cast<Reduction>(reduction);
  return call;
}

// What a forward operator returns. `saved` and `grad` are empty where they are not wanted.
struct RowOutputs {
  Tensor loss, scale, saved, grad, workspace;

  std::tuple<Tensor, Tensor, Tensor, Tensor> results() const { return {loss, scale, saved, grad}; }
};

// `grad`: where the gradient goes, if it is wanted.
template <class Context>
RowOutputs allocate_outputs(const Tensor& input, const Context& context, RowSoftmaxCall& call,
                            int64_t saved_count, const std::optional<Tensor>& grad) {
  const ScalarType result = accumulator_of(input);
  const auto allocate = [&](const std::vector<int64_t>& sizes, ScalarType type) {
    return torch::stable::new_empty(input, torch::headeronly::IntHeaderOnlyArrayRef(sizes), type);
  };
  std::vector<int64_t> rows;
  for (int d = 0; d < call.shape.ndim; ++d)
    if (d != call.shape.class_dim) rows.push_back(call.shape.sizes[d]);

  RowOutputs out;
  const bool none = call.reduction == Reduction::kNone;
  out.loss = allocate(none ? rows : std::vector<int64_t>{}, result);
  call.loss = none ? view_of_rows(out.loss, call.shape) : view_of(out.loss, Shape{});
  out.scale = allocate({2}, result);
  call.scale = out.scale.data_ptr();
  std::vector<int64_t> saved = rows;
  saved.insert(saved.begin(), saved_count);
  out.saved = allocate(saved_count > 0 ? saved : std::vector<int64_t>{0}, result);
  if (saved_count > 0) {
    call.saved = view_of_rows(out.saved, call.shape, 1);
    call.saved_stride = out.saved.stride(0);
  }
  out.grad = grad.has_value() ? *grad : torch::stable::new_empty(input, {0});
  if (grad.has_value()) call.grad = view_of(out.grad, call.shape);
  // A float16 gradient divided by millions would vanish before a loss scale can lift it.
  call.prescale = grad.has_value() && input.scalar_type() != ScalarType::Half;
  const int64_t bytes = row_softmax_workspace_bytes(call, context.executor());
  if (bytes > 0) {
    out.workspace = allocate({bytes}, ScalarType::Byte);
    call.workspace = out.workspace.data_ptr();
  }
  return out;
}

// A gradient's memory, where forward is to write one.
inline std::optional<Tensor> grad_for(const Tensor& input, bool wanted) {
  return wanted ? std::optional<Tensor>(empty_as(input, input.scalar_type())) : std::nullopt;
}

// Completes a call for backward; `grad` is where the gradient goes.
inline void set_backward(RowSoftmaxCall& call, const Tensor& input, const Tensor& grad_output,
                         const Tensor& scale, const Tensor& saved, int64_t saved_count,
                         const Tensor& grad) {
  for (const Tensor* other : {&grad_output, &scale, &saved}) {
    check_same_device(input, *other);
    STD_TORCH_CHECK(other->scalar_type() == accumulator_of(input),
                    "fusedloss: a tensor from forward has not the dtype of the loss");
  }
  STD_TORCH_CHECK(scale.numel() == 2 && scale.is_contiguous(),
                  "fusedloss: scale must hold two numbers");
  STD_TORCH_CHECK(saved.dim() >= 1 && saved.size(0) == saved_count,
                  "fusedloss: saved must be what forward returned");
  call.grad_output = grad_output.dim() == 0 ? view_of(grad_output, call.shape)
                                            : view_of_rows(grad_output, call.shape);
  call.scale = scale.data_ptr();
  if (saved_count > 0) {
    call.saved = view_of_rows(saved, call.shape, 1);
    call.saved_stride = saved.stride(0);
  }
  call.grad = view_of(grad, call.shape);
}

inline void throw_if_bad(const LabelReport& report, const char* function, int64_t num_classes,
                         const char* called = "input") {
  if (!report.bad_label) return;
  throw std::out_of_range(std::string(function) + ": target holds label " +
                          std::to_string(report.label) + ", but " + called + " has " +
                          std::to_string(num_classes) + " classes; accepted are 0 to " +
                          std::to_string(num_classes - 1) + " and ignore_index");
}

}  // namespace fusedloss
