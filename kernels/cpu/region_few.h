// Regions over rows of two to four classes, along pixels: all of a pixel's classes in registers.
//
// The general loops (region_loops.h) take a class at a time through the cache; with so few classes
// what they load and store between their steps takes longer than the exponentials. Here one loop
// makes a block's exponentials and sums, and one its gradient. (All of forward in one loop is
// slower again: it needs more registers than there are, and its chains of operations are too long
// for the processor to look past.) For losses without terms, float arithmetic and sums that are not
// squared: volumes of medical images are mostly that.
#pragma once

#include "../core/region.h"
#include "region_loops.h"
#include "row_epilogue.h"
#include "stage.h"

namespace fusedloss::cpu {

constexpr int64_t kFewestClasses = 2, kFewClassesInRegisters = 4;

template <class T, class Loss>
constexpr bool kCanBeFew = sizeof(T) == sizeof(float) && !Loss::kGradientNeedsSmooth;

// One pixel's exponentials, and its label's logit and exponential.
template <int C, class T>
struct PixelClasses {
  T e[C];
  T others, logit, own;
  bool is_own[C];
};

// `max`: the largest logit.
template <int C, class T>
FUSEDLOSS_HD PixelClasses<C, T> pixel_classes(const T* __restrict x, int64_t step, int64_t i, T max,
                                              Label<T> label) {
  PixelClasses<C, T> at;
  at.others = at.logit = at.own = T(0);
  for (int c = 0; c < C; ++c) {
    const T value = x[c * step + i];
    at.e[c] = exp_nonpositive(value - max);
    at.is_own[c] = label == static_cast<Label<T>>(c);
    at.others += at.is_own[c] ? T(0) : at.e[c];
    // Sums of one term: a selection of what is kept would be a masked move.
    at.logit += at.is_own[c] ? value : T(0);
    at.own += at.is_own[c] ? at.e[c] : T(0);
  }
  return at;
}

// The same from what forward kept of a begun gradient (core/region.h): `below` is the label's logit
// less the maximum.
template <int C, class T>
FUSEDLOSS_HD PixelClasses<C, T> kept_classes(const T* __restrict kept, int64_t step, int64_t i,
                                             T below, Label<T> label) {
  PixelClasses<C, T> at;
  at.logit = below;
  at.own = exp_nonpositive(below);
  for (int c = 0; c < C; ++c) {
    at.e[c] = kept[c * step + i];
    at.is_own[c] = label == static_cast<Label<T>>(c);
  }
  return at;
}

template <int C, class T>
FUSEDLOSS_HD T largest_of(const T* logits, int64_t step, int64_t i) {
  T largest = logits[i];
  for (int c = 1; c < C; ++c) {
    const T x = logits[c * step + i];
    largest = x > largest ? x : largest;
  }
  return largest;
}

// A block's exponentials, largest logits, labels' logits, and sums over the classes but the
// label's. Class c of row i lies at logits + c * step + i, its exponential at exps + c * exps_step
// + i.
template <int C, class T>
FUSEDLOSS_CPU_LEVELS void few_exps(const T* logits, int64_t step, int64_t rows,
                                   const Label<T>* __restrict label, T* __restrict max,
                                   T* __restrict others, T* __restrict logit, T* exps,
                                   int64_t exps_step) {
  // In one loop with the rest GCC would branch on which of two classes is the larger.
  constexpr bool kMaxFirst = C == 2;
#pragma GCC ivdep
  for (int64_t i = 0; kMaxFirst && i < rows; ++i) max[i] = largest_of<C>(logits, step, i);
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const T largest = kMaxFirst ? max[i] : largest_of<C>(logits, step, i);
    const PixelClasses<C, T> at = pixel_classes<C>(logits, step, i, largest, label[i]);
    for (int c = 0; c < C; ++c) exps[c * exps_step + i] = at.e[c];
    max[i] = largest;
    others[i] = at.others;
    logit[i] = at.logit;
  }
}

// The gradient of a block's rows from what forward saved of them; see region.h. `grad` may be the
// logits, or what was kept in their place of a begun gradient.
template <int C, bool kBegun, class T, class Loss>
FUSEDLOSS_CPU_LEVELS void few_gradient(const Loss loss, const RowScale<T> scale,
                                       const RegionTable<T> table, const T* logits, int64_t step,
                                       int64_t rows, const Label<T>* __restrict label,
                                       const T* __restrict weight, const T* __restrict max,
                                       const T* __restrict rest, T* grad, int64_t grad_step) {
  T linear[C], own_slope[C];
  for (int c = 0; c < C; ++c) {
    linear[c] = table.linear[c];
    own_slope[c] = table.overlap[c] + table.linear[c];
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const PixelClasses<C, T> at = kBegun ? kept_classes<C>(logits, step, i, max[i], label[i])
                                         : pixel_classes<C>(logits, step, i, max[i], label[i]);
    const T largest = kBegun ? T(0) : max[i];
    const RowState<T> s = state_of(loss, largest, rest[i], at.logit, {at.logit, T(1)}, at.own, T(0),
                                   T(0), T(0), weight[i]);
    const RowGradient<T> joined = loss.gradient(s, scale);
    T h = T(0), dot = T(0);
    for (int c = 0; c < C; ++c) {
      h += at.is_own[c] ? own_slope[c] : T(0);
      dot += !kBegun && at.is_own[c] ? T(0) : at.e[c] * linear[c];
    }
    const bool valid = label[i] >= 0;
    const T others = s.inverse * dot;
    const T base = s.inverse * (joined.softmax - (others + s.p * h));
    const T own = joined.target + s.p * (s.q * h - others);
    for (int c = 0; c < C; ++c) {
      const T g = at.e[c] * (s.inverse * linear[c] + base);
      grad[c * grad_step + i] = valid ? (at.is_own[c] ? own : g) : T(0);
    }
  }
}

// A block's logits as T, and how far apart their classes lie.
template <class T, class Walk, class Use>
void with_few_logits(Walk& walk, int64_t begin, int64_t count, int64_t classes, const Use& use) {
  walk.with_block(begin, count, [&](const NextBlock& next, const auto* x, int64_t x_step) {
    for (int64_t c = 0; c < classes; ++c) next.fetch(c);
    using From = std::remove_cv_t<std::remove_pointer_t<decltype(x)>>;
    if constexpr (std::is_same_v<From, T>) {
      use(x, x_step);
    } else {
      T* block = walk.exps();
      for (int64_t c = 0; c < classes; ++c)
        convert_in(x + c * x_step, 1, count, block + c * walk.step());
      use(static_cast<const T*>(block), walk.step());
    }
  });
}

// Calls f(std::integral_constant<int, classes>).
template <class F>
void with_few_classes(int64_t classes, const F& f) {
  if (classes == 2) return f(std::integral_constant<int, 2>{});
  if (classes == 3) return f(std::integral_constant<int, 3>{});
  return f(std::integral_constant<int, 4>{});
}

}  // namespace fusedloss::cpu
