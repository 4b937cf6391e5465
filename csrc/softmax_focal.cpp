// Softmax focal loss: schema, checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/softmax_focal.h"
#include "row_softmax.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/softmax_focal.h"
#endif

namespace fusedloss {
namespace {

// `alpha` [C], or `alpha_value` for every class.
RowSoftmaxCall make_call(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& alpha, double alpha_value,
                         const SoftmaxFocalOptions& options, int64_t ignore_index,
                         int64_t reduction) {
  RowSoftmaxCall call = make_row_call(input, target, alpha, ignore_index, reduction);
  STD_TORCH_CHECK(call.indexed(), "softmax_focal: target must hold class indices");
  call.terms = options.label_smoothing > 0.0 ? Terms::kUniform : Terms::kNone;
  call.weight_value = alpha_value;
  call.nothing_is_zero = true;
  return call;
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor, Tensor> softmax_focal_fwd(
    Tensor input, Tensor target, std::optional<Tensor> alpha, std::optional<Tensor> normalizer,
    double alpha_value, double gamma, double label_smoothing, double normalizer_value,
    int64_t ignore_index, int64_t reduction, bool with_saved, bool with_grad) {
  const SoftmaxFocalOptions options{gamma, label_smoothing};
  RowSoftmaxCall call =
      make_call(input, target, alpha, alpha_value, options, ignore_index, reduction);
  if (normalizer.has_value()) call.normalizer = accumulator_scalar(*normalizer, input);
  call.normalizer_value = normalizer_value;
  const Context context(input);
  const RowOutputs out =
      allocate_outputs(input, context, call, with_saved ? saved_numbers(call.terms, true) : 0,
                       grad_for(input, with_grad));
  throw_if_bad(launch_softmax_focal_fwd(call, options, context.executor()), "softmax_focal_loss",
               call.num_classes);
  return out.results();
}

template <class Context>
Tensor softmax_focal_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor input,
                         Tensor target, std::optional<Tensor> alpha, double alpha_value,
                         double gamma, double label_smoothing, int64_t ignore_index) {
  const SoftmaxFocalOptions options{gamma, label_smoothing};
  RowSoftmaxCall call = make_call(input, target, alpha, alpha_value, options, ignore_index, 0);
  Tensor grad = empty_as(input, input.scalar_type());
  set_backward(call, input, grad_output, scale, saved, saved_numbers(call.terms, true), grad);
  const Context context(input);
  launch_softmax_focal_bwd(call, options, context.executor());
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "softmax_focal_fwd(Tensor input, Tensor target, Tensor? alpha, Tensor? normalizer, "
      "float alpha_value, float gamma, float label_smoothing, float normalizer_value, "
      "int ignore_index, int reduction, bool with_saved, bool with_grad) "
      "-> (Tensor loss, Tensor scale, Tensor saved, Tensor grad)");
  m.def(
      "softmax_focal_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor input, "
      "Tensor target, Tensor? alpha, float alpha_value, float gamma, float label_smoothing, "
      "int ignore_index) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("softmax_focal_fwd", TORCH_BOX(&softmax_focal_fwd<CpuContext>));
  m.impl("softmax_focal_bwd", TORCH_BOX(&softmax_focal_bwd<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("softmax_focal_fwd", TORCH_BOX(&softmax_focal_fwd<CudaContext>));
  m.impl("softmax_focal_bwd", TORCH_BOX(&softmax_focal_bwd<CudaContext>));
}
#endif

}  // namespace fusedloss
