// Cross entropy of mined rows: schema, checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/mined_cross_entropy.h"
#include "mining.h"
#include "row_softmax.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/mined_cross_entropy.h"
#endif

namespace fusedloss {
namespace {

RowSoftmaxCall make_call(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t ignore_index,
                         int64_t reduction) {
  RowSoftmaxCall call = make_row_call(input, target, weight, ignore_index, reduction);
  STD_TORCH_CHECK(call.indexed(), "mined_cross_entropy: target must hold class indices");
  call.terms = Terms::kNone;
  return call;
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mined_cross_entropy_fwd(
    Tensor input, Tensor target, std::optional<Tensor> weight, double threshold, int64_t wanted,
    int64_t number, double factor, bool whole_ties, int64_t ignore_index, int64_t reduction,
    bool begin_grad) {
  constexpr bool kCanBegin = std::is_same_v<Context, CpuContext>;
  STD_TORCH_CHECK(kCanBegin || !begin_grad,
                  "mined_cross_entropy: only the CPU's forward begins the gradient");
  RowSoftmaxCall call = make_call(input, target, weight, ignore_index, reduction);
  const Context context(input);
  std::vector<int64_t> rows;
  MiningCall mining{};
  mining.select.num_slices = mining.select.slice_size = 1;
  for (int d = 0; d < call.shape.ndim; ++d) {
    if (d == call.shape.class_dim) continue;
    rows.push_back(call.shape.sizes[d]);
    mining.select.slice_size *= call.shape.sizes[d];
  }
  mining.select.rule = make_rule(wanted, number, factor, whole_ties, 0.0);
  mining.select.reduction = call.reduction;
  mining.threshold = threshold;
  MinedOutputs out = allocate_mined(input, context, mining.select, weight.has_value(),
                                    [&](ScalarType type) { return empty_of(input, rows, type); });
  Tensor grad =
      begin_grad ? empty_as(input, input.scalar_type()) : torch::stable::new_empty(input, {0});
  const auto results = [&] { return std::tuple_cat(out.results(), std::make_tuple(grad)); };
  if (input.numel() == 0) {
    select_nothing(out);
    return results();
  }
  if (begin_grad) call.grad = view_of(grad, call.shape);
  mining.marks = as_numbers(view_of_rows(out.marks, call.shape));
  throw_if_bad(launch_mined_cross_entropy_fwd(call, mining, context.executor()),
               "mined cross entropy", call.num_classes);
  return results();
}

template <class Context>
void write_gradient(const Tensor& grad, bool begun, const Tensor& grad_output, const Tensor& scale,
                    const Tensor& marks, const Tensor& selection, const Tensor& input,
                    const Tensor& target, const std::optional<Tensor>& weight,
                    int64_t ignore_index) {
  RowSoftmaxCall call =
      make_call(input, target, weight, ignore_index, static_cast<int64_t>(Reduction::kSum));
  check_mined(input, grad_output, scale, marks, selection, 1);
  if (input.numel() == 0) return;
  call.grad_output = grad_output.dim() == 0 ? view_of(grad_output, call.shape)
                                            : view_of_rows(grad_output, call.shape);
  call.scale = scale.data_ptr();
  call.grad = view_of(grad, call.shape);
  MinedGradientCall mined{};
  mined.marks = as_numbers(view_of_rows(marks, call.shape));
  mined.selection = selection.data_ptr();
  mined.begun = begun;
  const Context context(input);
  launch_mined_cross_entropy_bwd(call, mined, context.executor());
}

template <class Context>
Tensor mined_cross_entropy_bwd(Tensor grad_output, Tensor scale, Tensor marks, Tensor selection,
                               Tensor input, Tensor target, std::optional<Tensor> weight,
                               int64_t ignore_index) {
  Tensor grad = empty_as(input, input.scalar_type());
  write_gradient<Context>(grad, false, grad_output, scale, marks, selection, input, target, weight,
                          ignore_index);
  return grad;
}

void mined_cross_entropy_bwd_(Tensor grad, Tensor grad_output, Tensor scale, Tensor marks,
                              Tensor selection, Tensor input, Tensor target,
                              std::optional<Tensor> weight, int64_t ignore_index) {
  STD_TORCH_CHECK(grad.dim() == input.dim() && grad.numel() == input.numel() &&
                      grad.scalar_type() == input.scalar_type(),
                  "mined_cross_entropy: grad must be what forward returned");
  check_same_device(input, grad);
  write_gradient<CpuContext>(grad, true, grad_output, scale, marks, selection, input, target,
                             weight, ignore_index);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "mined_cross_entropy_fwd(Tensor input, Tensor target, Tensor? weight, float threshold, "
      "int wanted, int number, float factor, bool whole_ties, int ignore_index, int reduction, "
      "bool begin_grad) "
      "-> (Tensor loss, Tensor scale, Tensor marks, Tensor selection, Tensor grad)");
  m.def(
      "mined_cross_entropy_bwd(Tensor grad_output, Tensor scale, Tensor marks, Tensor selection, "
      "Tensor input, Tensor target, Tensor? weight, int ignore_index) -> Tensor");
  // Over the gradient that forward began.
  m.def(
      "mined_cross_entropy_bwd_(Tensor(a!) grad, Tensor grad_output, Tensor scale, Tensor marks, "
      "Tensor selection, Tensor input, Tensor target, Tensor? weight, int ignore_index) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("mined_cross_entropy_fwd", TORCH_BOX(&mined_cross_entropy_fwd<CpuContext>));
  m.impl("mined_cross_entropy_bwd", TORCH_BOX(&mined_cross_entropy_bwd<CpuContext>));
  m.impl("mined_cross_entropy_bwd_", TORCH_BOX(&mined_cross_entropy_bwd_));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("mined_cross_entropy_fwd", TORCH_BOX(&mined_cross_entropy_fwd<CudaContext>));
  m.impl("mined_cross_entropy_bwd", TORCH_BOX(&mined_cross_entropy_bwd<CudaContext>));
}
#endif

}  // namespace fusedloss
