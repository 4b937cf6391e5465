// Margin softmax (ArcFace and its family): schema, checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <string>

#include "../kernels/cpu/margin_softmax.h"
#include "row_softmax.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/margin_softmax.h"
#endif

namespace fusedloss {
namespace {

// `by_class` [C], or `value` for every class.
MarginNumber margin_number(const Tensor& input, const std::optional<Tensor>& by_class,
                           double value) {
  if (!by_class.has_value()) return {value, nullptr};
  check_same_device(input, by_class);
  STD_TORCH_CHECK(by_class->dim() == 1 &&
                      by_class->size(0) == input.size(input.dim() == 1 ? 0 : 1) &&
                      by_class->is_contiguous() && by_class->scalar_type() == accumulator_of(input),
                  "margin_softmax: margins must be a contiguous [C] of the loss's dtype");
  return {value, by_class->data_ptr()};
}

// The arguments that all four operators share.
struct Given {
  const Tensor &input, &target;
  MarginOptions options;
  double ceiling;
  int64_t ignore_index;

  RowSoftmaxCall call(int64_t reduction) const {
    RowSoftmaxCall made = make_row_call(input, target, std::nullopt, ignore_index, reduction);
    STD_TORCH_CHECK(made.indexed(), "margin_softmax: target must hold class indices");
    STD_TORCH_CHECK(options.scale > 0.0, "margin_softmax: the scale must be positive");
    made.terms = options.label_smoothing > 0.0 ? Terms::kUniform : Terms::kNone;
    made.nothing_is_zero = true;
    made.ceiling = ceiling;
    made.has_ceiling = ceiling < std::numeric_limits<double>::infinity();
    STD_TORCH_CHECK(!made.has_ceiling || made.terms == Terms::kNone,
                    "margin_softmax: a ceiling goes without label smoothing");
    return made;
  }
};

Given given(const Tensor& input, const Tensor& target, const std::optional<Tensor>& m1,
            const std::optional<Tensor>& m2, const std::optional<Tensor>& m3, double logit_scale,
            double m1_value, double m2_value, double m3_value, bool easy, bool linear,
            bool straight_through, double label_smoothing, double ceiling, int64_t ignore_index) {
  STD_TORCH_CHECK(input.dim() >= 1, "margin_softmax: input has no class dimension");
  const MarginOptions options{logit_scale,
                              margin_number(input, m1, m1_value),
                              margin_number(input, m2, m2_value),
                              margin_number(input, m3, m3_value),
                              easy,
                              linear,
                              straight_through,
                              label_smoothing};
  return {input, target, options, ceiling, ignore_index};
}

template <class Context>
RowOutputs forward(const Given& from, int64_t reduction, bool with_saved,
                   const std::optional<Tensor>& grad) {
  RowSoftmaxCall call = from.call(reduction);
  const Context context(from.input);
  RowOutputs out = allocate_outputs(from.input, context, call,
                                    with_saved ? saved_numbers(call.terms, false, true) : 0, grad);
  throw_if_bad(launch_margin_softmax_fwd(call, from.options, context.executor()),
               "margin_softmax_loss", call.num_classes, "cosine");
  return out;
}

template <class Context>
void backward_into(const Given& from, const Tensor& grad, const Tensor& grad_output,
                   const Tensor& scale, const Tensor& saved) {
  RowSoftmaxCall call = from.call(0);
  set_backward(call, from.input, grad_output, scale, saved, saved_numbers(call.terms, false, true),
               grad);
  const Context context(from.input);
  launch_margin_softmax_bwd(call, from.options, context.executor());
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor, Tensor> margin_softmax_fwd(
    Tensor input, Tensor target, std::optional<Tensor> m1, std::optional<Tensor> m2,
    std::optional<Tensor> m3, double logit_scale, double m1_value, double m2_value, double m3_value,
    bool easy, bool linear, bool straight_through, double label_smoothing, double ceiling,
    int64_t ignore_index, int64_t reduction, bool with_saved, bool with_grad) {
  const Given from = given(input, target, m1, m2, m3, logit_scale, m1_value, m2_value, m3_value,
                           easy, linear, straight_through, label_smoothing, ceiling, ignore_index);
  return forward<Context>(from, reduction, with_saved, grad_for(input, with_grad)).results();
}

// The gradient in the place of the cosines.
template <class Context>
std::tuple<Tensor, Tensor> margin_softmax_fwd_(Tensor input, Tensor target,
                                               std::optional<Tensor> m1, std::optional<Tensor> m2,
                                               std::optional<Tensor> m3, double logit_scale,
                                               double m1_value, double m2_value, double m3_value,
                                               bool easy, bool linear, bool straight_through,
                                               double label_smoothing, double ceiling,
                                               int64_t ignore_index, int64_t reduction) {
  const Given from = given(input, target, m1, m2, m3, logit_scale, m1_value, m2_value, m3_value,
                           easy, linear, straight_through, label_smoothing, ceiling, ignore_index);
  const RowOutputs out = forward<Context>(from, reduction, false, input);
  return {out.loss, out.scale};
}

template <class Context>
Tensor margin_softmax_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor input,
                          Tensor target, std::optional<Tensor> m1, std::optional<Tensor> m2,
                          std::optional<Tensor> m3, double logit_scale, double m1_value,
                          double m2_value, double m3_value, bool easy, bool linear,
                          bool straight_through, double label_smoothing, double ceiling,
                          int64_t ignore_index) {
  const Given from = given(input, target, m1, m2, m3, logit_scale, m1_value, m2_value, m3_value,
                           easy, linear, straight_through, label_smoothing, ceiling, ignore_index);
  Tensor grad = empty_as(input, input.scalar_type());
  backward_into<Context>(from, grad, grad_output, scale, saved);
  return grad;
}

template <class Context>
void margin_softmax_bwd_(Tensor grad_output, Tensor scale, Tensor saved, Tensor input,
                         Tensor target, std::optional<Tensor> m1, std::optional<Tensor> m2,
                         std::optional<Tensor> m3, double logit_scale, double m1_value,
                         double m2_value, double m3_value, bool easy, bool linear,
                         bool straight_through, double label_smoothing, double ceiling,
                         int64_t ignore_index) {
  const Given from = given(input, target, m1, m2, m3, logit_scale, m1_value, m2_value, m3_value,
                           easy, linear, straight_through, label_smoothing, ceiling, ignore_index);
  backward_into<Context>(from, input, grad_output, scale, saved);
}

const std::string kMargins =
    "Tensor? m1, Tensor? m2, Tensor? m3, float logit_scale, float m1_value, float m2_value, "
    "float m3_value, bool easy, bool linear, bool straight_through, float label_smoothing, "
    "float ceiling, int ignore_index";

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  const std::string logits = "Tensor input, Tensor target, " + kMargins;
  const std::string changed = "Tensor(a!) input, Tensor target, " + kMargins;
  const std::string saved = "Tensor grad_output, Tensor scale, Tensor saved, ";
  const std::string outputs = ") -> (Tensor loss, Tensor scale";
  const auto define = [&](const std::string& schema) { m.def(schema.c_str()); };
  define("margin_softmax_fwd(" + logits + ", int reduction, bool with_saved, bool with_grad" +
         outputs + ", Tensor saved, Tensor grad)");
  define("margin_softmax_fwd_(" + changed + ", int reduction" + outputs + ")");
  define("margin_softmax_bwd(" + saved + logits + ") -> Tensor");
  define("margin_softmax_bwd_(" + saved + changed + ") -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("margin_softmax_fwd", TORCH_BOX(&margin_softmax_fwd<CpuContext>));
  m.impl("margin_softmax_fwd_", TORCH_BOX(&margin_softmax_fwd_<CpuContext>));
  m.impl("margin_softmax_bwd", TORCH_BOX(&margin_softmax_bwd<CpuContext>));
  m.impl("margin_softmax_bwd_", TORCH_BOX(&margin_softmax_bwd_<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("margin_softmax_fwd", TORCH_BOX(&margin_softmax_fwd<CudaContext>));
  m.impl("margin_softmax_fwd_", TORCH_BOX(&margin_softmax_fwd_<CudaContext>));
  m.impl("margin_softmax_bwd", TORCH_BOX(&margin_softmax_bwd<CudaContext>));
  m.impl("margin_softmax_bwd_", TORCH_BOX(&margin_softmax_bwd_<CudaContext>));
}
#endif

}  // namespace fusedloss
