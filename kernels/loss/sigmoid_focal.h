// Sigmoid focal loss of one element: value and gradient.
//
// Lin et al., "Focal Loss for Dense Object Detection" (2017), with the soft-target form that
// torchvision computes. With p = sigmoid(x) and t' = t (1 - e) + e/2 for label smoothing e:
//
//   L = w * A * q^gamma * ce        A  = alpha t' + (1 - alpha)(1 - t'),  1 if alpha < 0
//                                   q  = p (1 - t') + (1 - p) t'           (= 1 - p_t)
//                                   ce = -t' log p - (1 - t') log(1 - p)
//
// Written with u = e^-|x| and r = 1/(1+u) (the two tails of the logistic, both exact), and with the
// target's weight a on the tail that the logit speaks against (a = 1-t' for x >= 0, else t') and
// b = 1-a:
//
//   q  = r (a + b u)                ce = |x| a + log(1 + u)
//   dq/dx = s r^2 u (a - b)         dce/dx = s r (a - b u)                 s = sign(x)
//   dL/dx = w A s r [ q^gamma (a - b u) + gamma q^(gamma-1) r u (a - b) ce ]
//
// Nothing cancels and nothing divides by a vanishing probability: for hard targets the right side
// has a = 0, where q^(gamma-1) u stays finite for every gamma >= 0 because u is never 0.
#pragma once

#include "../core/math.h"
#include "../core/pointwise.h"

namespace fusedloss {

struct FocalOptions {
  double gamma;
  double label_smoothing;
};

template <class T, class Power>
struct SigmoidFocal {
  using value_type = T;

  T smoothing_scale;  // 1 - e
  T smoothing_shift;  // e / 2
  Power power;

  SigmoidFocal(const FocalOptions& options, Power focus)
      : smoothing_scale(static_cast<T>(1.0 - options.label_smoothing)),
        smoothing_shift(static_cast<T>(0.5 * options.label_smoothing)),
        power(focus) {}

  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>& in) const {
    const T t = in.target * smoothing_scale + smoothing_shift;
    const Logistic<T> s = logistic(in.logit);
    const T a = s.positive ? T(1) - t : t;
    const T b = T(1) - a;

    const T q = s.large * (a + b * s.small);
    const PowerDerivative<T> focus = power(q);
    const T ce = s.magnitude * a + s.log_large;
    const T balance = in.side * t + (T(1) - in.side) * (T(1) - t);
    const T weight = in.weight * (in.side < T(0) ? T(1) : balance);

    const T slope =
        focus.value * (a - b * s.small) + focus.derivative * (s.large * s.small) * (a - b) * ce;
    return {weight * focus.value * ce, weight * (s.positive ? s.large : -s.large) * slope};
  }
};

// The same for targets of 0 or 1 without smoothing, which is what class labels are: half the
// instructions. With y = x against a target of 0 and -x against 1, q = sigmoid(y) and
// ce = log(1 + e^y):
//
//   L = w A q^gamma ce        dL/dy = w A q^gamma [ q + gamma (1 - q) ce ]
template <class T, class Power>
struct SigmoidFocalOfLabels {
  using value_type = T;

  Power power;

  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>& in) const {
    const bool own = in.target > T(0.5);
    // A target of NaN, which stands for a bad label, makes NaN.
    const T against = in.target == in.target ? in.logit : in.target;
    const Logistic<T> s = logistic(own ? -in.logit : against);
    const T vanishing = s.small * s.large;
    const T q = s.positive ? s.large : vanishing;
    const T p = s.positive ? vanishing : s.large;
    const T ce = (s.positive ? s.magnitude : T(0)) + s.log_large;
    const T of_own = in.side < T(0) ? T(1) : in.side;
    const T of_others = in.side < T(0) ? T(1) : T(1) - in.side;
    const T focus = in.weight * (own ? of_own : of_others) * power(q).value;
    const T slope = focus * (q + static_cast<T>(power.exponent()) * (p * ce));
    return {focus * ce, own ? -slope : slope};
  }
};

}  // namespace fusedloss
