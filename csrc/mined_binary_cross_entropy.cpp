// Binary cross entropy of mined elements: schema, checks that memory safety needs, launch.
#include <torch/csrc/stable/library.h>

#include "../kernels/cpu/mined_binary_cross_entropy.h"
#include "mining.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/mined_binary_cross_entropy.h"
#endif

namespace fusedloss {
namespace {

PointwiseCall make_call(const Tensor& input, const Tensor& target) {
  check_same_device(input, target);
  PointwiseCall call{};
  call.shape = shape_of(input);
  call.logits = view_of(input, call.shape);
  STD_TORCH_CHECK(is_float_type(call.logits.dtype), "fusedloss: logits of an unsupported dtype");
  STD_TORCH_CHECK(target.dim() == input.dim(),
                  "mined_binary_cross_entropy: target must have the shape of the input");
  call.target = view_of(target, call.shape);
  call.side_value = -1.0;
  call.num_classes = 1;
  // No target equals it.
  call.ignored_target = std::numeric_limits<double>::quiet_NaN();
  return call;
}

// The dimensions in the order in which the marks lie: those that number the slices, then a slice's.
struct Slices {
  std::vector<int64_t> order;
  int64_t num_slices = 1, slice_size = 1;
  int first_mined = 0;

  Slices(const Tensor& input, int64_t mined_dims) {
    const int ndim = static_cast<int>(input.dim());
    STD_TORCH_CHECK(mined_dims >= 0 && mined_dims < int64_t{1} << ndim,
                    "mined_binary_cross_entropy: a mined dimension is none of the input's");
    for (const bool mined : {false, true}) {
      if (mined) first_mined = static_cast<int>(order.size());
      for (int d = 0; d < ndim; ++d) {
        if ((mined_dims >> d & 1) != static_cast<int64_t>(mined)) continue;
        order.push_back(d);
        (mined ? slice_size : num_slices) *= input.size(d);
      }
    }
  }

  // Memory laid out as the marks, seen in the order of the input.
  Tensor allocate(const Tensor& input, ScalarType type) const {
    if (first_mined == 0) return empty_as(input, type);
    std::vector<int64_t> sizes, place(order.size());
    for (size_t i = 0; i < order.size(); ++i) {
      sizes.push_back(input.size(order[i]));
      place[order[i]] = static_cast<int64_t>(i);
    }
    using torch::stable::detail::from;
    const torch::headeronly::IntHeaderOnlyArrayRef dims(place);
    std::array<StableIValue, 2> stack{from(empty_of(input, sizes, type)), from(dims)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::permute", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }

  // Which slice an element belongs to: its place times these strides.
  TensorView index(const Tensor& input) const {
    TensorView view{};
    int64_t stride = 1;
    for (int i = first_mined; i-- > 0; stride *= input.size(order[i]))
      view.strides[order[i]] = stride;
    return view;
  }
};

template <class Context>
std::tuple<Tensor, Tensor, Tensor, Tensor> mined_binary_cross_entropy_fwd(
    Tensor input, Tensor target, std::optional<Tensor> mask, bool from_logits, int64_t mined_dims,
    double ratio, int64_t fallback, double epsilon, int64_t reduction) {
  PointwiseCall call = make_call(input, target);
  check_same_device(input, mask);
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2,
                  "mined_binary_cross_entropy: unknown reduction");
  call.weight = view_of(mask, call.shape);
  call.reduction = static_cast<Reduction>(reduction);
  const Slices slices(input, mined_dims);
  const Context context(input);
  MiningCall mining{};
  mining.select.num_slices = slices.num_slices;
  mining.select.slice_size = slices.slice_size;
  mining.select.rule =
      make_rule(static_cast<int64_t>(Wanted::kRatio), fallback, ratio, false, epsilon);
  mining.select.reduction = call.reduction;
  MinedOutputs out = allocate_mined(input, context, mining.select, false,
                                    [&](ScalarType type) { return slices.allocate(input, type); });
  if (input.numel() == 0) {
    select_nothing(out);
    return out.results();
  }
  mining.marks = as_numbers(view_of(out.marks, call.shape));
  launch_mined_binary_cross_entropy_fwd(call, MinedElementOptions{from_logits}, mining,
                                        context.executor());
  return out.results();
}

template <class Context>
Tensor mined_binary_cross_entropy_bwd(Tensor grad_output, Tensor scale, Tensor marks,
                                      Tensor selection, Tensor input, Tensor target,
                                      bool from_logits, int64_t mined_dims) {
  PointwiseCall call = make_call(input, target);
  const Slices slices(input, mined_dims);
  check_mined(input, grad_output, scale, marks, selection, slices.num_slices);
  STD_TORCH_CHECK(marks.dim() == input.dim(), "fusedloss: marks must be what forward returned");
  Tensor grad = empty_as(input, input.scalar_type());
  if (input.numel() == 0) return grad;
  call.reduction = Reduction::kSum;
  call.grad_output = view_of(grad_output, call.shape);
  call.grad = view_of(grad, call.shape);
  call.scale = scale.data_ptr();
  MinedGradientCall mined{};
  mined.marks = as_numbers(view_of(marks, call.shape));
  mined.slice = slices.index(input);
  mined.selection = selection.data_ptr();
  const Context context(input);
  launch_mined_binary_cross_entropy_bwd(call, MinedElementOptions{from_logits}, mined,
                                        context.executor());
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) {
  m.def(
      "mined_binary_cross_entropy_fwd(Tensor input, Tensor target, Tensor? mask, "
      "bool from_logits, int mined_dims, float ratio, int fallback, float epsilon, "
      "int reduction) -> (Tensor loss, Tensor scale, Tensor marks, Tensor selection)");
  m.def(
      "mined_binary_cross_entropy_bwd(Tensor grad_output, Tensor scale, Tensor marks, "
      "Tensor selection, Tensor input, Tensor target, bool from_logits, int mined_dims) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  m.impl("mined_binary_cross_entropy_fwd", TORCH_BOX(&mined_binary_cross_entropy_fwd<CpuContext>));
  m.impl("mined_binary_cross_entropy_bwd", TORCH_BOX(&mined_binary_cross_entropy_bwd<CpuContext>));
}

#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  m.impl("mined_binary_cross_entropy_fwd", TORCH_BOX(&mined_binary_cross_entropy_fwd<CudaContext>));
  m.impl("mined_binary_cross_entropy_bwd", TORCH_BOX(&mined_binary_cross_entropy_bwd<CudaContext>));
}
#endif

}  // namespace fusedloss
