// The hot loops of the row-softmax engine: plain arrays in, plain arrays out, vectorised from
// scalar code in row_loops.cpp, which holds one copy of each for all losses. Two shapes of one
// computation: along pixels (class j of row i lies at j * step + i, the arrays of a block hold one
// number for each row) and along the classes of one row.
#pragma once

#include <cstdint>

#include "../core/row_softmax.h"

namespace fusedloss::cpu {

// Labels as wide as the arithmetic, so that loops over both keep one vector length.
template <class T>
struct LabelOf {
  using type = int32_t;
};
template <>
struct LabelOf<double> {
  using type = int64_t;
};
template <class T>
using Label = typename LabelOf<T>::type;

constexpr int64_t kNoClass = -1;  // the label of an ignored row

// Asks for memory that is read or written next, while there is arithmetic to do.
inline void prefetch(const char* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + i, 0, 2);
}
inline void prefetch_to_write(const char* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + i, 1, 3);
}

// The logits of the block after this one, if they lie in memory as they are read. The rows of a
// class are short stretches far from those of the next, which the hardware does not foresee. (Where
// the gradient goes is not worth asking for: as many classes a power of two apart push each other
// out.)
struct NextBlock {
  const char* logits = nullptr;  // nullptr: nothing to fetch
  int64_t class_bytes = 0, bytes = 0;

  void fetch(int64_t c) const {
    if (logits != nullptr) prefetch(logits + c * class_bytes, bytes);
  }
};

// The labels' logits of a block along the rows, that of class 0 where there is no label. In the
// loop over the classes each would be looked for at every class.
template <class X, class T>
FUSEDLOSS_HD void own_logits(const X* __restrict logits, int64_t step, int64_t rows,
                             const Label<T>* __restrict label, T* __restrict logit) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t c = label[i] < 0 ? 0 : label[i];
    logit[i] = to<T>(logits[c * step + i]);
  }
}

// Loops that read logits of type X.
template <class X>
struct LogitLoops {
  using T = Accumulator<X>;

  // Copies a block as T and takes the maximum over the classes. The copy is worth its stores: the
  // classes of an image lie a power of two apart, so few of them share the cache.
  static void pixels_max(const X* logits, int64_t logits_step, int64_t classes, int64_t rows,
                         T* block, int64_t step, T* max);

  // e^(s (x - max)) of a whole block, for backward. `exps` may be the logits.
  static void pixels_exps(const NextBlock& next, ScaledExp<T> exp_of, const X* logits, int64_t step,
                          int64_t classes, int64_t rows, const T* max, T* exps, int64_t exps_step);
};

// Loops that write gradients of type X. `units` are the u_j: class weights, or one for each element
// of the block where targets are probabilities.
template <class X, Terms kTerms>
struct GradientLoops {
  using T = Accumulator<X>;

  static void pixels(const T* exps, int64_t exps_step, int64_t classes, int64_t rows,
                     const Label<T>* label, const T* units, int64_t units_step, const T* softmax,
                     const T* terms, const T* target, X* grad, int64_t grad_step);
  // The gradient of a row. `grad` may be the exponentials.
  static void row(const T* exps, int64_t classes, const T* units, T softmax, T terms, X* grad);
};

template <class T>
struct ChunkSums {
  T others, terms, sum_u;
};

// Loops that turn logits into exponentials and sums.
template <class T, Terms kTerms>
struct SumLoops {
  // The sums over the classes but the label's, and the label's logit. The block's logits become
  // e^(s (x - max)) where those are kept.
  static void pixels(const NextBlock& next, ScaledExp<T> exp_of, T* block, int64_t step,
                     int64_t classes, int64_t rows, const Label<T>* label, const T* weights,
                     const T* max, bool keep_exps, T* others, T* terms, T* logit);

  // e^(s (x - max)) of a stretch of a row into `exps` (which may be x), and its sums but for
  // element `label`. Kept short by the caller, so that float sums lose nothing.
  static ChunkSums<T> row(ScaledExp<T> exp_of, const T* x, T max, int64_t count, Label<T> label,
                          const T* units, T* exps);
};

// Loops over numbers of one type.
template <class T>
struct NumberLoops {
  // SumLoops::pixels with probability targets: no class stands apart, u_j belongs to the element.
  static void probability_pixels(const NextBlock& next, ScaledExp<T> exp_of, T* block, int64_t step,
                                 int64_t classes, int64_t rows, const T* units, const T* max,
                                 bool keep_exps, T* others, T* terms, T* sum_u);

  // The maximum over the classes but the label's, for losses that change the target's logit.
  static void pixels_max_of_others(const T* block, int64_t step, int64_t classes, int64_t rows,
                                   const Label<T>* label, T* max);

  static T row_max(const T* x, int64_t classes);

  // e^(s (x - max)) of a row, for backward. `exps` may be x.
  static void row_exps(ScaledExp<T> exp_of, const T* x, T max, int64_t classes, T* exps);

  // Logits above the ceiling become -inf.
  static void drop_above(T ceiling, int64_t count, T* x);

  // Probability targets become their u_j, in place. `weights` moves by weights_step an element.
  static void to_units(T* target, int64_t count, T target_share, T uniform_share, const T* weights,
                       int64_t weights_step);

  // Labels as block labels: kNoClass for what is ignored or no class. Returns how many those are.
  template <class From>
  static int64_t copy_labels(const From* labels, int64_t stride, int64_t count, int64_t classes,
                             int64_t ignored, Label<T>* out);
};

// Zeros for the rows without a class, whose coefficients are 0 but whose exponentials may be NaN.
template <class X, class T>
void pixels_clear_ignored(const Label<T>* label, int64_t classes, int64_t rows, X* grad,
                          int64_t grad_step) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < classes && label[i] < 0; ++c) grad[c * grad_step + i] = X{};
}

// Whether a row without a class holds logits that make 0 times its exponentials NaN.
template <class T>
bool any_ignored_nan(const Label<T>* label, const T* rest, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (label[i] < 0 && !(rest[i] - rest[i] == T(0))) return true;
  return false;
}

}  // namespace fusedloss::cpu
