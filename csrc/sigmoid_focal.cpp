// Sigmoid focal loss: schema, checks that memory safety needs, allocation, launch.
// Arguments are validated for people in python/fusedloss/_checks.py.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../kernels/cpu/focal.h"
#include "device.h"
#include "tensor_view.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/focal.h"
#endif

namespace fusedloss {
namespace {

struct Arguments {
  Tensor input, target;
  std::optional<Tensor> alpha, weight, normalizer;
  double alpha_value, gamma;
  int64_t ignore_index;
  double label_smoothing, normalizer_value;
  int64_t reduction;

  FocalOptions options() const { return {gamma, label_smoothing}; }
};

PointwiseCall make_call(const Arguments& args) {
  for (const std::optional<Tensor>& other : {std::optional(args.target), args.alpha, args.weight})
    check_same_device(args.input, other);
  STD_TORCH_CHECK(args.reduction >= 0 && args.reduction <= 2, "sigmoid_focal: unknown reduction");
  const bool indexed = args.target.dim() + 1 == args.input.dim();
  PointwiseCall call{};
  call.shape = shape_of(args.input, indexed ? static_cast<int>(args.input.dim()) - 1 : -1);
  call.logits = view_of(args.input, call.shape);
  STD_TORCH_CHECK(is_float_type(call.logits.dtype), "fusedloss: logits of an unsupported dtype");
  call.target =
      indexed ? view_of_labels(args.target, call.shape) : view_of(args.target, call.shape);
  call.side = view_of(args.alpha, call.shape);
  call.weight = view_of(args.weight, call.shape);
  call.side_value = args.alpha_value;
  call.ignore_index = args.ignore_index;
  call.num_classes = indexed ? args.input.size(args.input.dim() - 1) : 1;
  call.indexed = indexed;
  if (args.normalizer.has_value())
    call.normalizer = accumulator_scalar(*args.normalizer, args.input);
  call.normalizer_value = args.normalizer_value;
  call.reduction = static_cast<Reduction>(args.reduction);
  return call;
}

void throw_if_bad(const LabelReport& report, int64_t num_classes) {
  if (!report.bad_label) return;
  throw std::out_of_range("sigmoid_focal_loss: target holds label " + std::to_string(report.label) +
                          ", but input has " + std::to_string(num_classes) +
                          " classes; accepted are 0 to " + std::to_string(num_classes - 1) + ", " +
                          std::to_string(num_classes) + " or -1 for background, and ignore_index");
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor> sigmoid_focal_fwd(
    Tensor input, Tensor target, std::optional<Tensor> alpha, std::optional<Tensor> weight,
    std::optional<Tensor> normalizer, double alpha_value, double gamma, int64_t ignore_index,
    double label_smoothing, double normalizer_value, int64_t reduction, bool with_grad) {
  const Arguments args{input,           target,           alpha,    weight,
                       normalizer,      alpha_value,      gamma,    ignore_index,
                       label_smoothing, normalizer_value, reduction};
  PointwiseCall call = make_call(args);
  const Context context(input);
  const bool none = call.reduction == Reduction::kNone;
  const ScalarType result = accumulator_of(input);
  Tensor grad =
      with_grad ? empty_as(input, input.scalar_type()) : torch::stable::new_empty(input, {0});
  Tensor loss = none ? empty_as(input, result) : torch::stable::new_empty(input, {}, result);
  Tensor scale = torch::stable::new_empty(input, {}, result);
  Tensor workspace;
  if (with_grad) call.grad = view_of(grad, call.shape);
  // A float16 gradient divided by millions would vanish before a loss scale can lift it.
  call.prescale = with_grad && input.scalar_type() != ScalarType::Half;
  call.loss = none ? view_of(loss, call.shape) : view_of(loss, Shape{});
  call.scale = scale.data_ptr();
  const int64_t workspace_bytes = pointwise_workspace_bytes(call, context.executor());
  if (workspace_bytes > 0) {
    workspace = torch::stable::new_empty(input, {workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.data_ptr();
  }
  throw_if_bad(launch_sigmoid_focal_fwd(call, args.options(), context.executor()),
               call.num_classes);
  return {loss, scale, grad};
}

template <class Context>
Tensor sigmoid_focal_bwd(Tensor grad_output, Tensor scale, Tensor input, Tensor target,
                         std::optional<Tensor> alpha, std::optional<Tensor> weight,
                         double alpha_value, double gamma, int64_t ignore_index,
                         double label_smoothing) {
  STD_TORCH_CHECK(grad_output.scalar_type() == accumulator_of(input),
                  "sigmoid_focal_bwd: grad_output has not the dtype of the loss");
  check_same_device(input, grad_output);
  const Arguments args{input,           target,      alpha, weight,
                       std::nullopt,    alpha_value, gamma, ignore_index,
                       label_smoothing, 0.0,         0};
  PointwiseCall call = make_call(args);
  const Context context(input);
  Tensor grad = empty_as(input, input.scalar_type());
  call.grad_output = view_of(grad_output, call.shape);
  call.grad = view_of(grad, call.shape);
  call.scale = accumulator_scalar(scale, input);
  launch_sigmoid_focal_bwd(call, args.options(), context.executor());
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "sigmoid_focal_fwd(Tensor input, Tensor target, Tensor? alpha, Tensor? weight, "
      "Tensor? normalizer, float alpha_value, float gamma, int ignore_index, "
      "float label_smoothing, float normalizer_value, int reduction, bool with_grad) "
      "-> (Tensor loss, Tensor scale, Tensor grad)");
  m.def(
      "sigmoid_focal_bwd(Tensor grad_output, Tensor scale, Tensor input, Tensor target, "
      "Tensor? alpha, Tensor? weight, float alpha_value, float gamma, int ignore_index, "
      "float label_smoothing) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("sigmoid_focal_fwd", TORCH_BOX(&sigmoid_focal_fwd<CpuContext>));
  m.impl("sigmoid_focal_bwd", TORCH_BOX(&sigmoid_focal_bwd<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("sigmoid_focal_fwd", TORCH_BOX(&sigmoid_focal_fwd<CudaContext>));
  m.impl("sigmoid_focal_bwd", TORCH_BOX(&sigmoid_focal_bwd<CudaContext>));
}
#endif

}  // namespace fusedloss
