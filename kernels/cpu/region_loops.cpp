// The hot loops of regions over rows of a softmax, one copy for all losses.
#include "region_loops.h"

namespace fusedloss::cpu {
namespace {

// The loops of every call along pixels with labels have versions: their arithmetic is what backward
// takes its time for.
template <bool kSquared, bool kKeeps, class T>
FUSEDLOSS_CPU_LEVELS void region_sums(const T* exps, int64_t step, int64_t classes, int64_t rows,
                                      const Label<T>* __restrict label, const T* __restrict share,
                                      RegionSums* sums, T* others, int64_t others_step) {
  for (int64_t c = 0; c < classes; ++c) {
    const T* e = exps + c * step;
    T* kept = others + c * others_step;
    const Label<T> this_class = static_cast<Label<T>>(c);
    T overlap = T(0), mass = T(0);
    Label<T> truth = 0;  // a count
#pragma omp simd reduction(+ : overlap, mass, truth)
    for (int64_t i = 0; i < rows; ++i) {
      const bool own = label[i] == this_class;
      const T p = e[i] * share[i];
      if constexpr (kKeeps) kept[i] = own ? T(0) : e[i];
      overlap += own ? p : T(0);
      truth += own ? 1 : 0;
      mass += kSquared ? p * p : p;
    }
    sums[c].overlap += static_cast<double>(overlap);
    sums[c].mass += static_cast<double>(mass);
    sums[c].truth += static_cast<double>(truth);
  }
}

// The logits of one class as T: where they lie, or converted into `out`. A loop of its own: with
// 16-bit inputs the loops below would run twice as wide and out of registers.
template <class X, class T>
FUSEDLOSS_HD const T* as_arithmetic(const X* x, int64_t rows, T* out) {
  if constexpr (std::is_same_v<X, T>) {
    return x;
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) out[i] = to<T>(x[i]);
    return out;
  }
}

template <bool kSquared, class X, class T>
FUSEDLOSS_CPU_LEVELS void region_exps(const NextBlock& next, const X* logits, int64_t logits_step,
                                      int64_t classes, int64_t rows,
                                      const Label<T>* __restrict label, const RegionTable<T> table,
                                      const T* __restrict max, const T* __restrict share, T* exps,
                                      int64_t step, T* __restrict logit, T* __restrict dots) {
  own_logits(logits, logits_step, rows, label, logit);
  for (int64_t i = 0; i < rows; ++i) dots[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    T* out = exps + c * step;
    const T* x = as_arithmetic(logits + c * logits_step, rows, out);
    const T linear = table.linear[c], quadratic = table.quadratic[c];
    const Label<T> this_class = static_cast<Label<T>>(c);
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T e = exp_nonpositive(x[i] - max[i]);
      const T slope = kSquared ? quadratic * (share[i] * e) : linear;
      const bool own = label[i] == this_class;
      out[i] = e;
      dots[i] += own ? T(0) : e * slope;
    }
  }
}

template <bool kSquared, class T>
FUSEDLOSS_CPU_LEVELS void region_dots(const NextBlock& next, const T* __restrict exps, int64_t step,
                                      int64_t classes, int64_t rows, const RegionTable<T> table,
                                      const T* __restrict share, T* __restrict dots) {
  for (int64_t i = 0; i < rows; ++i) dots[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    const T* e = exps + c * step;
    const T linear = table.linear[c], quadratic = table.quadratic[c];
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i)
      dots[i] += e[i] * (kSquared ? quadratic * (share[i] * e[i]) : linear);
  }
}

template <bool kSquared, bool kHasTerms, class X, class T>
FUSEDLOSS_CPU_LEVELS void region_gradient(const T* exps, int64_t step, int64_t classes,
                                          int64_t rows, const Label<T>* __restrict label,
                                          const RegionTable<T> table, const T* __restrict units,
                                          const T* __restrict share, const T* __restrict base,
                                          const T* __restrict terms, const T* __restrict own,
                                          X* grad, int64_t grad_step) {
  for (int64_t c = 0; c < classes; ++c) {
    const T* e = exps + c * step;
    X* out = grad + c * grad_step;
    const T linear = table.linear[c], quadratic = table.quadratic[c];
    const T unit = kHasTerms ? units[c] : T(0);
    const Label<T> this_class = static_cast<Label<T>>(c);
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T h = kSquared ? quadratic * (share[i] * e[i]) : linear;
      T g = e[i] * (share[i] * h + base[i]);
      if constexpr (kHasTerms) g += terms[i] * unit;
      out[i] = from<X>(label[i] == this_class ? own[i] : g);
    }
  }
}

}  // namespace

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::shares(const Label<T>* __restrict label, bool indexed,
                                                 const T* __restrict rest, int64_t rows,
                                                 T* __restrict share) {
  const Label<T> lowest = indexed ? Label<T>(0) : Label<T>(kNoClass);
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i)
    share[i] = label[i] >= lowest ? reciprocal(T(1) + rest[i]) : T(0);
}

template <class T>
void RegionLoops<T>::pixels_sums(const T* exps, int64_t step, int64_t classes, int64_t rows,
                                 const Label<T>* label, const T* share, RegionPower<T> power,
                                 RegionSums* sums, T* others, int64_t others_step) {
  const bool squared = power.quadratic != T(0);
  const auto alone = squared ? region_sums<true, false, T> : region_sums<false, false, T>;
  const auto keeping = squared ? region_sums<true, true, T> : region_sums<false, true, T>;
  const auto loop = others != nullptr ? keeping : alone;
  loop(exps, step, classes, rows, label, share, sums, others, others_step);
}

template <class T>
void RegionLoops<T>::pixels_dots(const NextBlock& next, const T* exps, int64_t step,
                                 int64_t classes, int64_t rows, RegionTable<T> table, bool squared,
                                 const T* share, T* dots) {
  const auto loop = squared ? region_dots<true, T> : region_dots<false, T>;
  loop(next, exps, step, classes, rows, table, share, dots);
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::pixels_soft_dots(
    const NextBlock& next, const T* __restrict exps, int64_t step, const T* __restrict targets,
    int64_t targets_step, int64_t classes, int64_t rows, const RegionTable<T> table,
    const T* __restrict share, T* __restrict dots) {
  for (int64_t i = 0; i < rows; ++i) dots[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    const T* e = exps + c * step;
    const T* t = targets + c * targets_step;
    const T overlap = table.overlap[c], linear = table.linear[c], quadratic = table.quadratic[c];
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i)
      dots[i] += e[i] * (overlap * t[i] + linear + quadratic * (share[i] * e[i]));
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::own_slopes(const Label<T>* __restrict label,
                                                     const T* __restrict logit,
                                                     const T* __restrict max,
                                                     const RegionTable<T> table, int64_t rows,
                                                     const T* __restrict share, T* __restrict h) {
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const Label<T> c = label[i] < 0 ? 0 : label[i];
    const T p = exp_nonpositive(logit[i] - max[i]) * share[i];
    h[i] = table.overlap[c] + table.linear[c] + table.quadratic[c] * p;
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::pixels_soft_sums(
    const T* __restrict exps, const T* __restrict targets, int64_t step, int64_t classes,
    int64_t rows, const T* __restrict share, const RegionPower<T> power, RegionSums* sums) {
  for (int64_t c = 0; c < classes; ++c) {
    const T* e = exps + c * step;
    const T* t = targets + c * step;
    T overlap = T(0), mass = T(0), truth = T(0);
#pragma omp simd reduction(+ : overlap, mass, truth)
    for (int64_t i = 0; i < rows; ++i) {
      const T p = e[i] * share[i];
      overlap += p * t[i];
      truth += power(t[i]);
      mass += power(p);
    }
    sums[c].overlap += static_cast<double>(overlap);
    sums[c].mass += static_cast<double>(mass);
    sums[c].truth += static_cast<double>(truth);
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::row_sums(const T* __restrict exps, int64_t classes,
                                                   T share, const RegionPower<T> power,
                                                   T* __restrict mass) {
#pragma GCC ivdep
  for (int64_t j = 0; j < classes; ++j) mass[j] += power(exps[j] * share);
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::row_soft_sums(
    const T* __restrict exps, const T* __restrict targets, int64_t classes, T share,
    const RegionPower<T> power, T* __restrict overlap, T* __restrict mass, T* __restrict truth) {
#pragma GCC ivdep
  for (int64_t j = 0; j < classes; ++j) {
    const T p = exps[j] * share;
    overlap[j] += p * targets[j];
    mass[j] += power(p);
    truth[j] += power(targets[j]);
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS T RegionLoops<T>::row_dot(const T* __restrict exps, int64_t classes,
                                               Label<T> label, const RegionTable<T> table,
                                               T share) {
  T dot = T(0);
  const Label<T> length = static_cast<Label<T>>(classes);
#pragma omp simd reduction(+ : dot)
  for (Label<T> j = 0; j < length; ++j) {
    const T h = table.linear[j] + table.quadratic[j] * (share * exps[j]);
    dot += j == label ? T(0) : exps[j] * h;
  }
  return dot;
}

template <class T>
FUSEDLOSS_CPU_LEVELS T RegionLoops<T>::row_soft_dot(const T* __restrict exps,
                                                    const T* __restrict targets, int64_t classes,
                                                    const RegionTable<T> table, T share) {
  T dot = T(0);
#pragma omp simd reduction(+ : dot)
  for (int64_t j = 0; j < classes; ++j)
    dot += exps[j] * (table.overlap[j] * targets[j] + table.linear[j] +
                      table.quadratic[j] * (share * exps[j]));
  return dot;
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::coefficients(
    const Label<T>* __restrict label, const T* __restrict logit, const T* __restrict max,
    const T* __restrict rest, const T* __restrict softmax, const T* __restrict target, int64_t rows,
    const T* __restrict share, const T* __restrict dots, const T* __restrict h, T* __restrict base,
    T* __restrict own) {
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) {
    const T p = exp_nonpositive(logit[i] - max[i]) * share[i];
    const T q = logit[i] >= max[i] ? rest[i] * share[i] : T(1) - p;
    const T others = share[i] * dots[i];
    base[i] = label[i] >= 0 ? softmax[i] - share[i] * (others + p * h[i]) : T(0);
    own[i] = target[i] + p * (q * h[i] - others);
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS void RegionLoops<T>::soft_coefficients(const T* __restrict softmax,
                                                            int64_t rows, const T* __restrict share,
                                                            const T* __restrict dots,
                                                            T* __restrict base) {
#pragma GCC ivdep
  for (int64_t i = 0; i < rows; ++i) base[i] = softmax[i] - share[i] * (share[i] * dots[i]);
}

template <class X>
void RegionExpLoops<X>::pixels(const NextBlock& next, const X* logits, int64_t logits_step,
                               int64_t classes, int64_t rows, const Label<T>* label,
                               RegionTable<T> table, bool squared, const T* max, const T* share,
                               T* exps, int64_t step, T* logit, T* dots) {
  const auto loop = squared ? region_exps<true, X, T> : region_exps<false, X, T>;
  loop(next, logits, logits_step, classes, rows, label, table, max, share, exps, step, logit, dots);
}

template <class X>
FUSEDLOSS_CPU_LEVELS void RegionExpLoops<X>::pixels_soft(
    const NextBlock& next, const X* logits, int64_t logits_step, const T* __restrict targets,
    int64_t classes, int64_t rows, const RegionTable<T> table, const T* __restrict max,
    const T* __restrict share, T* exps, int64_t step, T* __restrict dots) {
  for (int64_t i = 0; i < rows; ++i) dots[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    const T* t = targets + c * step;
    T* out = exps + c * step;
    const T* x = as_arithmetic(logits + c * logits_step, rows, out);
    const T overlap = table.overlap[c], linear = table.linear[c], quadratic = table.quadratic[c];
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T e = exp_nonpositive(x[i] - max[i]);
      out[i] = e;
      dots[i] += e * (overlap * t[i] + linear + quadratic * (share[i] * e));
    }
  }
}

template <class X>
void RegionGradientLoops<X>::pixels(const T* exps, int64_t step, int64_t classes, int64_t rows,
                                    const Label<T>* label, RegionTable<T> table, bool squared,
                                    const T* units, const T* share, const T* base, const T* terms,
                                    const T* own, X* grad, int64_t grad_step) {
  const auto with =
      squared ? region_gradient<true, true, X, T> : region_gradient<false, true, X, T>;
  const auto without =
      squared ? region_gradient<true, false, X, T> : region_gradient<false, false, X, T>;
  const auto loop = units != nullptr ? with : without;
  loop(exps, step, classes, rows, label, table, units, share, base, terms, own, grad, grad_step);
}

template <class X>
FUSEDLOSS_CPU_LEVELS void RegionGradientLoops<X>::pixels_soft(
    const T* exps, int64_t exps_step, const T* __restrict targets, const T* __restrict units,
    int64_t step, int64_t classes, int64_t rows, const RegionTable<T> table,
    const T* __restrict share, const T* __restrict base, const T* __restrict terms, X* grad,
    int64_t grad_step) {
  for (int64_t c = 0; c < classes; ++c) {
    const T* e = exps + c * exps_step;
    const T* t = targets + c * step;
    const T* u = units + c * step;
    X* out = grad + c * grad_step;
    const T overlap = table.overlap[c], linear = table.linear[c], quadratic = table.quadratic[c];
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T h = overlap * t[i] + linear + quadratic * (share[i] * e[i]);
      out[i] = from<X>(e[i] * (share[i] * h + base[i]) + terms[i] * u[i]);
    }
  }
}

template <class X>
FUSEDLOSS_CPU_LEVELS void RegionGradientLoops<X>::row(const T* exps, int64_t classes,
                                                      const RegionTable<T> table, const T* units,
                                                      T share, T base, T terms, X* grad) {
#pragma GCC ivdep
  for (int64_t j = 0; j < classes; ++j) {
    const T h = table.linear[j] + table.quadratic[j] * (share * exps[j]);
    grad[j] = from<X>(exps[j] * (share * h + base) + terms * units[j]);
  }
}

template <class X>
FUSEDLOSS_CPU_LEVELS void RegionGradientLoops<X>::row_soft(const T* exps, const T* targets,
                                                           const T* units, int64_t classes,
                                                           const RegionTable<T> table, T share,
                                                           T base, T terms, X* grad) {
#pragma GCC ivdep
  for (int64_t j = 0; j < classes; ++j) {
    const T h =
        table.overlap[j] * targets[j] + table.linear[j] + table.quadratic[j] * (share * exps[j]);
    grad[j] = from<X>(exps[j] * (share * h + base) + terms * units[j]);
  }
}

template struct RegionLoops<float>;
template struct RegionLoops<double>;

template struct RegionExpLoops<float>;
template struct RegionExpLoops<double>;
template struct RegionExpLoops<Float16>;
template struct RegionExpLoops<BFloat16>;

template struct RegionGradientLoops<float>;
template struct RegionGradientLoops<double>;
template struct RegionGradientLoops<Float16>;
template struct RegionGradientLoops<BFloat16>;

}  // namespace fusedloss::cpu
