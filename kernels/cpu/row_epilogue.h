// Between a row's sums and its gradient: one vectorised loop over the rows of a block that runs the
// loss's functor.
#pragma once

#include "row_loops.h"

namespace fusedloss::cpu {

// What a block knows of its rows.
template <class T>
struct RowArrays {
  static constexpr int64_t kRows = 512;  // whole vectors
  alignas(64) Label<T> label[kRows];
  alignas(64) T weight[kRows], logit[kRows], upstream[kRows];
  alignas(64) T max[kRows], others[kRows], terms[kRows], sum_u[kRows];
  alignas(64) T rest[kRows], smooth[kRows], changed[kRows];  // saved with max
  alignas(64) T main[kRows], by_row[kRows];                  // RowLoss
  alignas(64) T softmax[kRows], slope[kRows],
      target[kRows];  // RowGradient, softmax for e^(x - max)
};

// What is the same for all rows of a call.
template <class T>
struct RowConstants {
  T sum_u;              // of index targets
  T unit, unit_weight;  // u_t = unit + unit_weight * the class weight
  RowScale<T> scale;
};

// From the sums to losses and, where wanted, the gradient's coefficients. Ignored rows get zeros.
template <bool kHasTarget, bool kWithGrad, class Loss, class T>
FUSEDLOSS_CPU_LEVELS void finish_rows(const Loss loss, const RowConstants<T> constants,
                                      int64_t count, RowArrays<T>& rows) {
  // The walks' maximum is that of all classes, unless the loss moves the target's logit.
  constexpr bool kMaxOfAll = !Loss::kChangesTarget;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const RowSums<T> sums{rows.max[i], rows.others[i], rows.terms[i]};
    RowState<T> s;
    if constexpr (kHasTarget) {
      const T unit = constants.unit + constants.unit_weight * rows.weight[i];
      s = make_state<kMaxOfAll>(loss, sums, rows.logit[i], rows.label[i], constants.sum_u, unit,
                                rows.weight[i]);
    } else {
      s = make_state_without_target(loss, sums, rows.sum_u[i]);
    }
    const bool valid = !kHasTarget || rows.label[i] >= 0;
    const RowLoss<T> value = loss.value(s);
    rows.main[i] = valid ? value.main : T(0);
    rows.by_row[i] = valid ? value.by_row : T(0);
    rows.rest[i] = s.rest;
    if constexpr (Loss::kGradientNeedsSmooth) rows.smooth[i] = s.smooth;
    if constexpr (Loss::kChangesTarget) rows.changed[i] = s.changed;
    if constexpr (kWithGrad) {
      const RowGradient<T> g = loss.gradient(s, constants.scale);
      // The exponentials at hand are relative to sums.max.
      const bool shifts = !kMaxOfAll && sums.others > T(0);
      const T shift = shifts ? loss.logit_scale() * (sums.max - s.max) : T(0);
      const T softmax = g.softmax * s.inverse * (kMaxOfAll ? T(1) : exp_nonpositive(shift));
      rows.softmax[i] = valid ? softmax : T(0);
      rows.slope[i] = valid ? g.terms : T(0);
      rows.target[i] = g.target;
    }
    rows.max[i] = s.max;
  }
}

// From the saved numbers to the gradient's coefficients.
template <bool kHasTarget, class Loss, class T>
FUSEDLOSS_CPU_LEVELS void restore_rows(const Loss loss, const RowConstants<T> constants,
                                       int64_t count, RowArrays<T>& rows) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const T unit = constants.unit + constants.unit_weight * rows.weight[i];
    const T sum_u = kHasTarget ? constants.sum_u : rows.sum_u[i];
    const T logit = kHasTarget ? rows.logit[i] : rows.max[i];
    TargetLogit<T> target = loss.changed_target(logit, rows.label[i]);
    if constexpr (Loss::kChangesTarget) target.logit = rows.changed[i];
    const RowState<T> s = restore_state(loss, rows.max[i], rows.rest[i], logit, target,
                                        rows.smooth[i], sum_u, unit, rows.weight[i]);
    const RowScale<T> scale{constants.scale.main * rows.upstream[i],
                            constants.scale.by_row * rows.upstream[i]};
    const RowGradient<T> g = loss.gradient(s, scale);
    const bool valid = !kHasTarget || rows.label[i] >= 0;
    rows.softmax[i] = valid ? g.softmax * s.inverse : T(0);
    rows.slope[i] = valid ? g.terms : T(0);
    rows.target[i] = g.target;
  }
}

}  // namespace fusedloss::cpu
