// Overlap of predicted and true regions, the dice family: loss and slopes from a region's sums.
//
// With I = sum p t, P = sum p, T = sum t (of squares p^2, t^2 where asked for) of one region:
//
//   r = (gain I + s0) / (by_overlap I + by_mass P + by_truth T + s1)
//
//   dice     2 I / (P + T)                      (Milletari et al., "V-Net", 2016)
//   jaccard  I / (P + T - I)
//   tversky  I / (I + a (P - I) + b (T - I))    (Salehi et al., 2017)
//   loss     1 - r,  (1 - r)^gamma              (Abraham and Khan, 2019)  or  -log r
//
// Generalized dice (Sudre et al., 2017) is one ratio for all classes c of a sample, with w_c = 1 /
// T_c^2, 1 / T_c or 1, an infinite weight replaced by the sample's largest finite one:
//
//   r = (2 sum w_c I_c + s0) / (sum w_c (P_c + T_c) + s1)
//
//   dr/dI = (gain - r by_overlap) / denominator,  dr/dP = -r by_mass / denominator
#pragma once

#include "../core/region.h"

namespace fusedloss {

struct OverlapLoss {
  double loss, by_overlap, by_mass;  // and its derivatives by I and P
};

FUSEDLOSS_HD double overlap_truth(const OverlapOptions& o, const RegionSums& sums) {
  return o.by_truth * sums.truth;
}

// What a ratio's numerator and denominator make of the loss. `by_mass` and `by_overlap` are the
// denominator's factors of P and I, `gain` the numerator's of I.
FUSEDLOSS_HD OverlapLoss overlap_loss_of_ratio(const OverlapOptions& o, double numerator,
                                               double denominator, double gain, double by_overlap,
                                               double by_mass) {
  const double ratio = numerator / denominator;
  const double ratio_by_overlap = (gain - ratio * by_overlap) / denominator;
  const double ratio_by_mass = -ratio * by_mass / denominator;
  if (o.log) {
    const double slope = -1.0 / ratio;
    return {-::log(ratio), slope * ratio_by_overlap, slope * ratio_by_mass};
  }
  const double off = 1.0 - ratio;
  if (o.gamma == 1.0) return {off, -ratio_by_overlap, -ratio_by_mass};
  // Rounding can make `off` negative, which has no power; there, as at 0, the slope is taken for 0.
  const double value = off > 0.0 || off != off ? ::pow(off, o.gamma) : 0.0;
  const double slope = off > 0.0 || off != off ? -o.gamma * value / off : 0.0;
  return {value, slope * ratio_by_overlap, slope * ratio_by_mass};
}

FUSEDLOSS_HD OverlapLoss overlap_loss(const OverlapOptions& o, const RegionSums& sums) {
  const double numerator = o.gain * sums.overlap + o.smooth_numerator;
  const double denominator = o.by_overlap * sums.overlap + o.by_mass * sums.mass +
                             overlap_truth(o, sums) + o.smooth_denominator;
  return overlap_loss_of_ratio(o, numerator, denominator, o.gain, o.by_overlap, o.by_mass);
}

// w_c of a class with this T; infinite for an absent one, but for uniform weights.
FUSEDLOSS_HD double generalized_weight(GeneralizedWeighting weighting, double truth) {
  if (weighting == GeneralizedWeighting::kUniform) return 1.0;
  return weighting == GeneralizedWeighting::kSimple ? 1.0 / truth : 1.0 / (truth * truth);
}

}  // namespace fusedloss
