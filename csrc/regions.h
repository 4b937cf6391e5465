// What the operators of region losses share: the part of a call that describes the regions.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../kernels/loss/joined.h"
#include "tensor_view.h"

namespace fusedloss {

// The arguments of every forward operator on how sums become losses.
#define FUSEDLOSS_OVERLAP_SCHEMA                                                          \
  "float gain, float by_overlap, float by_mass, float by_truth, float smooth_numerator, " \
  "float smooth_denominator, float gamma, bool log, int weighting, bool skip_absent, "    \
  "int first_class, "

// Logits [N, C, ...]; a region is a class of a sample, or of the batch.
inline RegionCall make_region_call(const Tensor& input, bool batch, bool squared,
                                   int64_t first_class, int64_t joined) {
  STD_TORCH_CHECK(input.dim() >= 2, "fusedloss: input has no batch and class dimensions");
  STD_TORCH_CHECK(joined >= 0 && joined <= 2, "fusedloss: unknown joined loss");
  RegionCall call{};
  call.num_groups = batch ? 1 : input.size(0);
  call.num_classes = input.size(1);
  STD_TORCH_CHECK(first_class >= 0 && first_class <= call.num_classes,
                  "fusedloss: first_class is no class");
  call.index.strides[0] = batch ? 0 : call.num_classes;
  call.index.strides[1] = 1;
  call.squared = squared;
  call.first_class = first_class;
  call.joined = joined != 0;
  return call;
}

inline void set_overlap(RegionCall& call, const Tensor& input, const OverlapOptions& overlap,
                        bool skip_absent, const std::optional<Tensor>& region_weight, double factor,
                        double joined_factor, int64_t reduction) {
  const int64_t weighting = static_cast<int64_t>(overlap.weighting);
  STD_TORCH_CHECK(weighting >= 0 && weighting <= 3, "fusedloss: unknown weighting of regions");
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "fusedloss: unknown reduction");
  STD_TORCH_CHECK(reduction != 0 || !call.joined,
                  "fusedloss: joined losses have no elementwise form");
  if (region_weight.has_value()) {
    const Tensor& weight = *region_weight;
    check_same_device(input, region_weight);
    STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == call.num_classes &&
                        weight.is_contiguous() && weight.scalar_type() == accumulator_of(input),
                    "fusedloss: region weights must be a contiguous [C] of the loss's dtype");
    call.class_weight = weight.data_ptr();
  }
  call.overlap = overlap;
  call.skip_absent = skip_absent;
  call.factor = factor;
  call.joined_factor = joined_factor;
  call.reduction = static_cast<Reduction>(reduction);
}

struct RegionOutputs {
  Tensor loss, scale, slopes;
};

// Memory for what a forward leaves; zeros where there are no elements and so nothing to compute.
inline RegionOutputs allocate_region_outputs(const Tensor& input, RegionCall& call) {
  const ScalarType type = accumulator_of(input);
  const auto allocate = [&](const std::vector<int64_t>& sizes) {
    const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes);
    Tensor out = torch::stable::new_empty(input, shape, type);
    return input.numel() == 0 ? torch::stable::zero_(out) : out;
  };
  std::vector<int64_t> losses;
  if (call.reduction == Reduction::kNone) {
    if (call.generalized() || call.index.strides[0] != 0) losses.push_back(call.num_groups);
    if (!call.generalized()) losses.push_back(call.num_classes - call.first_class);
  }
  RegionOutputs out{allocate(losses), allocate({2}), allocate({call.num_regions(), 2})};
  call.loss = out.loss.data_ptr();
  call.slopes = out.slopes.data_ptr();
  return out;
}

// Completes a call for backward.
inline void set_region_backward(RegionCall& call, const Tensor& input, const Tensor& grad_output,
                                const Tensor& slopes, bool generalized) {
  const ScalarType type = accumulator_of(input);
  check_same_device(input, grad_output);
  check_same_device(input, slopes);
  STD_TORCH_CHECK(grad_output.scalar_type() == type && slopes.scalar_type() == type,
                  "fusedloss: a tensor from forward has not the dtype of the loss");
  STD_TORCH_CHECK(slopes.dim() == 2 && slopes.size(0) == call.num_regions() &&
                      slopes.size(1) == 2 && slopes.is_contiguous(),
                  "fusedloss: slopes must be what forward returned");
  if (generalized) call.overlap.weighting = GeneralizedWeighting::kUniform;
  call.slopes = slopes.data_ptr();
  call.upstream = grad_output.data_ptr();
  if (grad_output.dim() == 0) return;
  STD_TORCH_CHECK(!call.joined, "fusedloss: joined losses have one incoming gradient");
  int dim = 0;
  if (generalized || call.index.strides[0] != 0) {
    STD_TORCH_CHECK(grad_output.size(dim) == call.num_groups,
                    "fusedloss: incoming gradients must have the shape of the losses");
    call.upstream_group_stride = grad_output.stride(dim++);
  }
  if (!generalized) {
    STD_TORCH_CHECK(
        dim < grad_output.dim() && grad_output.size(dim) == call.num_classes - call.first_class,
        "fusedloss: incoming gradients must have the shape of the losses");
    call.upstream_class_stride = grad_output.stride(dim++);
  }
  STD_TORCH_CHECK(dim == grad_output.dim(),
                  "fusedloss: incoming gradients must have the shape of the losses");
}

}  // namespace fusedloss
