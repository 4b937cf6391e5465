// Overlap of predicted and true regions, the dice family: loss and slopes from regions' sums.
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
// Generalized dice (Sudre et al., 2017) is one ratio for all classes c of a group, with w_c = 1 /
// T_c^2, 1 / T_c or 1, an infinite weight replaced by the group's largest finite one (0 where there
// is none), times the class's weight:
//
//   r = (2 sum w_c I_c + s0) / (sum w_c (P_c + T_c) + s1)
//
//   dr/dI = (gain - r by_overlap) / denominator,  dr/dP = -r by_mass / denominator
//
// The finish is written for one thread a unit, a unit being what has a ratio of its own: a region,
// or a group where generalized. First every unit's loss (unit_loss), whose sum and count give the
// mean; then every unit's slopes (store_slopes). `sums` is any function from a region's number to
// its RegionSums.
#pragma once

#include <cmath>
#include <limits>

#include "../core/region.h"

namespace fusedloss {

struct OverlapLoss {
  double loss, by_overlap, by_mass;  // and its derivatives by I and P
};

// What a ratio's numerator and denominator make of the loss. `gain` is the numerator's factor of I,
// `by_overlap` and `by_mass` the denominator's of I and P.
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
                             o.by_truth * sums.truth + o.smooth_denominator;
  return overlap_loss_of_ratio(o, numerator, denominator, o.gain, o.by_overlap, o.by_mass);
}

FUSEDLOSS_HD bool is_infinite(double x) { return x > std::numeric_limits<double>::max(); }

// w_c of a class with this T; infinite for an absent one, but for uniform weights.
FUSEDLOSS_HD double generalized_weight(GeneralizedWeighting weighting, double truth) {
  if (weighting == GeneralizedWeighting::kUniform) return 1.0;
  return weighting == GeneralizedWeighting::kSimple ? 1.0 / truth : 1.0 / (truth * truth);
}

template <class T>
FUSEDLOSS_HD double region_weight(const RegionCall& call, int64_t this_class) {
  return call.class_weight == nullptr
             ? 1.0
             : static_cast<double>(static_cast<const T*>(call.class_weight)[this_class]);
}

// Whether a region takes part in the loss.
FUSEDLOSS_HD bool is_left(const RegionCall& call, const RegionSums& sums, int64_t this_class) {
  return this_class >= call.first_class && !(call.skip_absent && sums.truth == 0.0);
}

// The weights of one group of generalized dice, and the ratio they make.
template <class T>
struct GeneralizedGroup {
  double largest, numerator, denominator;
  bool left;  // some region is

  FUSEDLOSS_HD double weight(const RegionCall& call, const RegionSums& sums,
                             int64_t this_class) const {
    if (!is_left(call, sums, this_class)) return 0.0;
    const double weight = generalized_weight(call.overlap.weighting, sums.truth);
    return (is_infinite(weight) ? largest : weight) * region_weight<T>(call, this_class);
  }
};

template <class T, class Sums>
FUSEDLOSS_HD GeneralizedGroup<T> generalized_group(const RegionCall& call, const Sums& sums,
                                                   int64_t group) {
  const int64_t first = group * call.num_classes;
  GeneralizedGroup<T> out{0.0, call.overlap.smooth_numerator, call.overlap.smooth_denominator,
                          false};
  for (int64_t c = 0; c < call.num_classes; ++c) {
    const RegionSums region = sums(first + c);
    if (!is_left(call, region, c)) continue;
    const double weight = generalized_weight(call.overlap.weighting, region.truth);
    if (!is_infinite(weight) && weight > out.largest) out.largest = weight;
    out.left = true;
  }
  for (int64_t c = 0; c < call.num_classes; ++c) {
    const RegionSums region = sums(first + c);
    if (!is_left(call, region, c)) continue;
    const double weight = out.weight(call, region, c);
    out.numerator += 2.0 * weight * region.overlap;
    out.denominator += weight * (region.mass + region.truth);
  }
  return out;
}

FUSEDLOSS_HD int64_t num_units(const RegionCall& call) {
  return call.generalized() ? call.num_groups : call.num_regions();
}

// Where Reduction::kNone keeps a unit's loss, or -1.
FUSEDLOSS_HD int64_t unit_output(const RegionCall& call, int64_t unit) {
  if (call.generalized()) return unit;
  const int64_t from_first = unit % call.num_classes - call.first_class;
  if (from_first < 0) return -1;
  return unit / call.num_classes * (call.num_classes - call.first_class) + from_first;
}

struct UnitLoss {
  double loss;
  bool left;  // counts in the mean; else the loss is 0
};

// A unit's loss with its class weight, without the call's factor.
template <class T, class Sums>
FUSEDLOSS_HD UnitLoss unit_loss(const RegionCall& call, const Sums& sums, int64_t unit) {
  if (call.generalized()) {
    const GeneralizedGroup<T> group = generalized_group<T>(call, sums, unit);
    if (!group.left) return {0.0, false};
    const OverlapLoss value =
        overlap_loss_of_ratio(call.overlap, group.numerator, group.denominator, 0.0, 0.0, 0.0);
    return {value.loss, true};
  }
  const int64_t this_class = unit % call.num_classes;
  const RegionSums region = sums(unit);
  if (!is_left(call, region, this_class)) return {0.0, false};
  return {region_weight<T>(call, this_class) * overlap_loss(call.overlap, region).loss, true};
}

// Factor of the units' losses and slopes once it is known how many units are left.
FUSEDLOSS_HD double unit_scale(const RegionCall& call, int64_t units_left) {
  if (call.reduction != Reduction::kMean) return call.factor;
  return units_left > 0 ? call.factor / static_cast<double>(units_left) : 0.0;
}

// Writes the slopes of the unit's regions, those that are left out included.
template <class T, class Sums>
FUSEDLOSS_HD void store_slopes(const RegionCall& call, const Sums& sums, int64_t unit,
                               double scale) {
  RegionSlope<T>* slopes = static_cast<RegionSlope<T>*>(call.slopes);
  if (!call.generalized()) {
    const int64_t this_class = unit % call.num_classes;
    const RegionSums region = sums(unit);
    slopes[unit] = {T(0), T(0)};
    if (!is_left(call, region, this_class)) return;
    const OverlapLoss value = overlap_loss(call.overlap, region);
    const double factor = scale * region_weight<T>(call, this_class);
    slopes[unit] = {static_cast<T>(factor * value.by_overlap),
                    static_cast<T>(factor * value.by_mass)};
    return;
  }
  const GeneralizedGroup<T> group = generalized_group<T>(call, sums, unit);
  // By sum w I and by sum w P.
  const OverlapLoss value =
      overlap_loss_of_ratio(call.overlap, group.numerator, group.denominator, 2.0, 0.0, 1.0);
  for (int64_t c = 0; c < call.num_classes; ++c) {
    const int64_t region = unit * call.num_classes + c;
    const double weight = group.left ? group.weight(call, sums(region), c) : 0.0;
    const bool none = weight == 0.0;  // no gradient, whatever the ratio is
    slopes[region] = {none ? T(0) : static_cast<T>(scale * weight * value.by_overlap),
                      none ? T(0) : static_cast<T>(scale * weight * value.by_mass)};
  }
}

// A region's slopes times the incoming gradient, as backward uses them.
template <class T>
FUSEDLOSS_HD RegionSlope<T> incoming_slope(const RegionCall& call, int64_t region) {
  const int64_t this_class = region % call.num_classes;
  if (this_class < call.first_class) return {T(0), T(0)};
  const RegionSlope<T> slope = static_cast<const RegionSlope<T>*>(call.slopes)[region];
  const T upstream = static_cast<const T*>(
      call.upstream)[region / call.num_classes * call.upstream_group_stride +
                     (this_class - call.first_class) * call.upstream_class_stride];
  return {slope.overlap * upstream, slope.mass * upstream};
}

}  // namespace fusedloss
