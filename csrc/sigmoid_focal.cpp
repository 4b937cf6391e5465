// Sigmoid focal loss: the operators. Arguments are validated for people in
// python/fusedloss/_checks.py.
#include <stdexcept>
#include <string>

#include "../kernels/loss/sigmoid_focal.h"
#include "pointwise.h"

namespace fusedloss {
namespace {

PointwiseCall make_call(const PointwiseTensors& tensors, double alpha_value, int64_t ignore_index) {
  PointwiseCall call =
      make_pointwise_call(tensors, tensors.target.dim() + 1 == tensors.input.dim());
  call.side_value = alpha_value;
  call.ignore_index = ignore_index;
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
  const PointwiseTensors tensors{input, target, alpha, weight, normalizer};
  const PointwiseCall call = make_call(tensors, alpha_value, ignore_index);
  const PointwiseOutputs out = pointwise_forward<Context>(
      call, tensors, FocalOptions{gamma, label_smoothing}, normalizer_value, reduction, with_grad);
  throw_if_bad(out.report, call.num_classes);
  return {out.loss, out.scale, out.grad};
}

template <class Context>
Tensor sigmoid_focal_bwd(Tensor grad_output, Tensor scale, Tensor input, Tensor target,
                         std::optional<Tensor> alpha, std::optional<Tensor> weight,
                         double alpha_value, double gamma, int64_t ignore_index,
                         double label_smoothing) {
  const PointwiseTensors tensors{input, target, alpha, weight, std::nullopt};
  return pointwise_backward<Context>(make_call(tensors, alpha_value, ignore_index), grad_output,
                                     scale, input, FocalOptions{gamma, label_smoothing});
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
