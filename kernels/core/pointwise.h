// The pointwise engine's contract: what a loss functor is given, what it returns, and the POD that
// describes one call to any backend.
#pragma once

#include <limits>

#include "layout.h"
#include "loss_call.h"

namespace fusedloss {

// One element of a pointwise loss. `side` is the loss's own per-class or broadcast parameter (alpha
// for focal), `weight` multiplies the loss.
template <class T>
struct Element {
  T logit, target, side, weight;
};

// A pointwise loss is a functor: Element<T> -> ValueGrad<T>, gradient with respect to the logit.
template <class T>
struct ValueGrad {
  T loss, grad;
};

// One call. All views share `shape`, the logits' own. Absent side inputs have data == nullptr and
// take the constant beside them. Class-index targets have stride 0 along shape.class_dim.
struct PointwiseCall {
  Shape shape;
  TensorView logits;
  TensorView target;
  TensorView side;
  TensorView weight;
  TensorView grad_output;  // backward; elementwise or constant
  TensorView loss;         // forward with Reduction::kNone: elementwise; else one number
  TensorView grad;         // gradient of the logits, or absent in a forward that keeps none
  const void*
      normalizer;  // divisor of the mean: one accumulator-typed number where the logits live,
  double
      normalizer_value;  // or, where that is nullptr, this number if positive, else the valid count
  void*
      scale;  // one accumulator-typed number: forward writes what backward has still to multiply by
  void* workspace;  // pointwise_workspace_bytes() bytes where the logits live
  double side_value;
  int64_t ignore_index;
  double ignored_target;  // the same, as dense targets hold it; set by simplify_call
  int64_t num_classes;
  bool indexed;     // targets are class indices
  bool counts_all;  // no dense target means "ignored", and the mean over nothing is NaN, not 0
  bool prescale;    // the gradient written in forward already carries 1/divisor of the mean
  Reduction reduction;

  DType accumulator() const {
    return logits.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
};

// What a tensor of this dtype holds where somebody filled in `value`.
inline double as_stored(int64_t value, DType dtype) {
  const float rounded = static_cast<float>(value);
  if (dtype == DType::kFloat32) return rounded;
  if (dtype == DType::kFloat16) return to_float(to_float16(rounded));
  if (dtype == DType::kBFloat16) return to_float(to_bfloat16(rounded));
  return static_cast<double>(value);
}

// Brings a call into the form that the engines walk.
inline void simplify_call(PointwiseCall& call) {
  call.ignored_target = call.counts_all ? std::numeric_limits<double>::quiet_NaN()
                                        : as_stored(call.ignore_index, call.target.dtype);
  TensorView* views[] = {&call.logits, &call.target,      &call.side, &call.weight,
                         &call.grad,   &call.grad_output, &call.loss};
  simplify(call.shape, views, 7);
}

// A label's meaning: one of the classes, background (-1 or num_classes), or an error.
FUSEDLOSS_HD bool is_bad_label(int64_t label, int64_t num_classes) {
  return label < -1 || label > num_classes;
}

FUSEDLOSS_HD bool has_normalizer(const PointwiseCall& call) {
  return call.normalizer != nullptr || call.normalizer_value > 0.0;
}

}  // namespace fusedloss
