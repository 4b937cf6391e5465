// Softmax focal loss of one row: value and gradient.
//
// Lin et al., "Focal Loss for Dense Object Detection" (2017), over a softmax. With q = 1 - p_t,
// label smoothing e over C classes and the target's factor alpha_t:
//
//   L = alpha_t q^gamma K        K = a (lse - x_t) + e/C sum over j != t of (lse - x_j)
//
// with a = 1 - e + e/C. As dq/dx_j = p_t (p_j - [j = t]), with f = q^gamma and
// D = K gamma q^(gamma-1) p_t:
//
//   dL/dx_j = alpha_t [ (f + D) p_j - f e/C ]                            j != t
//   dL/dx_t = alpha_t [ f (e (C-1)/C p_t - a q) - D q ]
//
// q comes from the sum over the other classes, so nothing cancels. Where that underflowed (logits
// more than 87 apart in float), q^gamma is taken for 0. With label smoothing and gamma below 0.1
// the true power is not that small; without smoothing the loss is 0 there anyway.
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
  static constexpr T kSteepest = T(1e30);

  T own_share, terms_share, others_share;  // a, e/C and e (C-1)/C
  T power_of_zero;
  Power power;

  SoftmaxFocal(const SoftmaxFocalOptions& options, const RowSoftmaxCall& call, Power focus)
      : terms_share(
            static_cast<T>(options.label_smoothing / static_cast<double>(call.num_classes))),
        power_of_zero(options.gamma == 0.0 ? T(1) : T(0)),
        power(focus) {
    own_share = static_cast<T>(1.0 - options.label_smoothing) + terms_share;
    others_share = terms_share * static_cast<T>(call.num_classes - 1);
  }

  static constexpr FUSEDLOSS_HD T logit_scale() { return T(1); }
  FUSEDLOSS_HD TargetLogit<T> changed_target(T logit, int64_t) const { return {logit, T(1)}; }

  FUSEDLOSS_HD T cross_entropy(const RowState<T>& s) const {
    return own_share * s.nll + terms_share * s.smooth;
  }

  FUSEDLOSS_HD PowerDerivative<T> focus(T q) const {
    constexpr T kSmallest = std::numeric_limits<T>::min();
    PowerDerivative<T> f = power(q < kSmallest ? kSmallest : q);
    f.value = q < kSmallest ? power_of_zero : f.value;
    return f;
  }

  FUSEDLOSS_HD RowLoss<T> value(const RowState<T>& s) const {
    return {s.weight * focus(s.q).value * cross_entropy(s), T(0)};
  }

  FUSEDLOSS_HD RowGradient<T> gradient(const RowState<T>& s, RowScale<T> scale) const {
    const PowerDerivative<T> power_of_q = focus(s.q);
    const T factor = scale.main * s.weight;
    const T f = factor * power_of_q.value;
    // Bounded: where q vanished the slope can be infinite, and every p_j that it meets is 0.
    const T slope = power_of_q.derivative * cross_entropy(s) * s.p;
    const T d = factor * at_most(kSteepest, slope);
    return {f + d, -f * terms_share, f * (others_share * s.p - own_share * s.q) - d * s.q};
  }
};

}  // namespace fusedloss
