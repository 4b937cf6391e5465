// Mined rows on the CPU, over the row-softmax engine's tasks, blocks and walks (row_softmax.h).
//
// Forward leaves a mark of every row instead of a loss. Backward reads the marks first: rows that
// are not selected lose their label and count as ignored ones. Of a block without selected rows it
// reads no logits; along rows, the logits of a few selected ones are gathered from their block;
// else all of the block are computed. Along classes each row stands alone.
//
// Where a threshold selects, forward may write the gradient of the rows above it while it has their
// exponentials. Unless others turn out to be selected too, backward only multiplies that.
#pragma once

#include <vector>

#include "mined_loops.h"
#include "row_softmax.h"
#include "scale.h"
#include "select.h"

namespace fusedloss::cpu {

// Below this part of a block its selected rows are gathered.
constexpr double kFewSelected = 0.06;

template <class X, class T>
struct MinedTools {
  static constexpr int64_t kRows = RowArrays<T>::kRows;

  explicit MinedTools(const RowPlan& plan) : walk(plan) {}
  BlockWalk<X, T> walk;
  RowArrays<T> rows{};
  alignas(64) T marks[kRows] = {}, values[kRows] = {};
  int32_t places[kRows];
};

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

// The gradient of the selected rows alone, where the block's logits lie as they are read; else
// returns false.
template <class X, class T>
bool write_few(const RowPlan& plan, int64_t begin, int64_t count, MinedTools<X, T>& tools) {
  const int64_t classes = plan.call.num_classes, step = tools.walk.step();
  RowArrays<T>& rows = tools.rows;
  T* block = tools.walk.exps();
  int64_t kept = 0;
  tools.walk.with_direct(begin, count, [&](const X* x, int64_t x_step) {
    kept = gather_rows(count, rows, tools.places);
    gather_logits(x, x_step, classes, kept, tools.places, block, step);
  });
  if (kept == 0) return false;
  LogitLoops<T>::pixels_max(block, step, classes, kept, block, step, rows.max);
  SumLoops<T, Terms::kNone>::pixels(NextBlock{}, ScaledExp<T>(1), block, step, classes, kept,
                                    rows.label, nullptr, rows.max, true, rows.others, rows.terms,
                                    rows.logit);
  mined_coefficients(kept, rows);
  tools.walk.write_along_rows(
      begin, count, false, rows, [&](const T* exps, X* out, int64_t out_step) {
        scatter_gradient(exps, step, classes, count, kept, tools.places, rows.label, rows.softmax,
                         rows.target, out, out_step);
      });
  return true;
}

// The gradient of a whole block from its exponentials and coefficients. `clear`: rows without a
// label may hold exponentials that a coefficient of 0 does not make 0.
template <class X, class T>
void write_block(const RowPlan& plan, int64_t begin, int64_t count, bool clear,
                 MinedTools<X, T>& tools) {
  RowArrays<T>& rows = tools.rows;
  if (!plan.along_rows)
    return tools.walk.write_along_classes(
        begin, count, rows, [&](int64_t i, const T* exps, X* out) {
          GradientLoops<X, Terms::kNone>::row(exps, plan.call.num_classes, nullptr, rows.softmax[i],
                                              T(0), out);
          out[rows.label[i]] = from<X>(rows.target[i]);
        });
  tools.walk.write_along_rows(
      begin, count, clear, rows, [&](const T* exps, X* out, int64_t out_step) {
        GradientLoops<X, Terms::kNone>::pixels(exps, tools.walk.step(), plan.call.num_classes,
                                               count, rows.label, nullptr, 0, rows.softmax,
                                               rows.slope, rows.target, out, out_step);
      });
}

template <class X, class T>
MarkTotals mark_task(const RowPlan& plan, const MiningCall& mining, int64_t begin, int64_t end,
                     MinedTools<X, T>& tools, LabelReport& report) {
  RowArrays<T>& rows = tools.rows;
  const bool with_grad = plan.call.grad.data != nullptr;
  const auto finish = with_grad ? finish_rows<true, true, MinedCrossEntropy<T>, T>
                                : finish_rows<true, false, MinedCrossEntropy<T>, T>;
  const RowConstants<T> constants = row_constants<T>(plan.call);
  const bool has_values = mining.select.values != nullptr;
  TensorView values = mining.marks;
  values.data = mining.select.values;
  MarkTotals totals;
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const int64_t whole = whole_vectors(count);
    read_labels(plan, at, count, rows, report);
    tools.walk.template sums<Terms::kNone, false>(at, count, nullptr, with_grad, rows);
    finish(MinedCrossEntropy<T>{}, constants, whole, rows);
    mark_rows(static_cast<T>(mining.threshold), whole, rows, tools.marks, tools.values);
    totals += count_block<T>(tools.marks, has_values ? tools.values : nullptr, count);
    write_rows(plan, mining.marks, at, count, tools.marks);
    write_rows(plan, values, at, count, tools.values);
    if (!with_grad) return;
    bool clear = false;
    if (keep_always_selected(count, tools.marks, rows, clear) > 0)
      write_block(plan, at, count, clear, tools);
    else
      write_zeros(plan, at, count, tools);
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

template <class X, class T>
void mined_gradient_task(const RowPlan& plan, const MinedGradientCall& mined, int64_t begin,
                         int64_t end, MinedTools<X, T>& tools) {
  RowArrays<T>& rows = tools.rows;
  const Selection<T> selection = *static_cast<const Selection<T>*>(mined.selection);
  const T scale = *static_cast<const T*>(plan.call.scale);
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    LabelReport known{true, 0};  // forward has looked for bad labels
    read_labels(plan, at, count, rows, known);
    read_rows(plan, mined.marks, at, count, tools.marks);
    read_rows(plan, plan.call.grad_output, at, count, rows.upstream);
    const int64_t selected =
        share_rows(selection, scale, count, tools.marks, rows.upstream, rows.label);
    const double part = static_cast<double>(selected) / static_cast<double>(count);
    if (selected == 0) return write_zeros(plan, at, count, tools);
    if (plan.along_rows && part < kFewSelected && write_few(plan, at, count, tools)) return;
    tools.walk.template sums<Terms::kNone, false>(at, count, nullptr, true, rows);
    write_block(plan, at, count, mined_coefficients(count, rows), tools);
  });
}

// What is left to do where forward has written the gradient of all that is selected. Returns false
// where it has not, and where a factor would make other than zeros of what is not selected.
template <class T>
bool finish_begun(const RowSoftmaxCall& call, const MinedGradientCall& mined,
                  const Threads& threads) {
  if (has_candidates(*static_cast<const Selection<T>*>(mined.selection))) return false;
  const BlockReader<T> incoming(call.shape, call.grad_output, T(1));
  const T factor = incoming.value() * *static_cast<const T*>(call.scale);
  if (!incoming.constant() || factor - factor != T(0)) return false;
  launch_scale_gradient({call.shape, call.grad, call.grad_output, call.grad, call.scale}, threads);
  return true;
}

template <class X>
void mined_rows_backward(const RowSoftmaxCall& call, MinedGradientCall mined,
                         const Threads& threads) {
  using T = Accumulator<X>;
  if (mined.begun && finish_begun<T>(call, mined, threads)) return;
  RowPlan plan = plan_rows(call, 1.0, &mined.marks);
  plan.skips_ignored = true;
  using Tools = MinedTools<X, T>;
  for_each_row_task<Tools>(plan, threads, [&](int64_t, int64_t begin, int64_t end, Tools& tools) {
    mined_gradient_task(plan, mined, begin, end, tools);
  });
}

}  // namespace fusedloss::cpu
