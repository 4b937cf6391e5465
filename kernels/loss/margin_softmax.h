// Margin softmax of one row of cosines: value and gradient.
//
// Cross entropy over s x, where the cosine x_t = cos(theta) of the label's class is made harder:
//
//   psi = cos(m1 theta + m2) - m3
//
// m1: SphereFace (Liu et al. 2017); m2: ArcFace (Deng et al. 2019); m3: CosFace (Wang et al. 2018).
// With m1 = 1 the angle is never computed: cos(theta + m2) = x cos(m2) - sqrt(1 - x^2) sin(m2).
// Where the plain form would rise again, past m1 theta + m2 = pi, the "linear" one goes on falling:
//
//   m1 = 1: psi = x - m2 sin(m2) - m3
//   else:   psi = (-1)^k cos(a) - 2k - m3 with a = m1 theta + m2, k = floor(a / pi)
//
// A cosine beyond +-1, which rounding makes, has the angle of +-1. There dpsi/dx is infinite; it is
// taken at the largest |x| below 1 that the logits' dtype holds, as no cosine near 1 is known
// better than that.
//
//   dL/dx_j = s dL/d(s x_j)  for j != t,  dL/dx_t = s dL/d(s psi) dpsi/dx   ("straight through": 1)
#pragma once

#include "cross_entropy.h"

namespace fusedloss {

// One number for all classes, or one for each: `by_class` of the accumulator type.
struct MarginNumber {
  double value;
  const void* by_class;

  template <class T>
  FUSEDLOSS_HD T of(int64_t label) const {
    if (by_class == nullptr) return static_cast<T>(value);
    return static_cast<const T*>(by_class)[label < 0 ? 0 : label];
  }
};

struct MarginOptions {
  double scale;
  MarginNumber m1, m2, m3;
  bool easy;    // the margin where the cosine is positive, else the cosine; instead of `linear`
  bool linear;  // see above
  bool straight_through;
  double label_smoothing;

  FUSEDLOSS_HD bool by_class() const {
    return m1.by_class != nullptr || m2.by_class != nullptr || m3.by_class != nullptr;
  }
};

// psi before m3, as a curve between two straight lines.
template <class T>
struct MarginCurve {
  T m1, m2;             // m2 in units of pi, which reduces the angle exactly
  T cos_m2, sin_m2;     // of m1 = 1
  T falls_below, drop;  // below this cosine psi is the cosine less `drop`

  MarginCurve() = default;
  FUSEDLOSS_HD MarginCurve(T by, T plus, bool linear) : m1(by), m2(plus * T(kOneOverPi)) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    cos_m2 = cos_pi(m2);
    sin_m2 = sin_pi(m2);
    drop = plus * sin_m2;
    const bool bends = plus > T(0) && plus < T(kPi);
    falls_below = bends ? -cos_m2 : (plus <= T(0) ? -kInfinity : kInfinity);
    if (!linear || by != T(1)) falls_below = -kInfinity;
    if (by != T(1) || plus != T(0)) return;
    falls_below = kInfinity;  // no angle: a straight line everywhere
    drop = T(0);
  }
  template <class U>
  explicit MarginCurve(const MarginCurve<U>& from)
      : m1(static_cast<T>(from.m1)),
        m2(static_cast<T>(from.m2)),
        cos_m2(static_cast<T>(from.cos_m2)),
        sin_m2(static_cast<T>(from.sin_m2)),
        falls_below(static_cast<T>(from.falls_below)),
        drop(static_cast<T>(from.drop)) {}
};

// kAnyAngle: m1 other than 1, or margins by class. Else a loop over rows vectorises.
template <class T, bool kAnyAngle>
struct MarginSoftmax {
  using value_type = T;
  static constexpr bool kGradientNeedsSmooth = false;
  static constexpr bool kHasWeightedTerms = false;
  static constexpr bool kChangesTarget = true;

  CrossEntropy<T> cross_entropy;
  MarginCurve<T> curve;
  T scale, m3;
  T closest;        // to 1, as far as the dtype of the logits goes
  T applies_above;  // this cosine
  T exact;          // 1, or 0 for straight through
  bool folds;       // the form of m1 != 1 that goes on falling
  MarginOptions options;

  MarginSoftmax(const MarginOptions& given, const RowSoftmaxCall& call)
      : cross_entropy({given.label_smoothing, false, 0.0}, call),
        curve(MarginCurve<double>(given.m1.value, given.m2.value, given.linear && !given.easy)),
        scale(static_cast<T>(given.scale)),
        m3(static_cast<T>(given.m3.value)),
        closest(static_cast<T>(1.0 - spacing_below_one(call.logits.dtype))),
        applies_above(given.easy ? T(0) : -std::numeric_limits<T>::infinity()),
        exact(given.straight_through ? T(0) : T(1)),
        folds(given.linear && !given.easy),
        options(given) {}

  FUSEDLOSS_HD T logit_scale() const { return scale; }

  // cos(m1 theta + m2), or its fold, and the slope.
  FUSEDLOSS_HD TargetLogit<T> bend(const MarginCurve<T>& m, T x, T inside) const {
    if (!kAnyAngle || m.m1 == T(1)) {
      const T sine = sqrt((T(1) - x) * (T(1) + x));
      const T sine_inside = sqrt((T(1) - inside) * (T(1) + inside));
      return {x * m.cos_m2 - sine * m.sin_m2, m.cos_m2 + inside * m.sin_m2 / sine_inside};
    }
    const TargetLogit<T> at = bend_by_angle(m, x);
    return {at.logit, bend_by_angle(m, inside).slope};
  }

  FUSEDLOSS_HD TargetLogit<T> bend_by_angle(const MarginCurve<T>& m, T x) const {
    const T angle = m.m1 * (acos(x) * T(kOneOverPi)) + m.m2;
    const T k = floor(angle);
    const T half = k * T(0.5);
    const T sign = half == floor(half) || folds ? T(1) : T(-1);
    const T slope = sign * m.m1 * sin_pi(angle - k) / sqrt((T(1) - x) * (T(1) + x));
    return {sign * cos_pi(angle - k) - (folds ? T(2) * k : T(0)), slope};
  }

  FUSEDLOSS_HD TargetLogit<T> changed_target(T x, int64_t label) const {
    MarginCurve<T> m = curve;
    T less = m3;
    if (kAnyAngle && options.by_class()) {
      m = MarginCurve<T>(options.m1.template of<T>(label), options.m2.template of<T>(label), folds);
      less = options.m3.template of<T>(label);
    }
    const TargetLogit<T> bent = bend(m, within(x, T(1)), within(x, closest));
    const bool straight = x < m.falls_below;
    // x - x is NaN for an infinite x, which has no angle.
    const T value = straight ? x - m.drop : bent.logit + (x - x);
    const T slope = straight ? T(1) : bent.slope;
    const bool applies = x > applies_above;  // false for NaN, which stays one
    return {applies ? value - less : x, applies ? T(1) + exact * (slope - T(1)) : T(1)};
  }

  FUSEDLOSS_HD RowLoss<T> value(const RowState<T>& s) const { return cross_entropy.value(s); }

  FUSEDLOSS_HD RowGradient<T> gradient(const RowState<T>& s, RowScale<T> by) const {
    const RowGradient<T> g = cross_entropy.gradient(s, {by.main * scale, by.by_row * scale});
    return {g.softmax, g.terms, g.target * s.target_slope};
  }

 private:
  static FUSEDLOSS_HD T within(T x, T bound) { return at_most(bound, x < -bound ? -bound : x); }

  static double spacing_below_one(DType dtype) {
    switch (dtype) {
      case DType::kFloat64:
        return 0x1p-53;
      case DType::kFloat16:
        return 0x1p-11;
      case DType::kBFloat16:
        return 0x1p-8;
      default:
        return 0x1p-24;
    }
  }
};

}  // namespace fusedloss
