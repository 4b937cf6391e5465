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

// Of rows whose coefficients are known, leaves those of the always selected: the others lose their
// label. Returns how many are left; `clear` as of mined_coefficients.
template <class T>
FUSEDLOSS_CPU_LEVELS int64_t keep_always_selected(int64_t count, const T* __restrict marks,
                                                  RowArrays<T>& rows, bool& clear) {
  Label<T> selected = 0, unclear = 0;
#pragma omp simd reduction(+ : selected, unclear)
  for (int64_t i = 0; i < count; ++i) {
    // Of marks as signed numbers: always selected ones are negative, what is left out is -1.
    const Label<T> mark = bit_cast<Label<T>>(marks[i]);
    const bool always = (mark < 0) & (mark != -1);
    const Label<T> own = rows.label[i];
    const T softmax = rows.softmax[i], others = rows.others[i];
    rows.label[i] = always ? own : Label<T>(kNoClass);
    rows.softmax[i] = always ? softmax : T(0);
    selected += always;
    unclear += !always & !(others - others == T(0));
  }
  clear = unclear > 0;
  return selected;
}

// What the gradients of a block's rows are multiplied by: the share of what comes in. Rows that are
// not selected lose their label. Returns how many are left. (Everything is computed for every row:
// where that depends on a comparison, GCC makes branches of it.)
template <class T>
FUSEDLOSS_CPU_LEVELS int64_t share_rows(const Selection<T> selection, T scale, int64_t count,
                                        const T* __restrict marks, T* __restrict upstream,
                                        Label<T>* __restrict label) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const T share = share_of(selection, bit_cast<Mark<T>>(marks[i]));
    const Label<T> own = label[i];
    const T factor = share * scale * upstream[i];
    label[i] = share == T(0) ? Label<T>(kNoClass) : own;
    upstream[i] = share == T(0) ? T(0) : factor;
  }
  Label<T> selected = 0;
#pragma omp simd reduction(+ : selected)
  for (int64_t i = 0; i < count; ++i) selected += label[i] >= 0;
  return selected;
}

// The coefficients of the gradient, from sums relative to rows.max. Returns whether a row without a
// label has exponentials that a coefficient of 0 does not make 0.
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
int64_t gather_rows(int64_t count, RowArrays<T>& rows, int32_t* places) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i)
    if (rows.label[i] >= 0) places[kept++] = static_cast<int32_t>(i);
  for (int64_t k = 0; k < kept; ++k) {
    const int64_t i = places[k];
    rows.label[k] = rows.label[i];
    rows.weight[k] = rows.weight[i];
    rows.upstream[k] = rows.upstream[i];
  }
  return kept;
}

// Their logits.
template <class X, class T>
void gather_logits(const X* logits, int64_t logits_step, int64_t classes, int64_t kept,
                   const int32_t* places, T* block, int64_t step) {
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t k = 0; k < kept; ++k)
      block[c * step + k] = to<T>(logits[c * logits_step + places[k]]);
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
