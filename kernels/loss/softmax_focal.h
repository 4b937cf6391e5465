// Softmax focal loss of one row: value and gradient.
//
// Lin et al., "Focal Loss for Dense Object Detection" (2017), over a softmax. With q = 1 - p_t,
// label smoothing e over C classes and the target's factor alpha_t:
//
//   L = alpha_t q^gamma K        K = (1 - e)(lse - x_t) + e/C sum_j (lse - x_j)
//
// As dq/dx_j = p_t (p_j - [j = t]), with f = q^gamma and D = K gamma q^(gamma-1) p_t:
//
//   dL/dx_j = alpha_t [ (f + D) p_j - f e/C ]                            j != t
//   dL/dx_t = alpha_t [ f (e p_t - e/C - (1 - e) q) - D q ]
//
// q comes from the sum over the other classes, so nothing cancels.
#pragma once

#include "../core/row_softmax.h"

namespace fusedloss {

struct SoftmaxFocalOptions {
  double gamma;
  double label_smoothing;
};

template <class T, class Power>
struct SoftmaxFocal {
  using value_type = T;
  static constexpr bool kGradientNeedsSmooth = true;
  static constexpr bool kHasWeightedTerms = false;
  static constexpr bool kChangesTarget = false;

  T target_share, terms_share;  // 1 - e and e/C
  Power power;

  SoftmaxFocal(const SoftmaxFocalOptions& options, const RowSoftmaxCall& call, Power focus)
      : target_share(static_cast<T>(1.0 - options.label_smoothing)),
        terms_share(
            static_cast<T>(options.label_smoothing / static_cast<double>(call.num_classes))),
        power(focus) {}

  FUSEDLOSS_HD T changed_target(T logit) const { return logit; }

  FUSEDLOSS_HD T cross_entropy(const RowState<T>& s) const {
    return target_share * s.nll + terms_share * s.smooth;
  }

  // q^gamma and its derivative. A q that underflowed is 0 to the value; its derivative, which would
  // be infinite for gamma < 1, is that of the smallest normal number.
  FUSEDLOSS_HD PowerDerivative<T> focus(T q) const {
    constexpr T kSmallest = std::numeric_limits<T>::min();
    PowerDerivative<T> f = power(q < kSmallest ? kSmallest : q);
    const bool vanished = (q < kSmallest) & (f.derivative > T(0));  // gamma 0 has derivative 0
    f.value = vanished ? T(0) : f.value;
    return f;
  }

  FUSEDLOSS_HD RowLoss<T> value(const RowState<T>& s) const {
    return {s.weight * focus(s.q).value * cross_entropy(s), T(0)};
  }

  FUSEDLOSS_HD RowGradient<T> gradient(const RowState<T>& s, RowScale<T> scale) const {
    const PowerDerivative<T> power_of_q = focus(s.q);
    const T factor = scale.main * s.weight;
    const T f = factor * power_of_q.value;
    const T d = factor * power_of_q.derivative * cross_entropy(s) * s.p;
    return {f + d, -f * terms_share,
            f * (terms_share * (s.sum_u * s.p - s.unit) - target_share * s.q) - d * s.q};
  }
};

}  // namespace fusedloss
