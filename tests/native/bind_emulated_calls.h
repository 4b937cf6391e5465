// The engines' calls from what Python says of them.
#pragma once

#include <string>

#include "../../kernels/core/pointwise.h"
#include "../../kernels/core/row_softmax.h"
#include "bind_emulated_views.h"

namespace fusedloss {

inline PointwiseCall make_pointwise_call(const pybind11::dict& given) {
  auto call = make_call_of<PointwiseCall>(given);
  call.side = view_of(given, "side");
  call.weight = view_of(given, "weight");
  call.side_value = given["side_value"].cast<double>();
  call.indexed = given["indexed"].cast<bool>();
  call.counts_all = given.contains("counts_all") && given["counts_all"].cast<bool>();
  return call;
}

inline RowSoftmaxCall make_row_call(const pybind11::dict& given) {
  auto call = make_call_of<RowSoftmaxCall>(given);
  call.saved = view_of(given, "saved");
  call.saved_stride = given["saved_stride"].cast<int64_t>();
  call.class_weight = address_of(given, "class_weight");
  call.weight_value = given["weight_value"].cast<double>();
  call.target_share = given["target_share"].cast<double>();
  call.uniform_share = given["uniform_share"].cast<double>();
  call.terms = static_cast<Terms>(given["terms"].cast<int>());
  call.has_ceiling = given["has_ceiling"].cast<bool>();
  call.ceiling = given["ceiling"].cast<double>();
  call.weighted_mean = given["weighted_mean"].cast<bool>();
  call.nothing_is_zero = given["nothing_is_zero"].cast<bool>();
  return call;
}

}  // namespace fusedloss
