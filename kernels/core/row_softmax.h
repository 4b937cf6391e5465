// The row-softmax engine's contract: the statistics of one row, what a loss functor makes of them,
// and the POD that describes one call to any backend.
//
// Logits are seen as rows of `num_classes` numbers, one for each sample or pixel, in any layout.
// One pass over a row gives its sums over all classes j but the label t:
//
//   others = sum of e^(s (x_j - max)),  terms = sum of u_j (x_j - max)
//
// The target stands apart so that 1 - p_t keeps its full relative precision where it dominates, and
// so that a loss may put another target logit in its place (margins). Joined with it, a row is
// described by two numbers, which are also what forward saves for backward:
//
//   max = max x_j over all j,  rest = sum of e^(s (x_j - max)) over all j, less the 1 of the
//   largest p_j = e^(s (x_j - max)) / (1 + rest),  lse = s max + log(1 + rest)
//
// The factor s of all logits is 1 but for losses over cosines, which apply it in the exponential
// instead of scaling their logits. (A saved lse would lose digits of p_j where logits are large.)
// From there the functor computes the loss and three coefficients:
//
//   dL/dx_j = softmax p_j + terms u_j  for j != t,  dL/dx_t = target
//
// with u_j = 1 or the class weights (label smoothing), or what probability targets make of them.
// The target's own gradient is a number of its own: softmax p_t - 1 would cancel.
#pragma once

#include "layout.h"
#include "loss_call.h"
#include "math.h"

namespace fusedloss {

// What stands for u_j, the per-class weight of the sum over all classes.
enum class Terms : int32_t {
  kNone,          // there is no such sum
  kUniform,       // 1
  kWeights,       // class_weight[j]
  kProbabilities  // class_weight[j] * (target_share * target_j + uniform_share)
};

// What a loss puts in the place of the target's logit, and its derivative.
template <class T>
struct TargetLogit {
  T logit, slope;
};

// One row as a functor sees it.
template <class T>
struct RowState {
  T max, rest;     // see the head of this file; with the target's logit changed
  T inverse;       // 1 / (1 + rest): p_j = e^(x_j - max) * inverse
  T log_total;     // log(1 + rest)
  T lse;           // log sum e^x_j
  T logit;         // x_t as it lies in memory
  T changed;       // and what the loss puts in its place
  T nll;           // -log p_t
  T p, q;          // p_t and 1 - p_t
  T target_slope;  // derivative of the changed target logit by x_t
  T smooth;        // sum over j != t of u_j (lse - x_j)
  T sum_u, unit;   // sum of all u_j, and u_t
  T weight;        // class weight of the target (call.weight_value without a tensor)
};

// A loss splits into what the reduction's divisor counts and what is counted by rows.
template <class T>
struct RowLoss {
  T main, by_row;
};

// How gradients are scaled: the factor of RowLoss::main and that of RowLoss::by_row.
template <class T>
struct RowScale {
  T main, by_row;
};

// The row's gradient; see the head of this file.
template <class T>
struct RowGradient {
  T softmax, terms, target;
};

// clang-format off
// A functor has
//   using value_type = T;
//   static constexpr bool kGradientNeedsSmooth;  // whether `gradient` reads state.smooth
//   static constexpr bool kHasWeightedTerms;     // whether has_weighted_terms can be true
//   static constexpr bool kChangesTarget;        // whether changed_target is not the identity
//   T logit_scale() const;                       // factor of all logits; 1 but for losses of cosines
//   TargetLogit<T> changed_target(T logit, int64_t label) const;  // label < 0: nobody asks
//   RowLoss<T> value(const RowState<T>&) const;
//   RowGradient<T> gradient(const RowState<T>&, RowScale<T>) const;
// clang-format on

// What one pass over a row's logits collects, the target left out (probability targets leave none
// out). `max` is what the exponentials are relative to: the maximum of the others or, unless the
// loss changes the target's logit, of all. Where there are no others, or all are -inf, `others` is
// 0.
template <class T>
struct RowSums {
  T max, others;
  T terms;  // 0 for Terms::kNone
};

// The saved numbers of a row, and what else is known of it, as a whole state. `own` is the
// exponential of the target's logit, e^(s (target.logit - max)).
template <class T, class Loss>
FUSEDLOSS_HD RowState<T> state_of(const Loss& loss, T max, T rest, T logit, TargetLogit<T> target,
                                  T own, T smooth, T sum_u, T unit, T weight) {
  RowState<T> state;
  const T scale = loss.logit_scale();
  const T total = T(1) + rest;
  const T inverse = reciprocal(total);
  const T log_total = log_of_total(rest, total, inverse);
  state.max = max;
  state.rest = rest;
  state.inverse = inverse;
  state.log_total = log_total;
  state.lse = scale * max + log_total;
  state.logit = logit;
  state.changed = target.logit;
  state.target_slope = target.slope;
  state.nll = scale * (max - target.logit) + log_total;
  state.p = own * state.inverse;
  state.q = target.logit >= max ? rest * state.inverse : T(1) - state.p;
  state.smooth = smooth;
  state.sum_u = sum_u;
  state.unit = unit;
  state.weight = weight;
  return state;
}

template <class T, class Loss>
FUSEDLOSS_HD RowState<T> restore_state(const Loss& loss, T max, T rest, T logit,
                                       TargetLogit<T> target, T smooth, T sum_u, T unit, T weight) {
  const T own = exp_nonpositive(loss.logit_scale() * (target.logit - max));
  return state_of(loss, max, rest, logit, target, own, smooth, sum_u, unit, weight);
}

// Joins a row's sums with its target logit. With kMaxOfAll, `sums.max` is no less than that.
template <bool kMaxOfAll = false, class T, class Loss>
FUSEDLOSS_HD RowState<T> make_state(const Loss& loss, RowSums<T> sums, T logit, int64_t label,
                                    T sum_u, T unit, T weight) {
  const TargetLogit<T> target = loss.changed_target(logit, label);
  const T scale = loss.logit_scale();
  // Also where the target is NaN, which thus spreads.
  const bool dominates = !(sums.max > target.logit);
  const T max = dominates ? target.logit : sums.max;
  const T shift = kMaxOfAll || !(sums.others > T(0)) ? T(0) : scale * (sums.max - max);
  const T others = kMaxOfAll ? sums.others : sums.others * exp_nonpositive(shift);
  const T own = exp_nonpositive(scale * (target.logit - max));
  const T rest = dominates ? others + (own - T(1)) : (others - T(1)) + own;
  RowState<T> state = state_of(loss, max, rest, logit, target, own, T(0), sum_u, unit, weight);
  state.smooth = (sum_u - unit) * (state.log_total - shift) - scale * sums.terms;
  return state;
}

// The same from the sums over all classes, where targets are probabilities.
template <class T, class Loss>
FUSEDLOSS_HD RowState<T> make_state_without_target(const Loss& loss, RowSums<T> sums, T sum_u) {
  RowState<T> state = restore_state(loss, sums.max, sums.others - T(1), sums.max, {sums.max, T(1)},
                                    T(0), sum_u, T(0), T(0));
  state.smooth = sum_u * state.log_total - loss.logit_scale() * sums.terms;
  state.nll = T(0);
  return state;
}

// One call. All views share `shape`, the logits' own, whose class_dim is set. Views of rows (class
// index targets, losses, saved numbers) have stride 0 there.
struct RowSoftmaxCall {
  Shape shape;
  TensorView logits;
  TensorView target;       // class indices, or probabilities elementwise (Terms::kProbabilities)
  TensorView grad_output;  // backward; by row or constant
  TensorView loss;         // forward with Reduction::kNone: by row; else one number
  TensorView grad;   // gradient of the logits, or absent. May be the logits themselves in backward
  TensorView saved;  // backward's first number of a row; absent in a forward that keeps none
  int64_t saved_stride;      // elements from a row's first saved number to its second and third
  const void* class_weight;  // num_classes accumulator-typed numbers, or nullptr
  double weight_value;       // factor of every class where that is nullptr
  const void* normalizer;    // divisor of the mean: one accumulator-typed number, or nullptr
  double normalizer_value;   // or this one, if positive
  void* scale;  // two accumulator-typed numbers, RowScale: what backward has still to multiply by
  void* workspace;  // row_softmax_workspace_bytes() bytes where the logits live
  int64_t ignore_index;
  int64_t num_classes;                 // below 2^31
  double target_share, uniform_share;  // of Terms::kProbabilities
  Terms terms;
  // Logits of other classes than the target's above the ceiling are left out, as if -inf. For
  // losses that change the target's logit.
  bool has_ceiling;
  double ceiling;
  bool weighted_mean;    // the mean divides by the sum of the targets' class weights, not by rows
  bool nothing_is_zero;  // a mean over nothing is 0; else NaN
  bool prescale;         // the gradient written in forward already carries 1/divisor. Where the two
                  // divisors of RowScale differ (a weighted mean and RowLoss::by_row), only an
                  // engine that counts the labels first may write gradients in forward: the CPU's
  Reduction reduction;

  FUSEDLOSS_HD bool indexed() const { return terms != Terms::kProbabilities; }
  DType accumulator() const {
    return logits.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }
};

FUSEDLOSS_HD constexpr bool has_weighted_terms(Terms terms) {
  return terms == Terms::kWeights || terms == Terms::kProbabilities;
}

// What a row leaves for backward beside max and rest.
enum class ThirdSaved {
  kNothing,
  kSumU,    // where the terms have weights
  kSmooth,  // where there are terms and the gradient needs it
  // Where the loss changes the target's logit. Computed again it could come out a bit different,
  // as compilers contract expressions differently in different kernels: a target that is the
  // maximum would then not be it any more.
  kChanged
};

FUSEDLOSS_HD constexpr ThirdSaved third_saved(Terms terms, bool gradient_needs_smooth,
                                              bool changes_target) {
  if (changes_target) return ThirdSaved::kChanged;
  if (has_weighted_terms(terms)) return ThirdSaved::kSumU;
  return gradient_needs_smooth && terms != Terms::kNone ? ThirdSaved::kSmooth
                                                        : ThirdSaved::kNothing;
}
template <class Loss>
FUSEDLOSS_HD constexpr ThirdSaved third_saved(Terms terms) {
  static_assert(!Loss::kChangesTarget || !(Loss::kHasWeightedTerms || Loss::kGradientNeedsSmooth),
                "there is one place for a third number");
  if (!Loss::kHasWeightedTerms && !Loss::kGradientNeedsSmooth && !Loss::kChangesTarget)
    return ThirdSaved::kNothing;
  return third_saved(terms, Loss::kGradientNeedsSmooth, Loss::kChangesTarget);
}

FUSEDLOSS_HD constexpr int saved_numbers(Terms terms, bool gradient_needs_smooth,
                                         bool changes_target = false) {
  const bool third =
      third_saved(terms, gradient_needs_smooth, changes_target) != ThirdSaved::kNothing;
  return third ? 3 : 2;
}

FUSEDLOSS_HD bool is_class(int64_t label, int64_t num_classes) {
  return label >= 0 && label < num_classes;
}

}  // namespace fusedloss
