// Region losses over a sigmoid or over the input itself, alone or joined with binary cross entropy
// or sigmoid focal loss: schema, checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "../kernels/cpu/element_regions.h"
#include "device.h"
#include "regions.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/element_regions.h"
#endif

namespace fusedloss {
namespace {

PointwiseCall make_call(const Tensor& input, const Tensor& target,
                        const std::optional<Tensor>& alpha, const ElementRegionOptions& options,
                        double alpha_value, int64_t ignore_index, int64_t reduction) {
  check_same_device(input, target);
  check_same_device(input, alpha);
  const bool indexed = target.dim() + 1 == input.dim();
  const bool activated = options.activation == Activation::kSigmoid;
  STD_TORCH_CHECK(activated || options.joined == Joined::kNothing,
                  "element_regions: nothing is joined to an input without a sigmoid");
  STD_TORCH_CHECK(!activated || !indexed, "element_regions: a sigmoid has no class indices");
  PointwiseCall call{};
  call.shape = shape_of(input, indexed ? 1 : -1);
  call.logits = view_of(input, call.shape);
  STD_TORCH_CHECK(is_float_type(call.logits.dtype), "fusedloss: input of an unsupported dtype");
  call.target = indexed ? view_of_labels(target, call.shape) : view_of(target, call.shape);
  if (alpha.has_value()) {
    STD_TORCH_CHECK(alpha->dim() == 1 && alpha->size(0) == input.size(1),
                    "element_regions: alpha must have an entry for each class");
    call.side.data = alpha->data_ptr();
    call.side.dtype = dtype_of(*alpha);
    call.side.strides[1] = alpha->stride(0);
  }
  call.side_value = options.joined == Joined::kFocal ? alpha_value : -1.0;
  call.ignore_index = ignore_index;
  call.num_classes = indexed ? input.size(1) : 1;
  call.indexed = indexed;
  call.reduction = static_cast<Reduction>(reduction);
  return call;
}

ElementRegionOptions make_options(int64_t activation, int64_t joined, double label_smoothing,
                                  double focal_gamma) {
  STD_TORCH_CHECK(activation == 0 || activation == 1, "element_regions: unknown activation");
  const bool focal = joined == static_cast<int64_t>(Joined::kFocal);
  return {static_cast<Activation>(activation),
          static_cast<Joined>(joined),
          {focal ? focal_gamma : 0.0, label_smoothing}};
}

void throw_if_bad(const LabelReport& report, int64_t num_classes) {
  if (!report.bad_label) return;
  throw std::out_of_range("region_loss: target holds label " + std::to_string(report.label) +
                          ", but input has " + std::to_string(num_classes) +
                          " classes; accepted are 0 to " + std::to_string(num_classes - 1) +
                          " and ignore_index");
}

template <class Context>
std::tuple<Tensor, Tensor, Tensor> element_regions_fwd(
    Tensor input, Tensor target, std::optional<Tensor> region_weight, std::optional<Tensor> alpha,
    double gain, double by_overlap, double by_mass, double by_truth, double smooth_numerator,
    double smooth_denominator, double gamma, bool log, int64_t weighting, bool skip_absent,
    int64_t first_class, double factor, int64_t activation, int64_t joined, double joined_factor,
    double label_smoothing, double focal_gamma, double alpha_value, bool squared, bool batch,
    int64_t ignore_index, int64_t reduction) {
  const ElementRegionOptions options =
      make_options(activation, joined, label_smoothing, focal_gamma);
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
  PointwiseCall call =
      make_call(input, target, alpha, options, alpha_value, ignore_index, reduction);
  const Context context(input);
  const RegionOutputs out = allocate_region_outputs(input, regions);
  call.scale = out.scale.data_ptr();
  if (input.numel() == 0) return {out.loss, out.scale, out.slopes};
  Tensor workspace;
  const int64_t bytes = element_regions_workspace_bytes(call, regions, context.executor());
  if (bytes > 0) {
    workspace = torch::stable::new_empty(input, {bytes}, ScalarType::Byte);
    call.workspace = workspace.data_ptr();
  }
  throw_if_bad(launch_element_regions_fwd(call, regions, options, context.executor()),
               call.num_classes);
  return {out.loss, out.scale, out.slopes};
}

template <class Context>
Tensor element_regions_bwd(Tensor grad_output, Tensor scale, Tensor slopes, Tensor input,
                           Tensor target, std::optional<Tensor> alpha, bool generalized,
                           int64_t first_class, int64_t activation, int64_t joined,
                           double label_smoothing, double focal_gamma, double alpha_value,
                           bool squared, bool batch, int64_t ignore_index) {
  const ElementRegionOptions options =
      make_options(activation, joined, label_smoothing, focal_gamma);
  RegionCall regions = make_region_call(input, batch, squared, first_class, joined);
  set_region_backward(regions, input, grad_output, slopes, generalized);
  PointwiseCall call = make_call(input, target, alpha, options, alpha_value, ignore_index,
                                 static_cast<int64_t>(Reduction::kSum));
  check_same_device(input, scale);
  STD_TORCH_CHECK(
      scale.numel() == 2 && scale.is_contiguous() && scale.scalar_type() == accumulator_of(input),
      "fusedloss: scale must hold two numbers of the loss's dtype");
  const Context context(input);
  Tensor grad = empty_as(input, input.scalar_type());
  call.scale = scale.data_ptr();
  call.grad = view_of(grad, call.shape);
  if (input.numel() > 0) launch_element_regions_bwd(call, regions, options, context.executor());
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "element_regions_fwd(Tensor input, Tensor target, Tensor? region_weight, "
      "Tensor? alpha, " FUSEDLOSS_OVERLAP_SCHEMA
      "float factor, int activation, int joined, float joined_factor, float label_smoothing, "
      "float focal_gamma, float alpha_value, bool squared, bool batch, int ignore_index, "
      "int reduction) -> (Tensor loss, Tensor scale, Tensor slopes)");
  m.def(
      "element_regions_bwd(Tensor grad_output, Tensor scale, Tensor slopes, Tensor input, "
      "Tensor target, Tensor? alpha, bool generalized, int first_class, int activation, "
      "int joined, float label_smoothing, float focal_gamma, float alpha_value, bool squared, "
      "bool batch, int ignore_index) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("element_regions_fwd", TORCH_BOX(&element_regions_fwd<CpuContext>));
  m.impl("element_regions_bwd", TORCH_BOX(&element_regions_bwd<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("element_regions_fwd", TORCH_BOX(&element_regions_fwd<CudaContext>));
  m.impl("element_regions_bwd", TORCH_BOX(&element_regions_bwd<CudaContext>));
}
#endif

}  // namespace fusedloss
