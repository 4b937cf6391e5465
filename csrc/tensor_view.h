// From torch tensors to the PODs of kernels/core.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>

#include "../kernels/core/layout.h"

namespace fusedloss {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Long:
      return DType::kInt64;
    case ScalarType::Int:
      return DType::kInt32;
    case ScalarType::Short:
      return DType::kInt16;
    case ScalarType::Byte:
      return DType::kUInt8;
    case ScalarType::Char:
      return DType::kInt8;
    case ScalarType::Bool:
      return DType::kBool;
    default:
      STD_TORCH_CHECK(false, "fusedloss: unsupported dtype of a tensor argument");
      return {};
  }
}

// The type arithmetic is done in, and results have: float for half types.
inline ScalarType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Shape shape_of(const Tensor& tensor, int class_dim = -1) {
  STD_TORCH_CHECK(tensor.dim() <= kMaxDims, "fusedloss: at most ", kMaxDims, " dimensions, got ",
                  tensor.dim());
  Shape shape{};
  shape.ndim = static_cast<int>(tensor.dim());
  shape.class_dim = class_dim;
  for (int d = 0; d < shape.ndim; ++d) shape.sizes[d] = tensor.size(d);
  return shape;
}

// An uninitialised tensor of the input's shape; its memory order too, where the input is dense.
inline Tensor empty_as(const Tensor& input, ScalarType dtype) {
  using torch::stable::detail::from;
  const std::optional<ScalarType> type = dtype;
  const std::optional<torch::headeronly::Layout> layout;
  const std::optional<torch::stable::Device> device;
  const std::optional<bool> pinned;
  const std::optional<torch::headeronly::MemoryFormat> format;
  std::array<StableIValue, 6> stack{from(input),  from(type),   from(layout),
                                    from(device), from(pinned), from(format)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// `tensor` broadcast over `shape` by torch's rule (last dimensions aligned).
inline TensorView view_of(const Tensor& tensor, const Shape& shape) {
  TensorView view{};
  view.data = tensor.data_ptr();
  view.dtype = dtype_of(tensor);
  const int offset = shape.ndim - static_cast<int>(tensor.dim());
  STD_TORCH_CHECK(offset >= 0, "fusedloss: a tensor argument has more dimensions than the input");
  for (int d = offset; d < shape.ndim; ++d) {
    const int64_t size = tensor.size(d - offset);
    STD_TORCH_CHECK(size == shape.sizes[d] || size == 1,
                    "fusedloss: a tensor argument does not broadcast to the input");
    view.strides[d] = size == 1 ? 0 : tensor.stride(d - offset);
  }
  return view;
}

inline TensorView view_of(const std::optional<Tensor>& tensor, const Shape& shape) {
  return tensor.has_value() ? view_of(*tensor, shape) : TensorView{};
}

inline void check_same_device(const Tensor& input, const std::optional<Tensor>& other) {
  if (!other.has_value()) return;
  STD_TORCH_CHECK(
      other->is_cpu() == input.is_cpu() && other->get_device_index() == input.get_device_index(),
      "fusedloss: a tensor argument is not on the device of the input");
}

// The one number of a scalar that the kernels read in their arithmetic type.
inline void* accumulator_scalar(const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.numel() == 1 && tensor.scalar_type() == accumulator_of(input),
                  "fusedloss: a scalar argument must hold one number of the loss's dtype");
  check_same_device(input, tensor);
  return tensor.data_ptr();
}

inline bool is_float_type(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kFloat16 ||
         dtype == DType::kBFloat16;
}

inline bool is_label_type(DType dtype) {
  return dtype == DType::kInt64 || dtype == DType::kInt32 || dtype == DType::kInt16 ||
         dtype == DType::kUInt8;
}

// `tensor` has the shape without its class dimension, over which it is broadcast; `skipped`
// dimensions of its own come first.
inline TensorView view_of_rows(const Tensor& tensor, const Shape& shape, int skipped = 0) {
  TensorView view{};
  view.data = tensor.data_ptr();
  view.dtype = dtype_of(tensor);
  STD_TORCH_CHECK(tensor.dim() == shape.ndim - 1 + skipped,
                  "fusedloss: a tensor with one entry a row has the wrong dimensions");
  for (int d = 0, from = skipped; d < shape.ndim; ++d) {
    if (d == shape.class_dim) continue;
    STD_TORCH_CHECK(tensor.size(from) == shape.sizes[d],
                    "fusedloss: a tensor with one entry a row has the wrong shape");
    view.strides[d] = tensor.stride(from++);
  }
  return view;
}

inline TensorView view_of_labels(const Tensor& tensor, const Shape& shape) {
  const TensorView view = view_of_rows(tensor, shape);
  STD_TORCH_CHECK(is_label_type(view.dtype), "fusedloss: class indices of an unsupported dtype");
  return view;
}

}  // namespace fusedloss
