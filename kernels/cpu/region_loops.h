// The hot loops of regions over rows of a softmax: plain arrays in, plain arrays out, one copy of
// each in region_loops.cpp for whatever is joined. As in row_loops.h, class j of row i of a block
// lies at j * step + i (along pixels) or rows are walked one after the other (along classes).
//
// Mass and truth are sums of p or of p^2. One formula serves both, x (linear + quadratic x) with a
// 1 and a 0, and so does h = overlap t + linear + quadratic p of the gradient. Only the loops along
// pixels with labels have a version for each.
#pragma once

#include "../core/region.h"
#include "row_loops.h"

namespace fusedloss::cpu {

template <class T>
struct RegionPower {
  T linear, quadratic;

  explicit RegionPower(bool squared) : linear(squared ? 0 : 1), quadratic(squared ? 1 : 0) {}
  FUSEDLOSS_HD T operator()(T x) const { return x * (linear + quadratic * x); }
};

// A group's slopes by class, as the loops over its elements read them; see above.
template <class T>
struct RegionTable {
  const T *overlap, *linear, *quadratic;
};

// What the gradient needs of the rows of a block beside RowArrays.
template <class T>
struct RegionRows {
  static constexpr int64_t kRows = 512;
  alignas(64) T share[kRows];  // p_j = e^(x_j - max) share
  alignas(64) T dots[kRows];   // sum of e^(x_k - max) h_k over the classes but the label's
  alignas(64) T h[kRows];      // h_t of the label
  alignas(64) T base[kRows];   // dL/dx_j = e_j (share h_j + base) + terms u_j  for j != t
  alignas(64) T own[kRows];    // dL/dx_t
};

template <class T>
struct RegionLoops {
  // 1 / (1 + rest), or 0 for rows that are left out.
  static void shares(const Label<T>* label, bool indexed, const T* rest, int64_t rows, T* share);

  // Adds the rows' terms to their classes' sums: with labels, and with a target for each class.
  // With a place for them, the exponentials of the others are kept there.
  static void pixels_sums(const T* exps, int64_t step, int64_t classes, int64_t rows,
                          const Label<T>* label, const T* share, RegionPower<T> power,
                          RegionSums* sums, T* others, int64_t others_step);
  static void pixels_soft_sums(const T* exps, const T* targets, int64_t step, int64_t classes,
                               int64_t rows, const T* share, RegionPower<T> power,
                               RegionSums* sums);
  static void row_sums(const T* exps, int64_t classes, T share, RegionPower<T> power, T* mass);
  static void row_soft_sums(const T* exps, const T* targets, int64_t classes, T share,
                            RegionPower<T> power, T* overlap, T* mass, T* truth);

  // From exponentials that are 0 at the label: h e summed over the classes.
  static void pixels_dots(const NextBlock& next, const T* exps, int64_t step, int64_t classes,
                          int64_t rows, RegionTable<T> table, bool squared, const T* share,
                          T* dots);
  static void pixels_soft_dots(const NextBlock& next, const T* exps, int64_t step, const T* targets,
                               int64_t targets_step, int64_t classes, int64_t rows,
                               RegionTable<T> table, const T* share, T* dots);

  // h of the labels; of rows without one anything finite or not, which nobody reads.
  static void own_slopes(const Label<T>* label, const T* logit, const T* max, RegionTable<T> table,
                         int64_t rows, const T* share, T* h);

  // Of a stretch of a row, kept short by the caller.
  static T row_dot(const T* exps, int64_t classes, Label<T> label, RegionTable<T> table, T share);
  static T row_soft_dot(const T* exps, const T* targets, int64_t classes, RegionTable<T> table,
                        T share);

  // From the numbers of the last steps to the rows' coefficients. The label's own, h_t - sum of
  // p_k h_k, is q h_t less the others' part: it does not cancel where the target dominates.
  static void coefficients(const Label<T>* label, const T* logit, const T* max, const T* rest,
                           const T* softmax, const T* target, int64_t rows, const T* share,
                           const T* dots, const T* h, T* base, T* own);
  static void soft_coefficients(const T* softmax, int64_t rows, const T* share, const T* dots,
                                T* base);
};

// Exponentials from logits of type X, and h e summed over the classes but the label's, whose logit
// is found on the way. `exps` may be the logits.
template <class X>
struct RegionExpLoops {
  using T = Accumulator<X>;

  static void pixels(const NextBlock& next, const X* logits, int64_t logits_step, int64_t classes,
                     int64_t rows, const Label<T>* label, RegionTable<T> table, bool squared,
                     const T* max, const T* share, T* exps, int64_t step, T* logit, T* dots);
  static void pixels_soft(const NextBlock& next, const X* logits, int64_t logits_step,
                          const T* targets, int64_t classes, int64_t rows, RegionTable<T> table,
                          const T* max, const T* share, T* exps, int64_t step, T* dots);
};

// Gradients of type X, also over the exponentials. Without units there are no such terms, along
// pixels. `units` are the u_j of what is joined (row_softmax.h); `terms` their factors.
template <class X>
struct RegionGradientLoops {
  using T = Accumulator<X>;

  static void pixels(const T* exps, int64_t step, int64_t classes, int64_t rows,
                     const Label<T>* label, RegionTable<T> table, bool squared, const T* units,
                     const T* share, const T* base, const T* terms, const T* own, X* grad,
                     int64_t grad_step);
  static void pixels_soft(const T* exps, int64_t exps_step, const T* targets, const T* units,
                          int64_t step, int64_t classes, int64_t rows, RegionTable<T> table,
                          const T* share, const T* base, const T* terms, X* grad,
                          int64_t grad_step);
  static void row(const T* exps, int64_t classes, RegionTable<T> table, const T* units, T share,
                  T base, T terms, X* grad);
  static void row_soft(const T* exps, const T* targets, const T* units, int64_t classes,
                       RegionTable<T> table, T share, T base, T terms, X* grad);
};

}  // namespace fusedloss::cpu
