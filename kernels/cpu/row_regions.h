// Regions over rows of a softmax on the CPU, with any functor of ../core/row_softmax.h joined.
//
// The row-softmax engine's tasks, blocks and walks (row_softmax.h) with two steps more. Forward:
// once a block's exponentials and row sums are at hand, each class's p and p t are summed over the
// stretches of rows that belong to one group. Backward: exponentials times h (../core/region.h) are
// summed for each row, whose coefficients then join those of the functor; one loop writes both
// gradients. So the logits leave memory once a pass, whether or not something is joined.
//
// Forward may begin the gradient: it leaves the exponentials in the gradient's memory, and backward
// reads those in the logits' place (RegionCall::begun).
#pragma once

#include "../loss/joined.h"
#include "region_few.h"
#include "region_loops.h"
#include "region_sums.h"
#include "row_softmax.h"

namespace fusedloss::cpu {

struct RegionPlan : RowPlan {
  RegionCall regions;  // its index by rows
  bool few_classes;    // region_few.h serves
};

// Whether a forward leaves its exponentials for backward.
inline bool begins_gradient(const RowPlan& plan) { return plan.call.grad.data != nullptr; }

inline RegionPlan plan_regions(const RowSoftmaxCall& call, RegionCall regions) {
  RegionPlan plan{};
  static_cast<RowPlan&>(plan) = plan_rows(call, 1.0, &regions.index);
  plan.regions = regions;
  const int64_t classes = plan.call.num_classes;
  plan.few_classes = plan.along_rows && !regions.squared && classes >= kFewestClasses &&
                     classes <= kFewClassesInRegisters;
  return plan;
}

// Neighbouring rows of a block that belong to one group.
struct GroupRun {
  int64_t first_region, begin, count;
};

// The stretches of rows [begin, begin + count) into `runs`.
inline void find_groups(const RegionPlan& plan, int64_t begin, int64_t count,
                        std::vector<GroupRun>& runs) {
  const TensorView& index = plan.regions.index;
  const int64_t stride = index.strides[plan.rows.ndim - 1];
  runs.clear();
  const auto append = [&](int64_t region, int64_t at, int64_t length) {
    if (!runs.empty() && runs.back().first_region == region)
      runs.back().count += length;
    else
      runs.push_back({region, at, length});
  };
  for_each_run(plan.rows, begin, count, [&](const Run& run) {
    const int64_t region = offset_of(plan.rows, index, run.index);
    if (stride == 0) return append(region, run.offset_in_block, run.length);
    for (int64_t i = 0; i < run.length; ++i)
      append(region + i * stride, run.offset_in_block + i, 1);
  });
}

// The buffers of one thread.
template <class X, class T>
struct RegionTools {
  explicit RegionTools(const RegionPlan& plan)
      : walk(plan),
        table(plan.regions, plan.call.num_classes),
        power(plan.regions.squared),
        ones(static_cast<size_t>(plan.call.num_classes), T(1)),
        sums(static_cast<size_t>(3 * plan.call.num_classes)) {
    const RowSoftmaxCall& call = plan.call;
    // Else the units are the targets.
    const bool changed = call.target_share != 1.0 || call.uniform_share != 0.0;
    if (!call.indexed() && (changed || call.class_weight != nullptr))
      targets.resize(static_cast<size_t>(plan.block_rows * call.num_classes));
  }

  // Targets of every class as they are, where there are such.
  const T* read_targets(const RegionPlan& plan, int64_t begin, int64_t count, const T* units) {
    if (plan.call.indexed() || targets.empty()) return units;
    copy_block_in(plan, plan.target, begin, count, targets.data(), walk.step(), walk.row_step());
    return targets.data();
  }

  // The slopes of a group.
  RegionTable<T> load(const GroupRun& run) {
    table.load(run.first_region);
    finite = finite && table.finite();
    return {table.overlap(), table.linear(), table.quadratic()};
  }

  // Exponentials of a block along the rows: class c of row i at data + c * step + i.
  struct Exps {
    const T* data;
    int64_t step;
  };

  BlockWalk<X, T> walk;
  RowArrays<T> rows{};
  RegionRows<T> own{};
  bool finite = true;  // the slopes loaded since it was set
  SlopeTable<T> table;
  RegionPower<T> power;
  std::vector<T> ones, sums, targets;
  std::vector<GroupRun> groups;
};

// Adds the rows of one group, walked along the classes, to its sums.
template <bool kHasTarget, class X, class T>
void add_rows(const RegionPlan& plan, const GroupRun& run, const T* exps, const T* targets,
              RegionTools<X, T>& tools, RegionSums* sums) {
  const int64_t classes = plan.call.num_classes;
  T *overlap = tools.sums.data(), *mass = overlap + classes, *truth = mass + classes;
  std::fill(tools.sums.begin(), tools.sums.end(), T(0));
  for (int64_t i = run.begin; i < run.begin + run.count; ++i) {
    const T* e = exps + i * classes;
    const T share = tools.own.share[i];
    if constexpr (kHasTarget) {
      const int64_t label = tools.rows.label[i];
      if (label < 0) continue;
      RegionLoops<T>::row_sums(e, classes, share, tools.power, mass);
      overlap[label] += e[label] * share;
      truth[label] += T(1);
    } else {
      RegionLoops<T>::row_soft_sums(e, targets + i * classes, classes, share, tools.power, overlap,
                                    mass, truth);
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    sums[c].overlap += static_cast<double>(overlap[c]);
    sums[c].mass += static_cast<double>(mass[c]);
    sums[c].truth += static_cast<double>(truth[c]);
  }
}

// Adds a block, whose exponentials and row sums are at hand, to the sums of its regions. With a
// place for them, `kept`, the others' exponentials of a block along the rows are left there.
template <bool kHasTarget, class X, class T>
void add_block(const RegionPlan& plan, int64_t begin, int64_t count, bool any_ignored,
               const T* targets, RegionTools<X, T>& tools, RegionRecords& records, T* kept,
               int64_t kept_step) {
  const int64_t classes = plan.call.num_classes, step = tools.walk.step();
  const RowArrays<T>& rows = tools.rows;
  T* exps = tools.walk.exps();
  if (plan.along_rows && any_ignored && any_ignored_nan(rows.label, rows.rest, count))
    pixels_clear_ignored<T, T>(rows.label, classes, count, exps, step);
  RegionLoops<T>::shares(rows.label, kHasTarget, rows.rest, whole_vectors(count), tools.own.share);
  find_groups(plan, begin, count, tools.groups);
  for (const GroupRun& run : tools.groups) {
    RegionSums* sums = records.at(run.first_region);
    const T* share = tools.own.share + run.begin;
    if (!plan.along_rows)
      add_rows<kHasTarget>(plan, run, exps, targets, tools, sums);
    else if constexpr (kHasTarget)
      RegionLoops<T>::pixels_sums(exps + run.begin, step, classes, run.count,
                                  rows.label + run.begin, share, tools.power, sums,
                                  kept == nullptr ? nullptr : kept + run.begin, kept_step);
    else
      RegionLoops<T>::pixels_soft_sums(exps + run.begin, targets + run.begin, step, classes,
                                       run.count, share, tools.power, sums);
  }
}

// The same where a gradient is begun: leaves the exponentials where it will be, 0 for the label's.
template <bool kHasTarget, class X, class T>
void add_and_begin(const RegionPlan& plan, int64_t begin, int64_t count, bool any_ignored,
                   const T* targets, RegionTools<X, T>& tools, RegionRecords& records) {
  const auto add = [&](T* kept, int64_t step) {
    add_block<kHasTarget>(plan, begin, count, any_ignored, targets, tools, records, kept, step);
  };
  if constexpr (std::is_same_v<X, T>) {
    if (plan.along_rows && kHasTarget)
      return tools.walk.write_along_rows(begin, count, false, tools.rows,
                                         [&](const T*, T* out, int64_t step) { add(out, step); });
    add(nullptr, 0);
    T* exps = tools.walk.exps();
    const int64_t classes = plan.call.num_classes;
    for (int64_t i = 0; kHasTarget && i < count; ++i)
      if (tools.rows.label[i] >= 0) exps[i * classes + tools.rows.label[i]] = T(0);
    copy_block_out(plan, plan.grad, begin, count, exps, tools.walk.step(), tools.walk.row_step());
  }
}

// Asks for the next block's numbers of one tensor with an entry a row, while this one is at work.
// Where classes are few these are as much memory as the logits.
inline void prefetch_rows(const RegionPlan& plan, const TensorView& view, int64_t begin) {
  const int64_t count = std::min(plan.num_rows - begin, plan.block_rows);
  if (count <= 0 || view.data == nullptr || view.strides[plan.rows.ndim - 1] != 1) return;
  const int64_t size = size_of(view.dtype);
  const char* data = static_cast<const char*>(view.data);
  prefetch(data + offset_of_row(plan.rows, view, begin) * size, count * size);
}

// Statistics of a block of few classes; its exponentials stay in the buffer.
template <class X, class T>
void few_statistics(const RegionPlan& plan, int64_t begin, int64_t count,
                    RegionTools<X, T>& tools) {
  RowArrays<T>& rows = tools.rows;
  with_few_classes(plan.call.num_classes, [&](auto classes) {
    with_few_logits<T>(tools.walk, begin, count, classes, [&](const T* x, int64_t step) {
      few_exps<classes.value>(x, step, count, rows.label, rows.max, rows.others, rows.logit,
                              tools.walk.exps(), tools.walk.step());
    });
  });
}

// The gradient of such a block.
template <class X, class Loss, class T>
void few_backward(const RegionPlan& plan, const Loss& loss, const RowScale<T> scale, int64_t begin,
                  int64_t count, RegionTools<X, T>& tools) {
  const RowArrays<T>& rows = tools.rows;
  with_few_classes(plan.call.num_classes, [&](auto classes) {
    const auto loop = plan.regions.begun ? few_gradient<classes.value, true, T, Loss>
                                         : few_gradient<classes.value, false, T, Loss>;
    const auto write = [&](const T* x, int64_t step, T* out, int64_t out_step) {
      for (const GroupRun& run : tools.groups) {
        const int64_t at = run.begin;
        loop(loss, scale, tools.load(run), x + at, step, run.count, rows.label + at,
             rows.weight + at, rows.max + at, rows.rest + at, out + at, out_step);
      }
    };
    with_few_logits<T>(tools.walk, begin, count, classes, [&](const T* x, int64_t step) {
      tools.walk.write_along_rows(
          begin, count, false, rows, [&](const T*, X* out, int64_t out_step) {
            if constexpr (std::is_same_v<X, T>) {
              write(x, step, out, out_step);
            } else {
              T* block = tools.walk.exps();
              write(x, step, block, step);
              for (int64_t c = 0; c < classes; ++c)
                convert_out(block + c * step, count, out + c * out_step, int64_t{1});
            }
          });
    });
  });
}

template <Terms kTerms, class X, class Loss, class T>
RowTotals region_forward_task(const RegionPlan& plan, const Loss& loss,
                              const RowConstants<T>& constants, int64_t begin, int64_t end,
                              RegionTools<X, T>& tools, RegionRecords& records) {
  constexpr bool kHasTarget = kTerms != Terms::kProbabilities;
  RowArrays<T>& rows = tools.rows;
  RowTotals totals;
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const RowCounts counts = read_labels(plan, at, count, rows, totals.report);
    totals.counts += counts;
    if (kHasTarget) prefetch_rows(plan, plan.target.rows, at + count);
    const T* units = tools.walk.units(at, count);
    const bool few = kTerms == Terms::kNone && sizeof(T) == sizeof(float) && plan.few_classes;
    if (few)
      few_statistics(plan, at, count, tools);
    else
      tools.walk.template sums<kTerms, false>(at, count, units, true, rows);
    finish_rows<kHasTarget, false>(loss, constants, whole_vectors(count), rows);
    totals.main += static_cast<double>(sum_block(rows.main, count));
    const T* targets = tools.read_targets(plan, at, count, units);
    const bool any_ignored = counts.valid < count;
    if (begins_gradient(plan)) {
      for (int64_t i = 0; kHasTarget && i < count; ++i) rows.max[i] = rows.logit[i] - rows.max[i];
      add_and_begin<kHasTarget>(plan, at, count, any_ignored, targets, tools, records);
    } else {
      T* nowhere = nullptr;
      add_block<kHasTarget>(plan, at, count, any_ignored, targets, tools, records, nowhere, 0);
    }
    save_rows<kTerms, Loss>(plan, constants, at, count, rows);
  });
  return totals;
}

// The exponentials of a block along the rows, the sums of e h, and the labels' h and logits.
template <bool kHasTarget, class X, class T>
typename RegionTools<X, T>::Exps exps_along_rows(const RegionPlan& plan, int64_t begin,
                                                 int64_t count, const T* targets,
                                                 RegionTools<X, T>& tools) {
  const int64_t classes = plan.call.num_classes, step = tools.walk.step();
  RowArrays<T>& rows = tools.rows;
  RegionRows<T>& own = tools.own;
  typename RegionTools<X, T>::Exps found{tools.walk.exps(), step};
  tools.walk.with_block(begin, count, [&](NextBlock next, const auto* x, int64_t x_step) {
    using From = std::remove_cv_t<std::remove_pointer_t<decltype(x)>>;
    if constexpr (std::is_same_v<From, T>) {
      if (plan.regions.begun) found = {x, x_step};
    }
    for (const GroupRun& run : tools.groups) {
      const int64_t at = run.begin;
      T* exps = tools.walk.exps() + at;
      const RegionTable<T> table = tools.load(run);
      if (plan.regions.begun && kHasTarget)
        RegionLoops<T>::pixels_dots(next, found.data + at, found.step, classes, run.count, table,
                                    plan.regions.squared, own.share + at, own.dots + at);
      else if (plan.regions.begun)
        RegionLoops<T>::pixels_soft_dots(next, found.data + at, found.step, targets + at, step,
                                         classes, run.count, table, own.share + at, own.dots + at);
      else if constexpr (kHasTarget)
        RegionExpLoops<From>::pixels(next, x + at, x_step, classes, run.count, rows.label + at,
                                     table, plan.regions.squared, rows.max + at, own.share + at,
                                     exps, step, rows.logit + at, own.dots + at);
      else
        RegionExpLoops<From>::pixels_soft(next, x + at, x_step, targets + at, classes, run.count,
                                          table, rows.max + at, own.share + at, exps, step,
                                          own.dots + at);
      if (kHasTarget)
        RegionLoops<T>::own_slopes(rows.label + at, rows.logit + at, rows.max + at, table,
                                   run.count, own.share + at, own.h + at);
      next = NextBlock{};
    }
  });
  return found;
}

// The same along the classes.
template <bool kHasTarget, class X, class T>
void exps_along_classes(const RegionPlan& plan, int64_t begin, int64_t count, const T* targets,
                        RegionTools<X, T>& tools) {
  constexpr int64_t kChunk = 4096;  // float sums this short lose nothing
  const int64_t classes = plan.call.num_classes;
  RowArrays<T>& rows = tools.rows;
  RegionRows<T>& own = tools.own;
  if (plan.regions.begun) {
    copy_block_in(plan, plan.logits, begin, count, tools.walk.exps(), tools.walk.step(),
                  tools.walk.row_step());
  } else {
    tools.walk.gather_logits(begin, count, rows);
    tools.walk.exps(begin, count, rows);
  }
  for (const GroupRun& run : tools.groups) {
    const RegionTable<T> table = tools.load(run);
    if (kHasTarget)
      RegionLoops<T>::own_slopes(rows.label + run.begin, rows.logit + run.begin,
                                 rows.max + run.begin, table, run.count, own.share + run.begin,
                                 own.h + run.begin);
    for (int64_t i = run.begin; i < run.begin + run.count; ++i) {
      const T* exps = tools.walk.exps() + i * classes;
      const int64_t label = rows.label[i];
      double dot = 0.0;
      for (int64_t c = 0; c < classes; c += kChunk) {
        const int64_t length = std::min(kChunk, classes - c);
        const RegionTable<T> part{table.overlap + c, table.linear + c, table.quadratic + c};
        if constexpr (kHasTarget)
          dot += RegionLoops<T>::row_dot(exps + c, length, static_cast<Label<T>>(label - c), part,
                                         own.share[i]);
        else
          dot += RegionLoops<T>::row_soft_dot(exps + c, targets + i * classes + c, length, part,
                                              own.share[i]);
      }
      own.dots[i] = static_cast<T>(dot);
    }
  }
}

// Writes a block's gradient along the rows.
template <bool kHasTarget, class X, class T>
void write_pixels(const RegionPlan& plan, int64_t begin, int64_t count, bool any_ignored,
                  typename RegionTools<X, T>::Exps exps, const T* targets, const T* units,
                  RegionTools<X, T>& tools) {
  const int64_t classes = plan.call.num_classes, step = tools.walk.step();
  const RowArrays<T>& rows = tools.rows;
  const RegionRows<T>& own = tools.own;
  const bool clear =
      any_ignored && (!tools.finite || any_ignored_nan(rows.label, rows.rest, count));
  const bool has_terms = plan.call.terms != Terms::kNone;
  const auto write = [&](const T*, X* out, int64_t out_step) {
    for (const GroupRun& run : tools.groups) {
      const int64_t at = run.begin;
      const RegionTable<T> table = tools.load(run);
      if constexpr (kHasTarget)
        RegionGradientLoops<X>::pixels(exps.data + at, exps.step, classes, run.count,
                                       rows.label + at, table, plan.regions.squared,
                                       has_terms ? units : nullptr, own.share + at, own.base + at,
                                       rows.slope + at, own.own + at, out + at, out_step);
      else
        RegionGradientLoops<X>::pixels_soft(exps.data + at, exps.step, targets + at, units + at,
                                            step, classes, run.count, table, own.share + at,
                                            own.base + at, rows.slope + at, out + at, out_step);
    }
  };
  tools.walk.write_along_rows(begin, count, clear, rows, write);
}

// The same along the classes.
template <bool kHasTarget, class X, class T>
void write_rows_of_classes(const RegionPlan& plan, int64_t begin, int64_t count, const T* targets,
                           const T* units, RegionTools<X, T>& tools) {
  const int64_t classes = plan.call.num_classes;
  const RowArrays<T>& rows = tools.rows;
  const RegionRows<T>& own = tools.own;
  size_t group = 0;
  tools.walk.write_along_classes(begin, count, rows, [&](int64_t i, const T* exps, X* out) {
    while (i >= tools.groups[group].begin + tools.groups[group].count) ++group;
    const RegionTable<T> table = tools.load(tools.groups[group]);
    if constexpr (kHasTarget) {
      RegionGradientLoops<X>::row(exps, classes, table, units, own.share[i], own.base[i],
                                  rows.slope[i], out);
      out[rows.label[i]] = from<X>(own.own[i]);
    } else {
      RegionGradientLoops<X>::row_soft(exps, targets + i * classes, units + i * classes, classes,
                                       table, own.share[i], own.base[i], rows.slope[i], out);
    }
  });
}

template <Terms kTerms, class X, class Loss, class T>
void region_backward_task(const RegionPlan& plan, const Loss& loss,
                          const RowConstants<T>& constants, int64_t begin, int64_t end,
                          RegionTools<X, T>& tools) {
  constexpr bool kHasTarget = kTerms != Terms::kProbabilities;
  RowArrays<T>& rows = tools.rows;
  RegionRows<T>& own = tools.own;
  // The incoming gradient is in the scale: what is joined has one for all rows.
  std::fill_n(rows.upstream, RowArrays<T>::kRows, T(1));
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const int64_t whole = whole_vectors(count);
    LabelReport report;
    const RowCounts counts = read_labels(plan, at, count, rows, report);
    read_saved<kTerms, Loss>(plan, at, count, rows);
    const bool few = kTerms == Terms::kNone && kCanBeFew<T, Loss> && plan.few_classes;
    if (plan.regions.begun && !few) {
      std::copy_n(rows.max, count, rows.logit);
      std::fill_n(rows.max, count, T(0));
    }
    if (kHasTarget) prefetch_rows(plan, plan.target.rows, at + count);
    prefetch_rows(plan, saved_view(plan.call, 0), at + count);
    prefetch_rows(plan, saved_view(plan.call, 1), at + count);
    if constexpr (kTerms == Terms::kNone && kCanBeFew<T, Loss>) {
      if (few) {
        find_groups(plan, at, count, tools.groups);
        return few_backward(plan, loss, constants.scale, at, count, tools);
      }
    }
    const T* units = tools.walk.units(at, count);
    const T* targets = tools.read_targets(plan, at, count, units);
    if (kHasTarget && kTerms != Terms::kWeights) units = tools.ones.data();
    RegionLoops<T>::shares(rows.label, kHasTarget, rows.rest, whole, own.share);
    find_groups(plan, at, count, tools.groups);
    tools.finite = true;
    typename RegionTools<X, T>::Exps exps{};
    if (plan.along_rows)
      exps = exps_along_rows<kHasTarget>(plan, at, count, targets, tools);
    else
      exps_along_classes<kHasTarget>(plan, at, count, targets, tools);
    restore_rows<kHasTarget>(loss, constants, whole, rows);
    if constexpr (kHasTarget)
      RegionLoops<T>::coefficients(rows.label, rows.logit, rows.max, rows.rest, rows.softmax,
                                   rows.target, whole, own.share, own.dots, own.h, own.base,
                                   own.own);
    else
      RegionLoops<T>::soft_coefficients(rows.softmax, whole, own.share, own.dots, own.base);
    if (plan.along_rows)
      write_pixels<kHasTarget>(plan, at, count, counts.valid < count, exps, targets, units, tools);
    else
      write_rows_of_classes<kHasTarget>(plan, at, count, targets, units, tools);
  });
}

// Calls f(std::integral_constant<Terms, terms>) with one of the terms that can be.
template <class Loss, class F>
void with_region_terms(Terms terms, const F& f) {
  if constexpr (std::is_same_v<Loss, NoRowLoss<typename Loss::value_type>>) {
    if (terms == Terms::kProbabilities)
      return f(std::integral_constant<Terms, Terms::kProbabilities>{});
    return f(std::integral_constant<Terms, Terms::kNone>{});
  } else {
    return with_terms<Loss>(terms, f);
  }
}

template <class X, class Loss>
LabelReport forward_regions(const RowSoftmaxCall& given, const RegionCall& regions,
                            const Loss& loss, const Threads& threads) {
  using T = typename Loss::value_type;
  const RegionPlan plan = plan_regions(given, regions);
  const RowConstants<T> constants = row_constants<T>(plan.call);
  std::vector<RowTotals> slots(num_row_tasks(plan));
  std::vector<RegionRecords> records(slots.size(), RegionRecords(plan.call.num_classes));
  with_region_terms<Loss>(plan.call.terms, [&](auto terms) {
    for_each_row_task<RegionTools<X, T>>(
        plan, threads, [&](int64_t task, int64_t begin, int64_t end, RegionTools<X, T>& tools) {
          slots[task] = region_forward_task<terms.value>(plan, loss, constants, begin, end, tools,
                                                         records[task]);
        });
  });
  const RowTotals total = add_up(slots);
  const double divisor = divisors<T>(plan.call, total.counts).main;
  const bool nothing = total.counts.valid == 0;
  T* scale = static_cast<T*>(plan.call.scale);
  scale[0] = scale[1] = static_cast<T>(nothing ? 0.0 : regions.joined_factor / divisor);
  finish_regions<T>(regions, add_up(regions, records), nothing ? 0.0 : total.main / divisor);
  return total.report;
}

template <class X, class Loss>
void backward_regions(const RowSoftmaxCall& given, const RegionCall& regions, const Loss& loss,
                      const Threads& threads) {
  using T = typename Loss::value_type;
  const RegionPlan plan = plan_regions(given, regions);
  RowConstants<T> constants = row_constants<T>(plan.call);
  if (regions.joined) {
    const T upstream = *static_cast<const T*>(regions.upstream);
    const T* scale = static_cast<const T*>(plan.call.scale);
    constants.scale = {scale[0] * upstream, scale[1] * upstream};
  }
  with_region_terms<Loss>(plan.call.terms, [&](auto terms) {
    for_each_row_task<RegionTools<X, T>>(
        plan, threads, [&](int64_t, int64_t begin, int64_t end, RegionTools<X, T>& tools) {
          region_backward_task<terms.value>(plan, loss, constants, begin, end, tools);
        });
  });
}

}  // namespace fusedloss::cpu
