// Regions over rows of two to four classes, along pixels: all of a pixel's classes in registers.
//
// The general loops (region_loops.h) take a class at a time through the cache; with so few classes
// what they load and store between their steps, and the ends of rows, take longer than the
// exponentials. Here one loop makes a block's sums, and one its gradient. For losses without terms,
// float arithmetic and sums that are not squared: volumes of medical images are mostly that.
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

  // `max`: the largest logit.
  FUSEDLOSS_HD PixelClasses(const T* __restrict x, int64_t step, int64_t i, T max, Label<T> label)
      : others(T(0)), logit(T(0)), own(T(0)) {
    for (int c = 0; c < C; ++c) {
      const T value = x[c * step + i];
      e[c] = exp_nonpositive(value - max);
      is_own[c] = label == static_cast<Label<T>>(c);
      others += is_own[c] ? T(0) : e[c];
      // Sums of one term: a selection of what is kept would be a masked move.
      logit += is_own[c] ? value : T(0);
      own += is_own[c] ? e[c] : T(0);
    }
  }
};

// Maximum, rest and loss of a block's rows, whose sums are added to `sums`. Class c of row i lies
// at logits + c * step + i.
template <int C, class T, class Loss>
FUSEDLOSS_CPU_LEVELS void few_sums(const Loss loss, const T* __restrict logits, int64_t step,
                                   int64_t rows, const Label<T>* __restrict label,
                                   const T* __restrict weight, T* __restrict max,
                                   T* __restrict rest, T* __restrict main, RegionSums* sums) {
  static_assert(C <= kFewClassesInRegisters, "the sums below have names");
  T i0 = T(0), i1 = T(0), i2 = T(0), i3 = T(0);  // overlap
  T p0 = T(0), p1 = T(0), p2 = T(0), p3 = T(0);  // mass
  T t0 = T(0), t1 = T(0), t2 = T(0), t3 = T(0);  // truth
#pragma omp simd reduction(+ : i0, i1, i2, i3, p0, p1, p2, p3, t0, t1, t2, t3)
  for (int64_t i = 0; i < rows; ++i) {
    T largest = logits[i];
    for (int c = 1; c < C; ++c) {
      const T x = logits[c * step + i];
      largest = x > largest ? x : largest;
    }
    const PixelClasses<C, T> at(logits, step, i, largest, label[i]);
    const bool dominates = !(largest > at.logit);
    const T left = dominates ? at.others + (at.own - T(1)) : (at.others - T(1)) + at.own;
    const RowState<T> s = state_of(loss, largest, left, at.logit, {at.logit, T(1)}, at.own, T(0),
                                   T(0), T(0), weight[i]);
    const bool valid = label[i] >= 0;
    const T value = loss.value(s).main;
    max[i] = largest;
    rest[i] = left;
    main[i] = valid ? value : T(0);
    const auto mass = [&](int c) { return valid ? at.e[c] * s.inverse : T(0); };
    const auto overlap = [&](int c) { return at.is_own[c] ? s.p : T(0); };
    const auto truth = [&](int c) { return at.is_own[c] ? T(1) : T(0); };
    i0 += overlap(0), p0 += mass(0), t0 += truth(0);
    i1 += overlap(1), p1 += mass(1), t1 += truth(1);
    if constexpr (C > 2) i2 += overlap(2), p2 += mass(2), t2 += truth(2);
    if constexpr (C > 3) i3 += overlap(3), p3 += mass(3), t3 += truth(3);
  }
  const T overlaps[] = {i0, i1, i2, i3}, masses[] = {p0, p1, p2, p3}, truths[] = {t0, t1, t2, t3};
  for (int c = 0; c < C; ++c) {
    sums[c].overlap += static_cast<double>(overlaps[c]);
    sums[c].mass += static_cast<double>(masses[c]);
    sums[c].truth += static_cast<double>(truths[c]);
  }
}

// The gradient of a block's rows from what forward saved of them; see region.h. `grad` may be the
// logits.
template <int C, class T, class Loss>
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
    const PixelClasses<C, T> at(logits, step, i, max[i], label[i]);
    const RowState<T> s = state_of(loss, max[i], rest[i], at.logit, {at.logit, T(1)}, at.own, T(0),
                                   T(0), T(0), weight[i]);
    const RowGradient<T> joined = loss.gradient(s, scale);
    T h = T(0), dot = T(0);
    for (int c = 0; c < C; ++c) {
      h += at.is_own[c] ? own_slope[c] : T(0);
      dot += at.is_own[c] ? T(0) : at.e[c] * linear[c];
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
