// From torch tensors to calls of the pointwise engine: views, allocation, launch; and the whole
// binding of a loss whose targets have the input's shape.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "../kernels/cpu/pointwise_calls.h"
#include "device.h"
#include "tensor_view.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/pointwise.h"
#endif

namespace fusedloss {

// What the operators of all these losses take, beside their own numbers.
struct PointwiseTensors {
  Tensor input, target;
  std::optional<Tensor> side, weight, normalizer;
};

// A call without outputs; a loss adds what is its own. Class indices lie along the last dimension.
inline PointwiseCall make_pointwise_call(const PointwiseTensors& tensors, bool indexed) {
  const Tensor& input = tensors.input;
  for (const std::optional<Tensor>& other :
       {std::optional(tensors.target), tensors.side, tensors.weight})
    check_same_device(input, other);
  const int class_dim = static_cast<int>(input.dim()) - 1;
  PointwiseCall call{};
  call.shape = shape_of(input, indexed ? class_dim : -1);
  call.logits = view_of(input, call.shape);
  STD_TORCH_CHECK(is_float_type(call.logits.dtype), "fusedloss: input of an unsupported dtype");
  call.target =
      indexed ? view_of_labels(tensors.target, call.shape) : view_of(tensors.target, call.shape);
  call.side = view_of(tensors.side, call.shape);
  call.weight = view_of(tensors.weight, call.shape);
  call.num_classes = indexed ? input.size(class_dim) : 1;
  call.indexed = indexed;
  return call;
}

struct PointwiseOutputs {
  Tensor loss, scale, grad;
  LabelReport report;
};

template <class Context, class Options>
PointwiseOutputs pointwise_forward(PointwiseCall call, const PointwiseTensors& tensors,
                                   const Options& options, double normalizer_value,
                                   int64_t reduction, bool with_grad) {
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "fusedloss: unknown reduction");
  const Tensor& input = tensors.input;
  const Context context(input);
  call.reduction = static_cast<Reduction>(reduction);
  if (tensors.normalizer.has_value())
    call.normalizer = accumulator_scalar(*tensors.normalizer, input);
  call.normalizer_value = normalizer_value;
  const bool none = call.reduction == Reduction::kNone;
  const ScalarType result = accumulator_of(input);
  PointwiseOutputs out;
  out.grad =
      with_grad ? empty_as(input, input.scalar_type()) : torch::stable::new_empty(input, {0});
  out.loss = none ? empty_as(input, result) : torch::stable::new_empty(input, {}, result);
  out.scale = torch::stable::new_empty(input, {}, result);
  if (with_grad) call.grad = view_of(out.grad, call.shape);
  // A float16 gradient divided by millions would vanish before a loss scale can lift it.
  call.prescale = with_grad && input.scalar_type() != ScalarType::Half;
  call.loss = none ? view_of(out.loss, call.shape) : view_of(out.loss, Shape{});
  call.scale = out.scale.data_ptr();
  Tensor workspace;
  const int64_t workspace_bytes = pointwise_workspace_bytes(call, context.executor());
  if (workspace_bytes > 0) {
    workspace = torch::stable::new_empty(input, {workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.data_ptr();
  }
  out.report = launch_pointwise_fwd(call, options, context.executor());
  return out;
}

template <class Context, class Options>
Tensor pointwise_backward(PointwiseCall call, const Tensor& grad_output, const Tensor& scale,
                          const Tensor& input, const Options& options) {
  STD_TORCH_CHECK(grad_output.scalar_type() == accumulator_of(input),
                  "fusedloss: grad_output has not the dtype of the loss");
  check_same_device(input, grad_output);
  const Context context(input);
  Tensor grad = empty_as(input, input.scalar_type());
  call.grad_output = view_of(grad_output, call.shape);
  call.grad = view_of(grad, call.shape);
  call.scale = accumulator_scalar(scale, input);
  launch_pointwise_bwd(call, options, context.executor());
  return grad;
}

// The operators of a loss without labels, ignored elements or a side operand, whose Options are
// made of these numbers.
template <class Options, class... Numbers>
struct DenseLoss {
  static PointwiseCall call_of(const PointwiseTensors& tensors) {
    STD_TORCH_CHECK(tensors.target.dim() == tensors.input.dim(),
                    "fusedloss: target must have the shape of the input");
    PointwiseCall call = make_pointwise_call(tensors, false);
    call.counts_all = true;
    return call;
  }

  template <class Context>
  static std::tuple<Tensor, Tensor, Tensor> fwd(Tensor input, Tensor target,
                                                std::optional<Tensor> weight,
                                                std::optional<Tensor> normalizer,
                                                Numbers... numbers, double normalizer_value,
                                                int64_t reduction, bool with_grad) {
    const PointwiseTensors tensors{input, target, std::nullopt, weight, normalizer};
    const PointwiseOutputs out = pointwise_forward<Context>(
        call_of(tensors), tensors, Options{numbers...}, normalizer_value, reduction, with_grad);
    return {out.loss, out.scale, out.grad};
  }

  template <class Context>
  static Tensor bwd(Tensor grad_output, Tensor scale, Tensor input, Tensor target,
                    std::optional<Tensor> weight, Numbers... numbers) {
    return pointwise_backward<Context>(call_of({input, target, std::nullopt, weight, std::nullopt}),
                                       grad_output, scale, input, Options{numbers...});
  }

  // `numbers` as a schema has them: "float beta".
  static void define(torch::stable::detail::StableLibrary& library, const std::string& name,
                     const std::string& numbers) {
    library.def((name + "_fwd(Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, " +
                 numbers + ", float normalizer_value, int reduction, bool with_grad) -> " +
                 "(Tensor loss, Tensor scale, Tensor grad)")
                    .c_str());
    library.def((name + "_bwd(Tensor grad_output, Tensor scale, Tensor input, Tensor target, " +
                 "Tensor? weight, " + numbers + ") -> Tensor")
                    .c_str());
  }

  template <class Context>
  static void implement(torch::stable::detail::StableLibrary& library, const std::string& name) {
    library.impl((name + "_fwd").c_str(), TORCH_BOX(&DenseLoss::template fwd<Context>));
    library.impl((name + "_bwd").c_str(), TORCH_BOX(&DenseLoss::template bwd<Context>));
  }
};

}  // namespace fusedloss
