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

constexpr int32_t kSignBit = INT32_MIN;

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

// The same from what forward left of a begun gradient (core/region.h). `logit` is less the maximum.
template <int C>
FUSEDLOSS_HD PixelClasses<C, float> begun_classes(const float* __restrict begun, int64_t step,
                                                  int64_t i) {
  PixelClasses<C, float> at;
  at.others = 0.0f;
  int32_t logit = 0;
  for (int c = 0; c < C; ++c) {
    const int32_t bits = bit_cast<int32_t>(begun[c * step + i]);
    const int32_t mask = bits >> 31;  // of the label's bits
    at.is_own[c] = mask != 0;
    at.e[c] = bit_cast<float>(bits & ~mask);
    at.others += at.e[c];
    logit |= bits & mask;
  }
  at.logit = bit_cast<float>(logit);
  at.own = exp_nonpositive(at.logit);
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

// Adds a block's rows to the sums of their classes and leaves what the gradient is made of; see
// core/region.h. Exponentials as few_exps made them, `rest` as finish_rows did.
template <int C>
FUSEDLOSS_CPU_LEVELS void few_begin(const float* exps, int64_t step, int64_t rows,
                                    const int32_t* __restrict label, const float* __restrict max,
                                    const float* __restrict logit, const float* __restrict rest,
                                    float* __restrict share, RegionSums* sums, float* begun,
                                    int64_t begun_step) {
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) share[i] = label[i] < 0 ? 0.0f : reciprocal(1.0f + rest[i]);
  for (int c = 0; c < C; ++c) {
    const float* e = exps + c * step;
    float* out = begun + c * begun_step;
    float overlap = 0.0f, mass = 0.0f;
    int32_t truth = 0;
#pragma omp simd reduction(+ : overlap, mass, truth)
    for (int64_t i = 0; i < rows; ++i) {
      const bool own = label[i] == c;
      const float value = label[i] < 0 ? 0.0f : e[i];  // NaN may be left out
      const float p = value * share[i];
      const float below = bit_cast<float>(bit_cast<int32_t>(logit[i] - max[i]) | kSignBit);
      // A NaN may have any sign.
      const float other = bit_cast<float>(bit_cast<int32_t>(value) & ~kSignBit);
      out[i] = own ? below : other;
      overlap += own ? p : 0.0f;
      truth += own ? 1 : 0;
      mass += p;
    }
    sums[c].overlap += static_cast<double>(overlap);
    sums[c].mass += static_cast<double>(mass);
    sums[c].truth += static_cast<double>(truth);
  }
}

// The slopes of a group for C classes.
template <int C, class T>
struct FewSlopes {
  T linear[C], own[C];

  FUSEDLOSS_HD explicit FewSlopes(const RegionTable<T>& table) {
    for (int c = 0; c < C; ++c) {
      linear[c] = table.linear[c];
      own[c] = table.overlap[c] + table.linear[c];
    }
  }
};

// One pixel's gradient; see region.h.
template <int C, class T, class Loss>
FUSEDLOSS_HD void pixel_gradient(const Loss& loss, const RowScale<T>& scale,
                                 const FewSlopes<C, T>& slopes, const PixelClasses<C, T>& at,
                                 const RowState<T>& s, bool valid, T* grad, int64_t step,
                                 int64_t i) {
  const RowGradient<T> joined = loss.gradient(s, scale);
  T h = T(0), dot = T(0);
  for (int c = 0; c < C; ++c) {
    h += at.is_own[c] ? slopes.own[c] : T(0);
    dot += at.is_own[c] ? T(0) : at.e[c] * slopes.linear[c];
  }
  const T others = s.inverse * dot;
  const T base = s.inverse * (joined.softmax - (others + s.p * h));
  const T own = joined.target + s.p * (s.q * h - others);
  for (int c = 0; c < C; ++c) {
    const T g = at.e[c] * (s.inverse * slopes.linear[c] + base);
    grad[c * step + i] = valid ? (at.is_own[c] ? own : g) : T(0);
  }
}

// The gradient of a block's rows from what forward saved of them. `grad` may be the logits.
template <int C, class T, class Loss>
FUSEDLOSS_CPU_LEVELS void few_gradient(const Loss loss, const RowScale<T> scale,
                                       const RegionTable<T> table, const T* logits, int64_t step,
                                       int64_t rows, const Label<T>* __restrict label,
                                       const T* __restrict weight, const T* __restrict max,
                                       const T* __restrict rest, T* grad, int64_t grad_step) {
  const FewSlopes<C, T> slopes(table);
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const PixelClasses<C, T> at = pixel_classes<C>(logits, step, i, max[i], label[i]);
    const RowState<T> s = state_of(loss, max[i], rest[i], at.logit, {at.logit, T(1)}, at.own, T(0),
                                   T(0), T(0), weight[i]);
    pixel_gradient<C>(loss, scale, slopes, at, s, label[i] >= 0, grad, grad_step, i);
  }
}

// The same from what forward left of a begun gradient, which may lie where the gradient will.
// `weight`: of each class.
template <int C, class Loss>
FUSEDLOSS_CPU_LEVELS void few_finish(const Loss loss, const RowScale<float> scale,
                                     const RegionTable<float> table, const float* begun,
                                     int64_t step, int64_t rows, const float* weight, float* grad,
                                     int64_t grad_step) {
  const FewSlopes<C, float> slopes(table);
  float weights[C];
  for (int c = 0; c < C; ++c) weights[c] = weight[c];
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const PixelClasses<C, float> at = begun_classes<C>(begun, step, i);
    float own_weight = 0.0f;
    bool valid = false;
    for (int c = 0; c < C; ++c) {
      own_weight += at.is_own[c] ? weights[c] : 0.0f;
      valid |= at.is_own[c];
    }
    const RowState<float> s =
        make_state<true>(loss, {0.0f, at.others, 0.0f}, at.logit, 0, 0.0f, 0.0f, own_weight);
    pixel_gradient<C>(loss, scale, slopes, at, s, valid, grad, grad_step, i);
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
