// Mined rows on the CPU, over the row-softmax engine's tasks, blocks and walks (row_softmax.h).
//
// Forward leaves a mark of every row instead of a loss. Backward reads the marks first: rows that
// are not selected count as ignored ones. A block without selected rows becomes zeros and its
// logits are not read; in others the statistics of the rows are computed again.
#pragma once

#include <vector>

#include "../loss/mined_cross_entropy.h"
#include "row_softmax.h"
#include "select.h"

namespace fusedloss::cpu {

template <class X, class T>
struct MinedTools {
  explicit MinedTools(const RowPlan& plan) : walk(plan) {}
  BlockWalk<X, T> walk;
  RowArrays<T> rows{};
  alignas(64) T marks[RowArrays<T>::kRows] = {};
  alignas(64) T values[RowArrays<T>::kRows] = {};
};

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

template <class X, class T>
MarkTotals mark_task(const RowPlan& plan, const MiningCall& mining, int64_t begin, int64_t end,
                     MinedTools<X, T>& tools, LabelReport& report) {
  RowArrays<T>& rows = tools.rows;
  const RowConstants<T> constants = row_constants<T>(plan.call);
  const bool has_values = mining.select.values != nullptr;
  TensorView values = mining.marks;
  values.data = mining.select.values;
  MarkTotals totals;
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const int64_t whole = whole_vectors(count);
    read_labels(plan, at, count, rows, report);
    tools.walk.template sums<Terms::kNone, false>(at, count, nullptr, false, rows);
    finish_rows<true, false>(MinedCrossEntropy<T>{}, constants, whole, rows);
    mark_rows(static_cast<T>(mining.threshold), whole, rows, tools.marks, tools.values);
    totals += count_block<T>(tools.marks, has_values ? tools.values : nullptr, count);
    write_rows(plan, mining.marks, at, count, tools.marks);
    write_rows(plan, values, at, count, tools.values);
  });
  return totals;
}

template <class X>
LabelReport mined_rows_forward(const RowSoftmaxCall& call, MiningCall mining,
                               const Threads& threads) {
  using T = Accumulator<X>;
  const RowPlan plan = plan_rows(call, 1.0, &mining.marks);
  std::vector<MarkTotals> slots(num_row_tasks(plan));
  std::vector<LabelReport> reports(slots.size());
  using Tools = MinedTools<X, T>;
  for_each_row_task<Tools>(
      plan, threads, [&](int64_t task, int64_t begin, int64_t end, Tools& tools) {
        slots[task] = mark_task(plan, mining, begin, end, tools, reports[task]);
      });
  MarkTotals total;
  for (const MarkTotals& slot : slots) total += slot;
  select<T>(mining.select, &total, threads);
  for (const LabelReport& report : reports)
    if (report.bad_label) return report;
  return {};
}

// What the gradients of a block's rows are multiplied by. Rows that are not selected lose their
// label. Returns how many are left.
template <class T>
FUSEDLOSS_CPU_LEVELS int64_t share_rows(const Selection<T> selection, T scale, int64_t count,
                                        const T* __restrict marks, T* __restrict upstream,
                                        Label<T>* __restrict label) {
  Label<T> selected = 0;
#pragma omp simd reduction(+ : selected)
  for (int64_t i = 0; i < count; ++i) {
    const T share = share_of(selection, bit_cast<Mark<T>>(marks[i]));
    const bool counts = share > T(0) && label[i] >= 0;
    label[i] = counts ? label[i] : Label<T>(kNoClass);
    upstream[i] = counts ? share * scale * upstream[i] : T(0);
    selected += counts;
  }
  return selected;
}

// The coefficients of rows that finish_rows left for an incoming gradient of 1, for the true one.
// Returns whether a row that is left out has exponentials that 0 does not make 0.
template <class T>
FUSEDLOSS_CPU_LEVELS bool scale_rows(int64_t count, RowArrays<T>& rows) {
  Label<T> unclear = 0;
#pragma omp simd reduction(+ : unclear)
  for (int64_t i = 0; i < count; ++i) {
    rows.softmax[i] = rows.label[i] < 0 ? T(0) : rows.softmax[i] * rows.upstream[i];
    rows.target[i] *= rows.upstream[i];
    unclear += rows.label[i] < 0 && !(rows.rest[i] - rows.rest[i] == T(0));
  }
  return unclear > 0;
}

// Writes the gradient of a block from coefficients and exponentials.
template <class X, class T>
void write_mined(const RowPlan& plan, int64_t begin, int64_t count, bool clear,
                 MinedTools<X, T>& tools) {
  using Loops = GradientLoops<X, Terms::kNone>;
  const int64_t classes = plan.call.num_classes;
  const RowArrays<T>& rows = tools.rows;
  if (plan.along_rows)
    return tools.walk.write_along_rows(
        begin, count, clear, rows, [&](const T* exps, X* out, int64_t out_step) {
          Loops::pixels(exps, tools.walk.step(), classes, count, rows.label, nullptr, 0,
                        rows.softmax, rows.slope, rows.target, out, out_step);
        });
  tools.walk.write_along_classes(begin, count, rows, [&](int64_t i, const T* exps, X* out) {
    Loops::row(exps, classes, nullptr, rows.softmax[i], T(0), out);
    out[rows.label[i]] = from<X>(rows.target[i]);
  });
}

// A block of which nothing is selected.
template <class X, class T>
void write_zeros(const RowPlan& plan, int64_t begin, int64_t count, MinedTools<X, T>& tools) {
  if (!plan.along_rows)
    return tools.walk.write_along_classes(begin, count, tools.rows,
                                          [](int64_t, const T*, X*) {});  // all without a label
  tools.walk.write_along_rows(begin, count, false, tools.rows,
                              [&](const T*, X* out, int64_t out_step) {
                                for (int64_t c = 0; c < plan.call.num_classes; ++c)
                                  std::fill_n(out + c * out_step, count, X{});
                              });
}

template <class X, class T>
void mined_gradient_task(const RowPlan& plan, const MinedGradientCall& mined, int64_t begin,
                         int64_t end, MinedTools<X, T>& tools) {
  RowArrays<T>& rows = tools.rows;
  const RowConstants<T> constants = row_constants<T>(plan.call);
  const Selection<T> selection = *static_cast<const Selection<T>*>(mined.selection);
  const T scale = *static_cast<const T*>(plan.call.scale);
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const int64_t whole = whole_vectors(count);
    LabelReport report;
    read_labels(plan, at, count, rows, report);
    read_rows(plan, mined.marks, at, count, tools.marks);
    read_rows(plan, plan.call.grad_output, at, count, rows.upstream);
    const int64_t selected =
        share_rows(selection, scale, count, tools.marks, rows.upstream, rows.label);
    if (selected == 0) return write_zeros(plan, at, count, tools);
    tools.walk.template sums<Terms::kNone, false>(at, count, nullptr, true, rows);
    finish_rows<true, true>(MinedCrossEntropy<T>{}, constants, whole, rows);
    const bool clear = scale_rows(count, rows);
    write_mined(plan, at, count, clear, tools);
  });
}

template <class X>
void mined_rows_backward(const RowSoftmaxCall& call, MinedGradientCall mined,
                         const Threads& threads) {
  using T = Accumulator<X>;
  const RowPlan plan = plan_rows(call, 1.0, &mined.marks);
  using Tools = MinedTools<X, T>;
  for_each_row_task<Tools>(plan, threads, [&](int64_t, int64_t begin, int64_t end, Tools& tools) {
    mined_gradient_task(plan, mined, begin, end, tools);
  });
}

}  // namespace fusedloss::cpu
