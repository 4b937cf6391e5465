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

}  // namespace fusedloss
