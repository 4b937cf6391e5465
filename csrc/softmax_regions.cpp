// Region losses over a softmax, alone or joined with cross entropy or softmax focal loss: schema,
// checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/softmax_regions.h"
#include "regions.h"
#include "row_softmax.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/softmax_regions.h"
#endif

namespace fusedloss {
namespace {

RowSoftmaxCall make_call(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& class_weight,
                         const SoftmaxRegionOptions& options, double alpha_value,
                         int64_t ignore_index, int64_t reduction) {
  RowSoftmaxCall call = make_row_call(input, target, class_weight, ignore_index, reduction);
  const bool smooths = options.cross_entropy.label_smoothing > 0.0;
  call.nothing_is_zero = true;
  call.target_share = 1.0;
  if (options.joined == Joined::kCrossEntropy) {
    call.target_share = options.cross_entropy.target_share(call.num_classes);
    call.uniform_share = options.cross_entropy.uniform_share(call.num_classes);
    call.weighted_mean = call.indexed() && class_weight.has_value();
    if (call.indexed() && smooths)
      call.terms = class_weight.has_value() ? Terms::kWeights : Terms::kUniform;
  } else if (options.joined == Joined::kFocal) {
    STD_TORCH_CHECK(call.indexed(), "softmax_regions: focal loss needs class indices");
    call.terms = smooths ? Terms::kUniform : Terms::kNone;
    call.weight_value = alpha_value;
  } else {
    STD_TORCH_CHECK(!class_weight.has_value(), "softmax_regions: class weights of nothing");
  }
  return call;
}

SoftmaxRegionOptions make_options(int64_t joined, double label_smoothing, bool smooth_others,
                                  double focal_gamma) {
  const double smoothing = joined == 0 ? 0.0 : label_smoothing;
  return {static_cast<Joined>(joined), {smoothing, smooth_others, 0.0}, {focal_gamma, smoothing}};
}

// `begins`: a gradient is begun.
int64_t saved_count(const RowSoftmaxCall& call, const RegionCall& regions,
                    const SoftmaxRegionOptions& options, bool begins) {
  if (begins && few_classes_hold_all(call, regions, options)) return 0;
  return saved_numbers(call.terms, options.joined == Joined::kFocal);
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> softmax_regions_fwd(
    Tensor input, Tensor target, std::optional<Tensor> region_weight,
    std::optional<Tensor> class_weight, double gain, double by_overlap, double by_mass,
    double by_truth, double smooth_numerator, double smooth_denominator, double gamma, bool log,
    int64_t weighting, bool skip_absent, int64_t first_class, double factor, int64_t joined,
    double joined_factor, double label_smoothing, bool smooth_others, double focal_gamma,
    double alpha_value, bool squared, bool batch, int64_t ignore_index, int64_t reduction,
    bool with_saved, bool begin_grad) {
  STD_TORCH_CHECK(
      !begin_grad || (std::is_same_v<Context, CpuContext> && with_saved &&
                      input.scalar_type() == accumulator_of(input)),
      "softmax_regions: only the CPU's forward begins the gradient, of float32 and float64");
  const SoftmaxRegionOptions options =
      make_options(joined, label_smoothing, smooth_others, focal_gamma);
  RegionCall regions = make_region_call(input, batch, squared, first_class, joined);
  const OverlapOptions overlap{gain,
                               by_overlap,
                               by_mass,
                               by_truth,
                               smooth_numerator,
                               smooth_denominator,
                               gamma,
                               log,
                               static_cast<GeneralizedWeighting>(weighting)};
  set_overlap(regions, input, overlap, skip_absent, region_weight, factor, joined_factor,
              reduction);
  RowSoftmaxCall call =
      make_call(input, target, class_weight, options, alpha_value, ignore_index, reduction);
  const Context context(input);
  const RegionOutputs out = allocate_region_outputs(input, regions);
  call.scale = out.scale.data_ptr();

  const int64_t count = with_saved ? saved_count(call, regions, options, begin_grad) : 0;
  std::vector<int64_t> sizes{count};
  if (count > 0) {
    sizes.push_back(input.size(0));
    for (int d = 2; d < call.shape.ndim; ++d) sizes.push_back(call.shape.sizes[d]);
  }
  const auto allocate = [&](const std::vector<int64_t>& of, ScalarType type) {
    return torch::stable::new_empty(input, torch::headeronly::IntHeaderOnlyArrayRef(of), type);
  };
  Tensor saved = allocate(sizes, accumulator_of(input)), workspace;
  if (count > 0) {
    call.saved = view_of_rows(saved, call.shape, 1);
    call.saved_stride = saved.stride(0);
  }
  Tensor begun =
      begin_grad ? empty_as(input, input.scalar_type()) : torch::stable::new_empty(input, {0});
  if (begin_grad) call.grad = view_of(begun, call.shape);
  if (input.numel() == 0) return {out.loss, out.scale, saved, out.slopes, begun};
  const int64_t bytes = softmax_regions_workspace_bytes(call, regions, context.executor());
  if (bytes > 0) {
    workspace = allocate({bytes}, ScalarType::Byte);
    call.workspace = workspace.data_ptr();
  }
  throw_if_bad(launch_softmax_regions_fwd(call, regions, options, context.executor()),
               "region_loss", call.num_classes);
  return {out.loss, out.scale, saved, out.slopes, begun};
}

// `begun`: what forward left of a begun gradient, or nullptr; may be `grad`.
template <class Context>
void write_gradient(const Tensor& grad, const Tensor* begun, const Tensor& grad_output,
                    const Tensor& scale, const Tensor& saved, const Tensor& slopes,
                    const Tensor& input, const Tensor& target,
                    const std::optional<Tensor>& class_weight, bool generalized,
                    int64_t first_class, int64_t joined, double label_smoothing, bool smooth_others,
                    double focal_gamma, double alpha_value, bool squared, bool batch,
                    int64_t ignore_index) {
  const SoftmaxRegionOptions options =
      make_options(joined, label_smoothing, smooth_others, focal_gamma);
  RegionCall regions = make_region_call(input, batch, squared, first_class, joined);
  set_region_backward(regions, input, grad_output, slopes, generalized);
  RowSoftmaxCall call = make_call(input, target, class_weight, options, alpha_value, ignore_index,
                                  static_cast<int64_t>(Reduction::kSum));
  // The incoming gradient is in the regions' call; scale stands in for it here.
  set_backward(call, input, torch::stable::select(scale, 0, 0), scale, saved,
               saved_count(call, regions, options, begun != nullptr), grad);
  call.grad_output = TensorView{};
  if (input.numel() == 0) return;
  regions.begun = begun != nullptr;
  if (begun != nullptr) call.logits = view_of(*begun, call.shape);
  const Context context(input);
  launch_softmax_regions_bwd(call, regions, options, context.executor());
}

void check_begun(const Tensor& input, const Tensor& begun) {
  bool same = begun.dim() == input.dim() && begun.scalar_type() == input.scalar_type() &&
              input.scalar_type() == accumulator_of(input);
  for (int64_t d = 0; same && d < input.dim(); ++d) same = begun.size(d) == input.size(d);
  STD_TORCH_CHECK(same, "softmax_regions: begun must be what forward returned");
  check_same_device(input, begun);
}

template <class Context>
Tensor softmax_regions_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor slopes,
                           Tensor input, Tensor target, std::optional<Tensor> class_weight,
                           bool generalized, int64_t first_class, int64_t joined,
                           double label_smoothing, bool smooth_others, double focal_gamma,
                           double alpha_value, bool squared, bool batch, int64_t ignore_index) {
  Tensor grad = empty_as(input, input.scalar_type());
  write_gradient<Context>(grad, nullptr, grad_output, scale, saved, slopes, input, target,
                          class_weight, generalized, first_class, joined, label_smoothing,
                          smooth_others, focal_gamma, alpha_value, squared, batch, ignore_index);
  return grad;
}

void softmax_regions_finish_(Tensor begun, Tensor grad_output, Tensor scale, Tensor saved,
                             Tensor slopes, Tensor input, Tensor target,
                             std::optional<Tensor> class_weight, bool generalized,
                             int64_t first_class, int64_t joined, double label_smoothing,
                             bool smooth_others, double focal_gamma, double alpha_value,
                             bool squared, bool batch, int64_t ignore_index) {
  check_begun(input, begun);
  write_gradient<CpuContext>(begun, &begun, grad_output, scale, saved, slopes, input, target,
                             class_weight, generalized, first_class, joined, label_smoothing,
                             smooth_others, focal_gamma, alpha_value, squared, batch, ignore_index);
}

Tensor softmax_regions_finish(Tensor begun, Tensor grad_output, Tensor scale, Tensor saved,
                              Tensor slopes, Tensor input, Tensor target,
                              std::optional<Tensor> class_weight, bool generalized,
                              int64_t first_class, int64_t joined, double label_smoothing,
                              bool smooth_others, double focal_gamma, double alpha_value,
                              bool squared, bool batch, int64_t ignore_index) {
  check_begun(input, begun);
  Tensor grad = empty_as(input, input.scalar_type());
  write_gradient<CpuContext>(grad, &begun, grad_output, scale, saved, slopes, input, target,
                             class_weight, generalized, first_class, joined, label_smoothing,
                             smooth_others, focal_gamma, alpha_value, squared, batch, ignore_index);
  return grad;
}

}  // namespace

#define FUSEDLOSS_REGION_GRADIENT_SCHEMA                                                   \
  "Tensor input, Tensor target, Tensor? class_weight, bool generalized, int first_class, " \
  "int joined, float label_smoothing, bool smooth_others, float focal_gamma, "             \
  "float alpha_value, bool squared, bool batch, int ignore_index"

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "softmax_regions_fwd(Tensor input, Tensor target, Tensor? region_weight, "
      "Tensor? class_weight, " FUSEDLOSS_OVERLAP_SCHEMA
      "float factor, int joined, float joined_factor, float label_smoothing, bool smooth_others, "
      "float focal_gamma, float alpha_value, bool squared, bool batch, int ignore_index, "
      "int reduction, bool with_saved, bool begin_grad) "
      "-> (Tensor loss, Tensor scale, Tensor saved, Tensor slopes, Tensor begun)");
  m.def(
      "softmax_regions_bwd(Tensor grad_output, Tensor scale, Tensor saved, Tensor "
      "slopes, " FUSEDLOSS_REGION_GRADIENT_SCHEMA ") -> Tensor");
  // From what forward began, and the same over it.
  m.def(
      "softmax_regions_finish(Tensor begun, Tensor grad_output, Tensor scale, Tensor saved, "
      "Tensor slopes, " FUSEDLOSS_REGION_GRADIENT_SCHEMA ") -> Tensor");
  m.def(
      "softmax_regions_finish_(Tensor(a!) begun, Tensor grad_output, Tensor scale, Tensor saved, "
      "Tensor slopes, " FUSEDLOSS_REGION_GRADIENT_SCHEMA ") -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("softmax_regions_fwd", TORCH_BOX(&softmax_regions_fwd<CpuContext>));
  m.impl("softmax_regions_bwd", TORCH_BOX(&softmax_regions_bwd<CpuContext>));
  m.impl("softmax_regions_finish", TORCH_BOX(&softmax_regions_finish));
  m.impl("softmax_regions_finish_", TORCH_BOX(&softmax_regions_finish_));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("softmax_regions_fwd", TORCH_BOX(&softmax_regions_fwd<CudaContext>));
  m.impl("softmax_regions_bwd", TORCH_BOX(&softmax_regions_bwd<CudaContext>));
}
#endif

}  // namespace fusedloss
