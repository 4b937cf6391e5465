// Raw addresses from Python as the views and shapes of a kernel's call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "../../kernels/core/layout.h"
#include "../../kernels/core/loss_call.h"

namespace fusedloss {

using Sizes = std::vector<int64_t>;
// (address, dtype, strides); address 0: absent
using GivenView = std::tuple<uintptr_t, int, Sizes>;

inline void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

inline TensorView make_view(const GivenView& given) {
  TensorView view{};
  view.data = address(std::get<0>(given));
  view.dtype = static_cast<DType>(std::get<1>(given));
  const Sizes& strides = std::get<2>(given);
  for (size_t d = 0; d < strides.size(); ++d) view.strides[d] = strides[d];
  return view;
}

inline TensorView view_of(const pybind11::dict& given, const char* name) {
  return given.contains(name) ? make_view(given[name].cast<GivenView>()) : TensorView{};
}

inline void* address_of(const pybind11::dict& given, const char* name) {
  return given.contains(name) ? address(given[name].cast<uintptr_t>()) : nullptr;
}

inline Shape make_shape(const Sizes& sizes, int class_dim) {
  Shape shape{};
  shape.ndim = static_cast<int>(sizes.size());
  shape.class_dim = class_dim;
  for (size_t d = 0; d < sizes.size(); ++d) shape.sizes[d] = sizes[d];
  return shape;
}

// What the calls of both engines have.
template <class Call>
Call make_call_of(const pybind11::dict& given) {
  Call call{};
  call.shape = make_shape(given["sizes"].cast<Sizes>(), given["class_dim"].cast<int>());
  call.logits = view_of(given, "logits");
  call.target = view_of(given, "target");
  call.grad_output = view_of(given, "grad_output");
  call.loss = view_of(given, "loss");
  call.grad = view_of(given, "grad");
  call.normalizer = address_of(given, "normalizer");
  call.normalizer_value = given["normalizer_value"].cast<double>();
  call.scale = address_of(given, "scale");
  call.workspace = address_of(given, "workspace");
  call.ignore_index = given["ignore_index"].cast<int64_t>();
  call.num_classes = given["num_classes"].cast<int64_t>();
  call.prescale = given["prescale"].cast<bool>();
  call.reduction = static_cast<Reduction>(given["reduction"].cast<int>());
  return call;
}

}  // namespace fusedloss
