// The hot loops of the row-softmax engine, one copy for all losses.
#include "row_loops.h"

#include <limits>

namespace fusedloss::cpu {
namespace {

// The class of an element as its u_j, but for kProbabilities, whose target_j is not at hand here.
template <Terms kTerms, class T>
FUSEDLOSS_HD T unit_of(const T* weights, int64_t this_class) {
  return kTerms == Terms::kWeights ? weights[this_class] : T(1);
}

template <Terms kTerms, bool kKeepExps, class T>
FUSEDLOSS_CPU_LEVELS void pixels_sums(const NextBlock& next, const ScaledExp<T> exp_of, T* block,
                                      int64_t step, int64_t classes, int64_t rows,
                                      const Label<T>* __restrict label, const T* __restrict weights,
                                      const T* __restrict max, T* __restrict others,
                                      T* __restrict terms, T* __restrict logit) {
  own_logits(block, step, rows, label, logit);
  for (int64_t i = 0; i < rows; ++i) others[i] = terms[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    T* x = block + c * step;
    const T unit = unit_of<kTerms>(weights, c);
    const Label<T> this_class = static_cast<Label<T>>(c);
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T below = x[i] - max[i];
      const T e = exp_of(below);
      const bool own = label[i] == this_class;
      if constexpr (kKeepExps) x[i] = e;
      others[i] += own ? T(0) : e;
      if constexpr (kTerms != Terms::kNone) terms[i] += own ? T(0) : unit * below;
    }
  }
}

template <bool kKeepExps, class T>
FUSEDLOSS_CPU_LEVELS void pixels_probability_sums(const NextBlock& next, const ScaledExp<T> exp_of,
                                                  T* block, int64_t step, int64_t classes,
                                                  int64_t rows, const T* __restrict units,
                                                  const T* __restrict max, T* __restrict others,
                                                  T* __restrict terms, T* __restrict sum_u) {
  for (int64_t i = 0; i < rows; ++i) others[i] = terms[i] = sum_u[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    T* x = block + c * step;
    const T* u = units + c * step;
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T below = x[i] - max[i];
      const T e = exp_of(below);
      if constexpr (kKeepExps) x[i] = e;
      others[i] += e;
      terms[i] += u[i] * below;
      sum_u[i] += u[i];
    }
  }
}

}  // namespace

template <class X>
FUSEDLOSS_CPU_LEVELS void LogitLoops<X>::pixels_max(const X* logits, int64_t logits_step,
                                                    int64_t classes, int64_t rows, T* block,
                                                    int64_t step, T* __restrict max) {
  for (int64_t i = 0; i < rows; ++i) max[i] = -std::numeric_limits<T>::infinity();
  for (int64_t c = 0; c < classes; ++c) {
    const X* x = logits + c * logits_step;
    T* out = block + c * step;
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T value = to<T>(x[i]);
      out[i] = value;
      max[i] = value > max[i] ? value : max[i];
    }
  }
}

template <class X>
FUSEDLOSS_CPU_LEVELS void LogitLoops<X>::pixels_exps(const NextBlock& next,
                                                     const ScaledExp<T> exp_of, const X* logits,
                                                     int64_t step, int64_t classes, int64_t rows,
                                                     const T* __restrict max, T* exps,
                                                     int64_t exps_step) {
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    const X* x = logits + c * step;
    T* out = exps + c * exps_step;
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) out[i] = exp_of(to<T>(x[i]) - max[i]);
  }
}

template <class X, Terms kTerms>
FUSEDLOSS_CPU_LEVELS void GradientLoops<X, kTerms>::pixels(
    const T* __restrict exps, int64_t exps_step, int64_t classes, int64_t rows,
    const Label<T>* __restrict label, const T* __restrict units, int64_t units_step,
    const T* __restrict softmax, const T* __restrict terms, const T* __restrict target,
    X* __restrict grad, int64_t grad_step) {
  for (int64_t c = 0; c < classes; ++c) {
    const T* e = exps + c * exps_step;
    X* out = grad + c * grad_step;
    const Label<T> this_class = static_cast<Label<T>>(c);
    if constexpr (kTerms == Terms::kProbabilities) {
      const T* u = units + c * units_step;
#pragma GCC ivdep
      for (int64_t i = 0; i < rows; ++i) out[i] = from<X>(softmax[i] * e[i] + terms[i] * u[i]);
    } else {
      const T unit = unit_of<kTerms>(units, c);
#pragma GCC ivdep
      for (int64_t i = 0; i < rows; ++i) {
        T g = softmax[i] * e[i];
        if constexpr (kTerms != Terms::kNone) g += terms[i] * unit;
        out[i] = from<X>(label[i] == this_class ? target[i] : g);
      }
    }
  }
}

template <class X, Terms kTerms>
FUSEDLOSS_CPU_LEVELS void GradientLoops<X, kTerms>::row(const T* exps, int64_t classes,
                                                        const T* __restrict units, T softmax,
                                                        T terms, X* grad) {
#pragma GCC ivdep
  for (int64_t j = 0; j < classes; ++j) {
    T g = softmax * exps[j];
    if constexpr (kTerms == Terms::kUniform) g += terms;
    if constexpr (has_weighted_terms(kTerms)) g += terms * units[j];
    grad[j] = from<X>(g);
  }
}

template <class T, Terms kTerms>
void SumLoops<T, kTerms>::pixels(const NextBlock& next, ScaledExp<T> exp_of, T* block, int64_t step,
                                 int64_t classes, int64_t rows, const Label<T>* label,
                                 const T* weights, const T* max, bool keep_exps, T* others,
                                 T* terms, T* logit) {
  if constexpr (kTerms != Terms::kProbabilities) {
    const auto loop = keep_exps ? pixels_sums<kTerms, true, T> : pixels_sums<kTerms, false, T>;
    loop(next, exp_of, block, step, classes, rows, label, weights, max, others, terms, logit);
  }
}

template <class T, Terms kTerms>
FUSEDLOSS_CPU_LEVELS ChunkSums<T> SumLoops<T, kTerms>::row(const ScaledExp<T> exp_of, const T* x,
                                                           T max, int64_t count, Label<T> label,
                                                           const T* units, T* exps) {
  T others = T(0), terms = T(0), sum_u = T(0);
  const Label<T> length = static_cast<Label<T>>(count);
#pragma omp simd reduction(+ : others, terms, sum_u)
  for (Label<T> j = 0; j < length; ++j) {
    const T below = x[j] - max;
    const T e = exp_of(below);
    exps[j] = e;
    others += j == label ? T(0) : e;
    if constexpr (kTerms == Terms::kUniform) terms += j == label ? T(0) : below;
    if constexpr (kTerms == Terms::kWeights) terms += j == label ? T(0) : units[j] * below;
    if constexpr (kTerms == Terms::kProbabilities) {
      terms += units[j] * below;
      sum_u += units[j];
    }
  }
  return {others, terms, sum_u};
}

template <class T>
void NumberLoops<T>::probability_pixels(const NextBlock& next, ScaledExp<T> exp_of, T* block,
                                        int64_t step, int64_t classes, int64_t rows, const T* units,
                                        const T* max, bool keep_exps, T* others, T* terms,
                                        T* sum_u) {
  const auto loop =
      keep_exps ? pixels_probability_sums<true, T> : pixels_probability_sums<false, T>;
  loop(next, exp_of, block, step, classes, rows, units, max, others, terms, sum_u);
}

template <class T>
FUSEDLOSS_CPU_LEVELS void NumberLoops<T>::pixels_max_of_others(const T* __restrict block,
                                                               int64_t step, int64_t classes,
                                                               int64_t rows,
                                                               const Label<T>* __restrict label,
                                                               T* __restrict max) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < rows; ++i) max[i] = kLowest;
  for (int64_t c = 0; c < classes; ++c) {
    const T* x = block + c * step;
    const Label<T> this_class = static_cast<Label<T>>(c);
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T value = label[i] == this_class ? kLowest : x[i];
      max[i] = value > max[i] ? value : max[i];
    }
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS T NumberLoops<T>::row_max(const T* __restrict x, int64_t classes) {
  T max = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t j = 0; j < classes; ++j) max = x[j] > max ? x[j] : max;
  return max;
}

template <class T>
FUSEDLOSS_CPU_LEVELS void NumberLoops<T>::row_exps(const ScaledExp<T> exp_of, const T* x, T max,
                                                   int64_t classes, T* exps) {
#pragma GCC ivdep
  for (int64_t j = 0; j < classes; ++j) exps[j] = exp_of(x[j] - max);
}

template <class T>
FUSEDLOSS_CPU_LEVELS void NumberLoops<T>::drop_above(T ceiling, int64_t count, T* __restrict x) {
  for (int64_t j = 0; j < count; ++j)
    x[j] = x[j] > ceiling ? -std::numeric_limits<T>::infinity() : x[j];
}

template <class T>
FUSEDLOSS_CPU_LEVELS void NumberLoops<T>::to_units(T* __restrict target, int64_t count,
                                                   T target_share, T uniform_share,
                                                   const T* __restrict weights,
                                                   int64_t weights_step) {
#pragma GCC ivdep
  for (int64_t j = 0; j < count; ++j) {
    const T weight = weights[j * weights_step];
    target[j] = weight * (target_share * target[j] + uniform_share);
  }
}

template <class T>
template <class From>
FUSEDLOSS_CPU_LEVELS int64_t NumberLoops<T>::copy_labels(const From* __restrict labels,
                                                         int64_t stride, int64_t count,
                                                         int64_t classes, int64_t ignored,
                                                         Label<T>* __restrict out) {
  const auto convert = [&](int64_t label) {
    const bool is_one = label >= 0 && label < classes && label != ignored;
    return static_cast<Label<T>>(is_one ? label : kNoClass);
  };
  if (stride == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) out[i] = convert(labels[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = convert(labels[i * stride]);
  }
  Label<T> without = 0;
#pragma omp simd reduction(+ : without)
  for (int64_t i = 0; i < count; ++i) without += out[i] < 0;
  return without;
}

template struct LogitLoops<float>;
template struct LogitLoops<double>;
template struct LogitLoops<Float16>;
template struct LogitLoops<BFloat16>;

template struct GradientLoops<float, Terms::kNone>;
template struct GradientLoops<float, Terms::kUniform>;
template struct GradientLoops<float, Terms::kWeights>;
template struct GradientLoops<float, Terms::kProbabilities>;
template struct GradientLoops<double, Terms::kNone>;
template struct GradientLoops<double, Terms::kUniform>;
template struct GradientLoops<double, Terms::kWeights>;
template struct GradientLoops<double, Terms::kProbabilities>;
template struct GradientLoops<Float16, Terms::kNone>;
template struct GradientLoops<Float16, Terms::kUniform>;
template struct GradientLoops<Float16, Terms::kWeights>;
template struct GradientLoops<Float16, Terms::kProbabilities>;
template struct GradientLoops<BFloat16, Terms::kNone>;
template struct GradientLoops<BFloat16, Terms::kUniform>;
template struct GradientLoops<BFloat16, Terms::kWeights>;
template struct GradientLoops<BFloat16, Terms::kProbabilities>;

template struct SumLoops<float, Terms::kNone>;
template struct SumLoops<float, Terms::kUniform>;
template struct SumLoops<float, Terms::kWeights>;
template struct SumLoops<float, Terms::kProbabilities>;
template struct SumLoops<double, Terms::kNone>;
template struct SumLoops<double, Terms::kUniform>;
template struct SumLoops<double, Terms::kWeights>;
template struct SumLoops<double, Terms::kProbabilities>;

template struct NumberLoops<float>;
template int64_t NumberLoops<float>::copy_labels(const int64_t*, int64_t, int64_t, int64_t, int64_t,
                                                 Label<float>*);
template int64_t NumberLoops<float>::copy_labels(const int32_t*, int64_t, int64_t, int64_t, int64_t,
                                                 Label<float>*);
template int64_t NumberLoops<float>::copy_labels(const int16_t*, int64_t, int64_t, int64_t, int64_t,
                                                 Label<float>*);
template int64_t NumberLoops<float>::copy_labels(const uint8_t*, int64_t, int64_t, int64_t, int64_t,
                                                 Label<float>*);
template struct NumberLoops<double>;
template int64_t NumberLoops<double>::copy_labels(const int64_t*, int64_t, int64_t, int64_t,
                                                  int64_t, Label<double>*);
template int64_t NumberLoops<double>::copy_labels(const int32_t*, int64_t, int64_t, int64_t,
                                                  int64_t, Label<double>*);
template int64_t NumberLoops<double>::copy_labels(const int16_t*, int64_t, int64_t, int64_t,
                                                  int64_t, Label<double>*);
template int64_t NumberLoops<double>::copy_labels(const uint8_t*, int64_t, int64_t, int64_t,
                                                  int64_t, Label<double>*);

}  // namespace fusedloss::cpu
