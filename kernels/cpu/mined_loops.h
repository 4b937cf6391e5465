// The hot loops of mined rows: plain arrays in, plain arrays out, as in row_loops.h. Class j of row
// i of a block lies at j * step + i.
#pragma once

#include <algorithm>

#include "../loss/mined_cross_entropy.h"
#include "row_epilogue.h"

namespace fusedloss::cpu {

// Marks of a block's rows, and what is summed of them, from their losses.
template <class T>
FUSEDLOSS_CPU_LEVELS void mark_rows(T threshold, int64_t count, const RowArrays<T>& rows,
                                    T* __restrict marks, T* __restrict values) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const Mark<T> mark = mark_row(rows.main[i], threshold);
    marks[i] = bit_cast<T>(rows.label[i] < 0 ? kLeftOut<T> : mark);
    values[i] = rows.weight[i] * rows.main[i];
  }
}

// What the gradients of a block's rows are multiplied by: the share of what comes in. Rows that are
// not selected lose their label. Returns how many are left.
template <class T>
FUSEDLOSS_CPU_LEVELS int64_t share_rows(const Selection<T> selection, T scale, int64_t count,
                                        const T* __restrict marks, T* __restrict upstream,
                                        Label<T>* __restrict label) {
  Label<T> selected = 0;
#pragma omp simd reduction(+ : selected)
  for (int64_t i = 0; i < count; ++i) {
    const T share = share_of(selection, bit_cast<Mark<T>>(marks[i]));
    const Label<T> own = label[i];
    const T incoming = upstream[i];
    const Label<T> counts = (share > T(0)) & (own >= 0);
    label[i] = counts ? own : Label<T>(kNoClass);
    upstream[i] = counts ? share * scale * incoming : T(0);
    selected += counts;
  }
  return selected;
}

// A row's log-sum-exp from its mark, which its exponentials can be relative to instead of the
// maximum: x_t itself where that is the maximum, so that the others' sum stays exact beside it.
// Rows without a label get 0. Returns whether all are near enough to be used.
template <class T>
FUSEDLOSS_CPU_LEVELS bool references(int64_t count, const T* __restrict marks,
                                     const Label<T>* __restrict label, const T* __restrict logit,
                                     T* __restrict max) {
  constexpr T kHalf = T(0.69);  // -log p_t of a p_t above 1/2
  constexpr T kFar = T(1e5);    // beyond, the rounding of the sum counts (or it is infinite or NaN)
  Label<T> far = 0;
#pragma omp simd reduction(+ : far)
  for (int64_t i = 0; i < count; ++i) {
    const T nll = loss_of<T>(bit_cast<Mark<T>>(marks[i]));
    const T own = logit[i];
    const bool has_label = label[i] >= 0;
    const T total = own + (nll < kHalf ? T(0) : nll);
    const T size = (own < T(0) ? -own : own) + nll;
    max[i] = has_label ? total : T(0);
    far += has_label & !(size < kFar);
  }
  return far == 0;
}

// Exponentials relative to `max`, and their sums but for the label's.
template <class X, class T>
FUSEDLOSS_CPU_LEVELS void mined_exps(const NextBlock next, const ScaledExp<T> exp_of,
                                     const X* logits, int64_t logits_step, int64_t classes,
                                     int64_t rows, const Label<T>* __restrict label,
                                     const T* __restrict max, T* exps, int64_t step,
                                     T* __restrict others) {
  for (int64_t i = 0; i < rows; ++i) others[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    const X* x = logits + c * logits_step;
    T* out = exps + c * step;
    const Label<T> this_class = static_cast<Label<T>>(c);
#pragma GCC ivdep
    for (int64_t i = 0; i < rows; ++i) {
      const T e = exp_of(to<T>(x[i]) - max[i]);
      out[i] = e;
      others[i] += label[i] == this_class ? T(0) : e;
    }
  }
}

// The coefficients of the gradient. Returns whether a row without a label has exponentials that a
// coefficient of 0 does not make 0.
template <class T>
FUSEDLOSS_CPU_LEVELS bool mined_coefficients(int64_t count, RowArrays<T>& rows) {
  const MinedCrossEntropy<T> loss;
  Label<T> unclear = 0;
#pragma omp simd reduction(+ : unclear)
  for (int64_t i = 0; i < count; ++i) {
    const T others = rows.others[i];
    const T own = exp_nonpositive(rows.logit[i] - rows.max[i]);
    const T inverse = T(1) / (others + own);
    RowState<T> s{};
    s.q = others * inverse;
    s.weight = rows.weight[i];
    const RowGradient<T> g = loss.gradient(s, RowScale<T>{rows.upstream[i], T(0)});
    const bool has_label = rows.label[i] >= 0;
    rows.softmax[i] = has_label ? g.softmax * inverse : T(0);
    rows.target[i] = g.target;
    unclear += !has_label & !(others - others == T(0));
  }
  return unclear > 0;
}

// --- Few rows of a block are selected: those alone, next to each other.

// Keeps the rows with a label: their places, and what is known of them.
template <class T>
int64_t gather_rows(int64_t count, T* marks, RowArrays<T>& rows, int32_t* places) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    places[kept] = static_cast<int32_t>(i);
    kept += rows.label[i] >= 0;
  }
  for (int64_t k = 0; k < kept; ++k) {
    const int64_t i = places[k];
    rows.label[k] = rows.label[i];
    rows.weight[k] = rows.weight[i];
    rows.upstream[k] = rows.upstream[i];
    marks[k] = marks[i];
  }
  return kept;
}

// Their logits, and those of their labels.
template <class X, class T>
void gather_logits(const NextBlock& next, const X* logits, int64_t logits_step, int64_t classes,
                   int64_t kept, const int32_t* places, RowArrays<T>& rows, T* block,
                   int64_t step) {
  for (int64_t c = 0; c < classes; ++c) {
    next.fetch(c);
    const X* x = logits + c * logits_step;
    T* out = block + c * step;
    for (int64_t k = 0; k < kept; ++k) out[k] = to<T>(x[places[k]]);
  }
  for (int64_t k = 0; k < kept; ++k) rows.logit[k] = block[rows.label[k] * step + k];
}

// Their gradients among zeros.
template <class X, class T>
FUSEDLOSS_CPU_LEVELS void scatter_gradient(const T* exps, int64_t step, int64_t classes,
                                           int64_t rows, int64_t kept,
                                           const int32_t* __restrict places,
                                           const Label<T>* __restrict label,
                                           const T* __restrict softmax, const T* __restrict target,
                                           X* __restrict grad, int64_t grad_step) {
  X line[RowArrays<T>::kRows];
  for (int64_t c = 0; c < classes; ++c) {
    const T* e = exps + c * step;
    X* out = grad + c * grad_step;
    const Label<T> this_class = static_cast<Label<T>>(c);
#pragma GCC ivdep
    for (int64_t k = 0; k < kept; ++k) {
      const T g = softmax[k] * e[k];
      line[k] = from<X>(label[k] == this_class ? target[k] : g);
    }
    std::fill_n(out, rows, X{});
    for (int64_t k = 0; k < kept; ++k) out[places[k]] = line[k];
  }
}

}  // namespace fusedloss::cpu
