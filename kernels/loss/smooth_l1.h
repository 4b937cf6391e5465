// Smooth L1 loss of one element, the loss of box regression: value and gradient.
//
// Girshick, "Fast R-CNN" (2015), with the width of the parabola as torch has it. With d = x - t:
//
//   L = w d^2 / (2 beta)       dL/dx = w d / beta        |d| < beta
//   L = w (|d| - beta / 2)     dL/dx = w sign(d)         else (where beta = 0, d = 0 is here: 0)
//
// d / beta is at most 1 where it is used, and multiplied by d afterwards, so that nothing
// underflows before the result does. A NaN goes the lower way and stays one.
#pragma once

#include <limits>

#include "../core/pointwise.h"

namespace fusedloss {

template <class T>
struct SmoothL1 {
  using value_type = T;

  T beta, inverse;

  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>& in) const {
    const T d = in.logit - in.target;
    const T size = d < T(0) ? -d : d;
    const bool inside = size < beta;
    const T ratio = d * inverse;
    const T sign = d < T(0) ? T(-1) : d > T(0) ? T(1) : d;
    const T loss = inside ? T(0.5) * d * ratio : size - T(0.5) * beta;
    return {in.weight * loss, in.weight * (inside ? ratio : sign)};
  }
};

struct SmoothL1Options {
  double beta;

  // A parabola narrower than the inverse of the largest number is none.
  template <class T>
  SmoothL1<T> functor() const {
    const bool none = beta < 1.0 / static_cast<double>(std::numeric_limits<T>::max());
    return {static_cast<T>(none ? 0.0 : beta), static_cast<T>(none ? 0.0 : 1.0 / beta)};
  }
};

}  // namespace fusedloss
