// Cross entropy of one row, as hard example mining selects by it: value without, gradient with the
// class weight. Shrivastava et al., "Training Region-based Object Detectors with Online Hard
// Example Mining" (2016), over pixels. With q = 1 - p_t and the label's weight w_t:
//
//   L = lse - x_t        dL/dx_j = w_t p_j  (j != t)        dL/dx_t = -w_t q
#pragma once

#include "../core/mining.h"
#include "../core/row_softmax.h"

namespace fusedloss {

template <class T>
struct MinedCrossEntropy {
  using value_type = T;
  static constexpr bool kGradientNeedsSmooth = false;
  static constexpr bool kHasWeightedTerms = false;
  static constexpr bool kChangesTarget = false;

  static constexpr FUSEDLOSS_HD T logit_scale() { return T(1); }
  FUSEDLOSS_HD TargetLogit<T> changed_target(T logit, int64_t) const { return {logit, T(1)}; }

  FUSEDLOSS_HD RowLoss<T> value(const RowState<T>& s) const { return {s.nll, T(0)}; }

  FUSEDLOSS_HD RowGradient<T> gradient(const RowState<T>& s, RowScale<T> scale) const {
    const T factor = scale.main * s.weight;
    return {factor, T(0), -factor * s.q};
  }
};

// The mark of a row that has a class. A NaN is above every threshold.
template <class T>
FUSEDLOSS_HD Mark<T> mark_row(T nll, T threshold) {
  const Mark<T> mark = candidate(nll);
  return nll <= threshold ? mark : mark | kAlwaysSelected<T>;
}

}  // namespace fusedloss
