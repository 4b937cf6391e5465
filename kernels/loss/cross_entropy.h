// Cross entropy of one row, with label smoothing, class weights and z-loss: value and gradient.
//
// With class weights w, label t, smoothing e over C classes (Szegedy et al., "Rethinking the
// Inception Architecture", 2016) and the z-loss of Chowdhery et al. ("PaLM", 2022):
//
//   L = a (lse - x_t) + B sum over j != t of w_j (lse - x_j)  +  z lse^2
//
//   "uniform": a = (1 - e) w_t + B w_t,  B = e / C      e spread over all classes, as torch does
//   "others":  a = (1 - e) w_t,          B = e / (C-1)  e spread over the wrong classes only
//
// Probability targets y have no label: a = 0, and the sum goes over all j with u_j in the place of
// w_j, which carries y_j. Gradient, with q = 1 - p_t, and U the sum of the u_j = w_j over j != t:
//
//   dL/dx_j = (a + B U + 2 z lse) p_j - B u_j                        j != t
//   dL/dx_t = -a q + (B U + 2 z lse) p_t
#pragma once

#include "../core/row_softmax.h"

namespace fusedloss {

struct CrossEntropyOptions {
  double label_smoothing;
  bool smooth_others;  // spread over the wrong classes only
  double z_loss;

  double uniform_share(int64_t num_classes) const {
    const int64_t spread = smooth_others ? num_classes - 1 : num_classes;
    return spread > 0 ? label_smoothing / static_cast<double>(spread) : 0.0;
  }
  // Of the label, without its part of what is spread over all classes.
  double label_share(int64_t num_classes) const {
    return smooth_others && num_classes == 1 ? 1.0 : 1.0 - label_smoothing;
  }
  // A probability target y becomes target_share y + uniform_share.
  double target_share(int64_t num_classes) const {
    const double spread = smooth_others && num_classes > 1 ? uniform_share(num_classes) : 0.0;
    return label_share(num_classes) - spread;
  }
};

// Without kHasZ there is no z-loss, and no logarithm in the gradient.
template <class T, bool kHasZ = true>
struct CrossEntropy {
  using value_type = T;
  static constexpr bool kGradientNeedsSmooth = false;
  static constexpr bool kHasWeightedTerms = true;
  static constexpr bool kChangesTarget = false;

  T label_share, own_share, terms_share;  // a = label_share w_t + own_share u_t, and B
  T z_loss;

  CrossEntropy(const CrossEntropyOptions& options, const RowSoftmaxCall& call)
      : label_share(static_cast<T>(call.indexed() ? options.label_share(call.num_classes) : 0.0)),
        own_share(
            static_cast<T>(options.smooth_others ? 0.0 : options.uniform_share(call.num_classes))),
        terms_share(static_cast<T>(call.indexed() ? options.uniform_share(call.num_classes) : 1.0)),
        z_loss(static_cast<T>(options.z_loss)) {}

  static constexpr FUSEDLOSS_HD T logit_scale() { return T(1); }
  FUSEDLOSS_HD TargetLogit<T> changed_target(T logit, int64_t) const { return {logit, T(1)}; }

  FUSEDLOSS_HD T own(const RowState<T>& s) const {
    return label_share * s.weight + own_share * s.unit;
  }

  FUSEDLOSS_HD RowLoss<T> value(const RowState<T>& s) const {
    const T main = own(s) * s.nll + terms_share * s.smooth;
    if constexpr (!kHasZ) return {main, T(0)};
    return {main, z_loss * s.lse * s.lse};
  }

  FUSEDLOSS_HD RowGradient<T> gradient(const RowState<T>& s, RowScale<T> scale) const {
    const T others = scale.main * terms_share * (s.sum_u - s.unit);
    const T slope = kHasZ ? others + scale.by_row * T(2) * z_loss * s.lse : others;
    const T label = scale.main * own(s);
    return {label + slope, -scale.main * terms_share, slope * s.p - label * s.q};
  }
};

}  // namespace fusedloss
