// Cross entropy: schema, checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/cross_entropy.h"
#include "row_softmax.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/cross_entropy.h"
#endif

namespace fusedloss {
namespace {

RowSoftmaxCall make_call(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, const CrossEntropyOptions& options,
                         int64_t ignore_index, int64_t reduction) {
  RowSoftmaxCall call = make_row_call(input, target, weight, ignore_index, reduction);
  if (call.indexed()) {
    call.weighted_mean = weight.has_value();
    if (options.label_smoothing > 0.0)
      call.terms = weight.has_value() ? Terms::kWeights : Terms::kUniform;
  }
  call.target_share = options.target_share(call.num_classes);
  call.uniform_share = options.uniform_share(call.num_classes);
  return call;
}

template <class Context>
RowOutputs forward(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                   const CrossEntropyOptions& options, int64_t ignore_index, int64_t reduction,
                   bool with_saved, const std::optional<Tensor>& grad) {
  RowSoftmaxCall call = make_call(input, target, weight, options, ignore_index, reduction);
  STD_TORCH_CHECK(input.is_cpu() || !grad.has_value() || !call.weighted_mean ||
                      options.z_loss == 0.0 || call.reduction != Reduction::kMean,
                  "cross_entropy_fwd: a weighted mean with z_loss has no gradient in forward here");
  const Context context(input);
  RowOutputs out = allocate_outputs(input, context, call,
                                    with_saved ? saved_numbers(call.terms, false) : 0, grad);
  throw_if_bad(launch_cross_entropy_fwd(call, options, context.executor()), "cross_entropy",
               call.num_classes);
  return out;
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_fwd(
    Tensor input, Tensor target, std::optional<Tensor> weight, double label_smoothing,
    bool smooth_others, double z_loss, int64_t ignore_index, int64_t reduction, bool with_saved,
    bool with_grad) {
  return forward<Context>(input, target, weight, {label_smoothing, smooth_others, z_loss},
                          ignore_index, reduction, with_saved, grad_for(input, with_grad))
      .results();
}

// The gradient in the place of the logits.
template <class Context>
std::tuple<Tensor, Tensor> cross_entropy_fwd_(Tensor input, Tensor target,
                                              std::optional<Tensor> weight, double label_smoothing,
                                              bool smooth_others, double z_loss,
                                              int64_t ignore_index, int64_t reduction) {
  const RowOutputs out =
      forward<Context>(input, target, weight, {label_smoothing, smooth_others, z_loss},
                       ignore_index, reduction, false, input);
  return {out.loss, out.scale};
}

template <class Context>
void backward_into(const Tensor& grad, const Tensor& grad_output, const Tensor& scale,
                   const Tensor& saved, const Tensor& input, const Tensor& target,
                   const std::optional<Tensor>& weight, const CrossEntropyOptions& options,
                   int64_t ignore_index) {
  RowSoftmaxCall call = make_call(input, target, weight, options, ignore_index, 0);
  set_backward(call, input, grad_output, scale, saved, saved_numbers(call.terms, false), grad);
  const Context context(input);
  launch_cross_entropy_bwd(call, options, context.executor());
}

template <class Context>
Tensor cross_entropy_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor input,
                         Tensor target, std::optional<Tensor> weight, double label_smoothing,
                         bool smooth_others, double z_loss, int64_t ignore_index) {
  Tensor grad = empty_as(input, input.scalar_type());
  backward_into<Context>(grad, grad_output, scale, saved, input, target, weight,
                         {label_smoothing, smooth_others, z_loss}, ignore_index);
  return grad;
}

// The gradient in the place of the logits.
template <class Context>
void cross_entropy_bwd_(Tensor grad_output, Tensor scale, Tensor saved, Tensor input, Tensor target,
                        std::optional<Tensor> weight, double label_smoothing, bool smooth_others,
                        double z_loss, int64_t ignore_index) {
  backward_into<Context>(input, grad_output, scale, saved, input, target, weight,
                         {label_smoothing, smooth_others, z_loss}, ignore_index);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "cross_entropy_fwd(Tensor input, Tensor target, Tensor? weight, float label_smoothing, "
      "bool smooth_others, float z_loss, int ignore_index, int reduction, bool with_saved, "
      "bool with_grad) -> (Tensor loss, Tensor scale, Tensor saved, Tensor grad)");
  m.def(
      "cross_entropy_fwd_(Tensor(a!) input, Tensor target, Tensor? weight, float label_smoothing, "
      "bool smooth_others, float z_loss, int ignore_index, int reduction) "
      "-> (Tensor loss, Tensor scale)");
  m.def(
      "cross_entropy_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor input, "
      "Tensor target, Tensor? weight, float label_smoothing, bool smooth_others, float z_loss, "
      "int ignore_index) -> Tensor");
  m.def(
      "cross_entropy_bwd_(Tensor grad_output, Tensor scale, Tensor saved, Tensor(a!) input, "
      "Tensor target, Tensor? weight, float label_smoothing, bool smooth_others, float z_loss, "
      "int ignore_index) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("cross_entropy_fwd", TORCH_BOX(&cross_entropy_fwd<CpuContext>));
  m.impl("cross_entropy_fwd_", TORCH_BOX(&cross_entropy_fwd_<CpuContext>));
  m.impl("cross_entropy_bwd", TORCH_BOX(&cross_entropy_bwd<CpuContext>));
  m.impl("cross_entropy_bwd_", TORCH_BOX(&cross_entropy_bwd_<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("cross_entropy_fwd", TORCH_BOX(&cross_entropy_fwd<CudaContext>));
  m.impl("cross_entropy_fwd_", TORCH_BOX(&cross_entropy_fwd_<CudaContext>));
  m.impl("cross_entropy_bwd", TORCH_BOX(&cross_entropy_bwd<CudaContext>));
  m.impl("cross_entropy_bwd_", TORCH_BOX(&cross_entropy_bwd_<CudaContext>));
}
#endif

}  // namespace fusedloss
