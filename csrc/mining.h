// What the operators of hard example mining share: the outputs of forward, the call of backward.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "../kernels/core/mining.h"
#include "../kernels/cpu/select.h"
#include "device.h"
#include "tensor_view.h"

#if FUSEDLOSS_WITH_CUDA
#include "../kernels/cuda/select.h"
#endif

namespace fusedloss {

inline Tensor empty_of(const Tensor& input, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(input, torch::headeronly::IntHeaderOnlyArrayRef(sizes), type);
}

inline SelectionRule make_rule(int64_t wanted, int64_t number, double factor, bool whole_ties,
                               double epsilon) {
  STD_TORCH_CHECK(wanted >= 0 && wanted <= static_cast<int64_t>(Wanted::kRatio),
                  "fusedloss: unknown rule of a selection");
  STD_TORCH_CHECK(number >= 0 && factor >= 0.0,
                  "fusedloss: a selection wants a negative number of losses");
  return {static_cast<Wanted>(wanted), number, factor, whole_ties, epsilon};
}

// Marks and selections are bits of the accumulator's numbers. As tensors they are integers, of
// which none is a NaN that differs from itself.
inline ScalarType bits_of(const Tensor& input) {
  return accumulator_of(input) == ScalarType::Double ? ScalarType::Long : ScalarType::Int;
}

// The view of such a tensor as the kernels take it.
inline TensorView as_numbers(TensorView view) {
  view.dtype = view.dtype == DType::kInt64 ? DType::kFloat64 : DType::kFloat32;
  return view;
}

// What a forward operator returns, and memory that lives until then.
struct MinedOutputs {
  Tensor loss, scale, marks, selection, values, workspace;

  std::tuple<Tensor, Tensor, Tensor, Tensor> results() const {
    return {loss, scale, marks, selection};
  }
};

// `like_marks(type)` makes a tensor laid out as the marks.
template <class Context, class Allocate>
MinedOutputs allocate_mined(const Tensor& input, const Context& context, SelectCall& select,
                            bool with_values, const Allocate& like_marks) {
  const ScalarType type = accumulator_of(input);
  MinedOutputs out;
  out.marks = like_marks(bits_of(input));
  out.loss = select.reduction == Reduction::kNone ? like_marks(type) : empty_of(input, {}, type);
  out.scale = empty_of(input, {}, type);
  out.selection = empty_of(input, {select.num_slices, 2}, bits_of(input));
  if (with_values) out.values = like_marks(type);
  select.marks = out.marks.data_ptr();
  select.values = with_values ? out.values.data_ptr() : nullptr;
  select.loss = out.loss.data_ptr();
  select.scale = out.scale.data_ptr();
  select.selection = out.selection.data_ptr();
  if (input.numel() == 0) return out;
  const DType accumulator = type == ScalarType::Double ? DType::kFloat64 : DType::kFloat32;
  const int64_t bytes = select_workspace_bytes(select, accumulator, context.executor());
  if (bytes > 0) {
    out.workspace = empty_of(input, {bytes}, ScalarType::Byte);
    select.workspace = out.workspace.data_ptr();
  }
  return out;
}

template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

// Of an input without elements nothing is selected.
inline void select_nothing(MinedOutputs& out) {
  if (out.loss.dim() == 0) torch::stable::zero_(out.loss);
  torch::stable::zero_(out.scale);
  if (out.selection.numel() == 0) return;
  Tensor cut = torch::stable::select(out.selection, 1, 0);
  Tensor share = torch::stable::select(out.selection, 1, 1);
  const bool is_double = out.selection.scalar_type() == ScalarType::Long;
  torch::stable::fill_(cut, is_double ? static_cast<double>(candidate(kNaN<double>))
                                      : static_cast<double>(candidate(kNaN<float>)));
  torch::stable::zero_(share);
}

// Checks what backward got from forward.
inline void check_mined(const Tensor& input, const Tensor& grad_output, const Tensor& scale,
                        const Tensor& marks, const Tensor& selection, int64_t num_slices) {
  for (const Tensor* other : {&grad_output, &scale, &marks, &selection}) {
    check_same_device(input, *other);
    const bool is_bits = other == &marks || other == &selection;
    STD_TORCH_CHECK(other->scalar_type() == (is_bits ? bits_of(input) : accumulator_of(input)),
                    "fusedloss: a tensor from forward has not the dtype that belongs to the loss");
  }
  STD_TORCH_CHECK(scale.numel() == 1, "fusedloss: scale must hold one number");
  STD_TORCH_CHECK(selection.dim() == 2 && selection.size(0) == num_slices &&
                      selection.size(1) == 2 && selection.is_contiguous(),
                  "fusedloss: selection must be what forward returned");
}

}  // namespace fusedloss
