// Cross entropy of one row, with label smoothing, class weights and z-loss: value and gradient.
//
// With class weights w, label t, smoothing e over C classes (Szegedy et al., "Rethinking the
// Inception Architecture", 2016) and the z-loss of Chowdhery et al. ("PaLM", 2022):
//
//   L = A w_t (lse - x_t) + B sum_j w_j (lse - x_j)  +  z lse^2
//
//   "uniform": A = 1 - e,             B = e / C        e spread over all classes, as torch does
//   "others":  A = 1 - e - e/(C-1),   B = e / (C-1)    e spread over the wrong classes only
//
// Probability targets y replace A [j = t] + B by A y_j + B; the sum over j carries them (u_j).
// Gradient, with U = sum_j u_j, q = 1 - p_t, and u_j = w_j:
//
//   dL/dx_j = (A w_t + B U + 2 z lse) p_j - B u_j                        j != t
//   dL/dx_t = -A w_t q + B (U p_t - u_t) + 2 z lse p_t
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
  double target_share(int64_t num_classes) const {
    if (!smooth_others) return 1.0 - label_smoothing;
    return num_classes > 1 ? 1.0 - label_smoothing - uniform_share(num_classes) : 1.0;
  }
};

template <class T>
struct CrossEntropy {
  using value_type = T;
  static constexpr bool kGradientNeedsSmooth = false;
  static constexpr bool kHasWeightedTerms = true;
  static constexpr bool kChangesTarget = false;

  T target_share, terms_share;  // A and B
  T z_loss;

  // With probability targets A and B are in the terms already.
  CrossEntropy(const CrossEntropyOptions& options, const RowSoftmaxCall& call)
      : target_share(static_cast<T>(call.indexed() ? options.target_share(call.num_classes) : 0.0)),
        terms_share(static_cast<T>(call.indexed() ? options.uniform_share(call.num_classes) : 1.0)),
        z_loss(static_cast<T>(options.z_loss)) {}

  FUSEDLOSS_HD T changed_target(T logit) const { return logit; }

  FUSEDLOSS_HD RowLoss<T> value(const RowState<T>& s) const {
    return {target_share * s.weight * s.nll + terms_share * s.smooth, z_loss * s.lse * s.lse};
  }

  FUSEDLOSS_HD RowGradient<T> gradient(const RowState<T>& s, RowScale<T> scale) const {
    const T own = target_share * s.weight;
    const T slope = scale.by_row * T(2) * z_loss * s.lse;
    return {scale.main * (own + terms_share * s.sum_u) + slope, -scale.main * terms_share,
            scale.main * (terms_share * (s.sum_u * s.p - s.unit) - own * s.q) + slope * s.p};
  }
};

}  // namespace fusedloss
