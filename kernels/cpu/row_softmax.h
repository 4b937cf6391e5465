// The row-softmax engine on the CPU: any functor of ../core/row_softmax.h over logits of any
// layout.
//
// Rows are cut into tasks of a fixed size, tasks into blocks whose exponentials stay in the cache.
// A block's walk (row_walk.h) collects the sums of its rows; one loop over the rows turns them into
// losses and coefficients; the walk writes the gradient from exponentials and coefficients. So the
// logits leave memory once, in every schedule.
#pragma once

#include <vector>

#include "row_walk.h"
#include "tasks.h"

namespace fusedloss::cpu {

// One number of every row of a block, to and from a tensor.
template <class T>
inline void read_rows(const RowPlan& plan, const TensorView& view, int64_t begin, int64_t count,
                      T* out) {
  copy_in(plan.rows, view, false, begin, count, out);
}
template <class T>
inline void write_rows(const RowPlan& plan, const TensorView& view, int64_t begin, int64_t count,
                       const T* values) {
  if (view.data != nullptr) copy_out(plan.rows, view, false, begin, count, values);
}

inline TensorView saved_view(const RowSoftmaxCall& call, int index) {
  TensorView view = call.saved;
  if (view.data != nullptr)
    view.data = static_cast<char*>(view.data) + index * call.saved_stride * size_of(view.dtype);
  return view;
}

struct RowCounts {
  int64_t valid = 0;
  double weight = 0.0;  // sum of the targets' class weights

  RowCounts& operator+=(const RowCounts& other) {
    valid += other.valid;
    weight += other.weight;
    return *this;
  }
};

inline int64_t num_row_tasks(const RowPlan& plan) {
  return (plan.num_rows + plan.task_rows - 1) / plan.task_rows;
}

struct RowTotals {
  double main = 0.0, by_row = 0.0;
  RowCounts counts;
  LabelReport report;
};

// Labels and target weights of a block.
template <class T>
RowCounts read_labels(const RowPlan& plan, int64_t begin, int64_t count, RowArrays<T>& rows,
                      LabelReport& report) {
  const RowSoftmaxCall& call = plan.call;
  if (!call.indexed()) {
    std::fill_n(rows.label, count, Label<T>(kNoClass));
    std::fill_n(rows.weight, count, T(0));
    return {count, 0.0};
  }
  const int64_t stride = plan.target.rows.strides[plan.rows.ndim - 1];
  int64_t without_class = 0;
  with_typed_labels(plan.target.rows, [&](const auto* labels) {
    for_each_run(plan.rows, begin, count, [&](const Run& run) {
      const auto* first = labels + offset_of(plan.rows, plan.target.rows, run.index);
      without_class +=
          NumberLoops<T>::copy_labels(first, stride, run.length, call.num_classes,
                                      call.ignore_index, rows.label + run.offset_in_block);
      for (int64_t i = 0; without_class > 0 && !report.bad_label && i < run.length; ++i) {
        const int64_t label = first[i * stride];
        if (label != call.ignore_index && !is_class(label, call.num_classes))
          report = {true, label};
      }
    });
  });
  const T* weights = static_cast<const T*>(call.class_weight);
  RowCounts counts{count - without_class, 0.0};
  if (weights == nullptr) {
    std::fill_n(rows.weight, count, static_cast<T>(call.weight_value));
    counts.weight = static_cast<double>(counts.valid) * call.weight_value;
    return counts;
  }
  for (int64_t i = 0; i < count; ++i) {
    rows.weight[i] = rows.label[i] < 0 ? T(0) : weights[rows.label[i]];
    counts.weight += static_cast<double>(rows.weight[i]);
  }
  return counts;
}

// Calls body(task, begin, end, tools) for tasks of whole blocks; every thread has tools of its own.
template <class Tools, class Plan, class Body>
void for_each_row_task(const Plan& plan, const Threads& threads, const Body& body) {
  threads.run(num_row_tasks(plan), 1, [&](int64_t first, int64_t last) {
    const auto tools = std::make_unique<Tools>(plan);
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task * plan.task_rows;
      const int64_t end = begin + plan.task_rows;
      body(task, begin, end < plan.num_rows ? end : plan.num_rows, *tools);
    }
    if (plan.streams) finish_stream();
  });
}

// Calls body(begin, count) for the blocks of a task.
template <class Body>
inline void for_each_block(const RowPlan& plan, int64_t begin, int64_t end, const Body& body) {
  for (int64_t at = begin; at < end; at += plan.block_rows)
    body(at, end - at < plan.block_rows ? end - at : plan.block_rows);
}

template <class T>
struct LabelTools {
  explicit LabelTools(const RowPlan&) {}
  RowArrays<T> rows{};
};

template <class X, class T>
struct RowTools {
  explicit RowTools(const RowPlan& plan) : walk(plan) {}
  BlockWalk<X, T> walk;
  RowArrays<T> rows{};
};

// Adds up the tasks' slots, in order.
inline RowTotals add_up(const std::vector<RowTotals>& slots) {
  RowTotals total;
  for (const RowTotals& slot : slots) {
    total.main += slot.main;
    total.by_row += slot.by_row;
    total.counts.valid += slot.counts.valid;
    total.counts.weight += slot.counts.weight;
    if (slot.report.bad_label && !total.report.bad_label) total.report = slot.report;
  }
  return total;
}

// Reads the labels alone, before the logits are touched: a mean's divisor, and labels that are
// none.
template <class T>
RowTotals count_labels(const RowPlan& plan, const Threads& threads) {
  std::vector<RowTotals> slots(num_row_tasks(plan));
  for_each_row_task<LabelTools<T>>(
      plan, threads, [&](int64_t task, int64_t begin, int64_t end, LabelTools<T>& tools) {
        RowTotals& slot = slots[task];
        for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
          slot.counts += read_labels(plan, at, count, tools.rows, slot.report);
        });
      });
  return add_up(slots);
}

template <class T>
RowScale<double> divisors(const RowSoftmaxCall& call, const RowCounts& counts) {
  if (call.reduction != Reduction::kMean) return {1.0, 1.0};
  const double rows = static_cast<double>(counts.valid);
  double main = call.weighted_mean ? counts.weight : rows;
  if (call.normalizer_value > 0.0) main = call.normalizer_value;
  if (call.normalizer != nullptr) main = *static_cast<const T*>(call.normalizer);
  return {main, rows};
}

// What is the same for all rows, but for the scale.
template <class T>
RowConstants<T> row_constants(const RowSoftmaxCall& call) {
  RowConstants<T> constants{T(0), T(0), T(0), {T(1), T(1)}};
  if (call.terms == Terms::kUniform) {
    constants.sum_u = static_cast<T>(call.num_classes);
    constants.unit = T(1);
  } else if (call.terms == Terms::kWeights) {
    double sum = 0.0;
    for (int64_t c = 0; c < call.num_classes; ++c)
      sum += static_cast<double>(static_cast<const T*>(call.class_weight)[c]);
    constants.sum_u = static_cast<T>(sum);
    constants.unit_weight = T(1);
  }
  return constants;
}

// How much of `wanted` is left where a gradient already carries `carried`; 1 where that is all,
// also of a divisor of 0.
inline double left_over(double carried, double wanted) {
  return carried == wanted ? 1.0 : carried / wanted;
}

// Writes what backward gets of a block's rows, if anything.
template <Terms kTerms, class Loss, class T>
void save_rows(const RowPlan& plan, const RowConstants<T>& constants, int64_t begin, int64_t count,
               RowArrays<T>& rows) {
  const RowSoftmaxCall& call = plan.call;
  if (call.saved.data == nullptr) return;
  write_rows(plan, saved_view(call, 0), begin, count, rows.max);
  write_rows(plan, saved_view(call, 1), begin, count, rows.rest);
  if (saved_numbers(call.terms, Loss::kGradientNeedsSmooth) < 3) return;
  if (call.indexed()) std::fill_n(rows.sum_u, count, constants.sum_u);
  const bool smooth = !has_weighted_terms(kTerms);
  write_rows(plan, saved_view(call, 2), begin, count, smooth ? rows.smooth : rows.sum_u);
}

template <Terms kTerms, class X, class Loss, class T>
RowTotals forward_task(const RowPlan& plan, const Loss& loss, const RowConstants<T>& constants,
                       int64_t begin, int64_t end, RowTools<X, T>& tools) {
  constexpr bool kHasTarget = kTerms != Terms::kProbabilities;
  const RowSoftmaxCall& call = plan.call;
  const bool with_grad = call.grad.data != nullptr;
  const auto finish =
      with_grad ? finish_rows<kHasTarget, true, Loss, T> : finish_rows<kHasTarget, false, Loss, T>;
  RowArrays<T>& rows = tools.rows;
  RowTotals totals;
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const RowCounts counts = read_labels(plan, at, count, rows, totals.report);
    totals.counts += counts;
    const T* units = tools.walk.units(at, count);
    tools.walk.template sums<kTerms, Loss::kChangesTarget>(at, count, units, with_grad, rows);
    finish(loss, constants, whole_vectors(count), rows);
    totals.main += static_cast<double>(sum_block(rows.main, count));
    totals.by_row += static_cast<double>(sum_block(rows.by_row, count));
    if (call.reduction == Reduction::kNone) {
      for (int64_t i = 0; i < count; ++i) rows.main[i] += rows.by_row[i];
      write_rows(plan, call.loss, at, count, rows.main);
    }
    if (with_grad)
      tools.walk.template gradient<kTerms>(at, count, units, counts.valid < count, rows);
    save_rows<kTerms, Loss>(plan, constants, at, count, rows);
  });
  return totals;
}

// Reads what forward saved of a block's rows.
template <Terms kTerms, class Loss, class T>
void read_saved(const RowPlan& plan, int64_t begin, int64_t count, RowArrays<T>& rows) {
  const RowSoftmaxCall& call = plan.call;
  read_rows(plan, saved_view(call, 0), begin, count, rows.max);
  read_rows(plan, saved_view(call, 1), begin, count, rows.rest);
  T* third = has_weighted_terms(kTerms) ? rows.sum_u : rows.smooth;
  if (third != rows.smooth) std::fill_n(rows.smooth, count, T(0));
  if (saved_numbers(kTerms, Loss::kGradientNeedsSmooth) == 3)
    read_rows(plan, saved_view(call, 2), begin, count, third);
  else
    std::fill_n(third, count, T(0));
}

template <Terms kTerms, class X, class Loss, class T>
void backward_task(const RowPlan& plan, const Loss& loss, const RowConstants<T>& constants,
                   int64_t begin, int64_t end, RowTools<X, T>& tools) {
  const RowSoftmaxCall& call = plan.call;
  RowArrays<T>& rows = tools.rows;
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    LabelReport report;
    const RowCounts counts = read_labels(plan, at, count, rows, report);
    read_rows(plan, call.grad_output, at, count, rows.upstream);
    read_saved<kTerms, Loss>(plan, at, count, rows);
    tools.walk.gather_logits(at, count, rows);
    restore_rows<kTerms != Terms::kProbabilities>(loss, constants, whole_vectors(count), rows);
    const T* units = tools.walk.units(at, count);
    tools.walk.exps(at, count, rows);
    tools.walk.template gradient<kTerms>(at, count, units, counts.valid < count, rows);
  });
}

// Calls f(std::integral_constant<Terms, terms>) with one of the terms that the loss can have.
template <class Loss, class F>
auto with_terms(Terms terms, const F& f) {
  if (terms == Terms::kUniform) return f(std::integral_constant<Terms, Terms::kUniform>{});
  if constexpr (Loss::kHasWeightedTerms) {
    if (terms == Terms::kWeights) return f(std::integral_constant<Terms, Terms::kWeights>{});
    if (terms == Terms::kProbabilities)
      return f(std::integral_constant<Terms, Terms::kProbabilities>{});
  }
  return f(std::integral_constant<Terms, Terms::kNone>{});
}

template <class X, class Loss>
LabelReport forward_rows(const RowSoftmaxCall& given, const Loss& loss, const Threads& threads) {
  using T = typename Loss::value_type;
  const RowPlan plan = plan_rows(given, loss.logit_scale());
  const RowSoftmaxCall& call = plan.call;
  const bool mean = call.reduction == Reduction::kMean;
  RowConstants<T> constants = row_constants<T>(call);

  // The divisor that the gradient is written with; the loss's own scale follows from it. Labels
  // that are none are found before the gradient takes the place of logits.
  RowScale<double> divisor{1.0, 1.0};
  const bool in_place = call.grad.data == call.logits.data;
  RowCounts counts{plan.num_rows, 0.0};
  if (call.indexed() && call.grad.data != nullptr && (mean || in_place)) {
    const RowTotals found = count_labels<T>(plan, threads);
    if (found.report.bad_label) return found.report;
    counts = found.counts;
  }
  if (mean && call.grad.data != nullptr) {
    divisor = divisors<T>(call, counts);
    const double carried = call.prescale ? 1.0 : divisor.main;
    constants.scale = {static_cast<T>(carried / divisor.main),
                       static_cast<T>(carried / divisor.by_row)};
    if (!call.prescale) divisor.main = 1.0;
  }

  std::vector<RowTotals> slots(num_row_tasks(plan));
  with_terms<Loss>(call.terms, [&](auto terms) {
    for_each_row_task<RowTools<X, T>>(
        plan, threads, [&](int64_t task, int64_t begin, int64_t end, RowTools<X, T>& tools) {
          slots[task] = forward_task<terms.value>(plan, loss, constants, begin, end, tools);
        });
  });
  const RowTotals total = add_up(slots);

  const RowScale<double> truth = divisors<T>(call, total.counts);
  const bool nothing = mean && total.counts.valid == 0;
  const bool zero = nothing && call.nothing_is_zero;
  const double by_row = total.by_row == 0.0 && !nothing ? 0.0 : total.by_row / truth.by_row;
  if (call.reduction != Reduction::kNone)
    *static_cast<T*>(call.loss.data) =
        static_cast<T>(zero ? 0.0 : total.main / truth.main + by_row);
  T* scale = static_cast<T*>(call.scale);
  scale[0] = static_cast<T>(nothing ? 0.0 : left_over(divisor.main, truth.main));
  scale[1] = static_cast<T>(nothing ? 0.0 : left_over(divisor.by_row, truth.by_row));
  return total.report;
}

template <class X, class Loss>
void backward_rows(const RowSoftmaxCall& given, const Loss& loss, const Threads& threads) {
  using T = typename Loss::value_type;
  const RowPlan plan = plan_rows(given, loss.logit_scale());
  RowConstants<T> constants = row_constants<T>(plan.call);
  const T* scale = static_cast<const T*>(plan.call.scale);
  constants.scale = {scale[0], scale[1]};
  with_terms<Loss>(plan.call.terms, [&](auto terms) {
    for_each_row_task<RowTools<X, T>>(
        plan, threads, [&](int64_t, int64_t begin, int64_t end, RowTools<X, T>& tools) {
          backward_task<terms.value>(plan, loss, constants, begin, end, tools);
        });
  });
}

// `with_loss(T, run)` calls run(loss) with the functor for accumulators of T's type.
template <class WithLoss>
LabelReport row_softmax_forward(const RowSoftmaxCall& call, const WithLoss& with_loss,
                                const Threads& threads) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    return with_loss(Accumulator<X>{},
                     [&](const auto& loss) { return forward_rows<X>(call, loss, threads); });
  });
}

template <class WithLoss>
void row_softmax_backward(const RowSoftmaxCall& call, const WithLoss& with_loss,
                          const Threads& threads) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    with_loss(Accumulator<X>{}, [&](const auto& loss) { backward_rows<X>(call, loss, threads); });
  });
}

}  // namespace fusedloss::cpu
