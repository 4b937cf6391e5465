// Regions over rows of a softmax on the CPU, with any functor of ../core/row_softmax.h joined.
//
// The row-softmax engine's tasks, blocks and walks (row_softmax.h) with two steps more. Forward:
// once a block's exponentials and row sums are at hand, each class's p and p t are summed over the
// stretches of rows that belong to one group. Backward: exponentials times h (../core/region.h) are
// summed for each row, whose coefficients then join those of the functor; one loop writes both
// gradients. So the logits leave memory once a pass, whether or not something is joined.
#pragma once

#include "../loss/joined.h"
#include "region_loops.h"
#include "region_sums.h"
#include "row_softmax.h"

namespace fusedloss::cpu {

struct RegionPlan : RowPlan {
  RegionCall regions;  // its index by rows
};

inline RegionPlan plan_regions(const RowSoftmaxCall& call, RegionCall regions) {
  RegionPlan plan{};
  static_cast<RowPlan&>(plan) = plan_rows(call, 1.0, &regions.index);
  plan.regions = regions;
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

  BlockWalk<X, T> walk;
  RowArrays<T> rows{};
  RegionRows<T> own{};
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

// Adds a block, whose exponentials and row sums are at hand, to the sums of its regions.
template <bool kHasTarget, class X, class T>
void add_block(const RegionPlan& plan, int64_t begin, int64_t count, bool any_ignored,
               const T* targets, RegionTools<X, T>& tools, RegionRecords& records) {
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
                                  rows.label + run.begin, share, tools.power, sums);
    else
      RegionLoops<T>::pixels_soft_sums(exps + run.begin, targets + run.begin, step, classes,
                                       run.count, share, tools.power, sums);
  }
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
    const T* units = tools.walk.units(at, count);
    tools.walk.template sums<kTerms, false>(at, count, units, true, rows);
    finish_rows<kHasTarget, false>(loss, constants, whole_vectors(count), rows);
    totals.main += static_cast<double>(sum_block(rows.main, count));
    save_rows<kTerms, Loss>(plan, constants, at, count, rows);
    add_block<kHasTarget>(plan, at, count, counts.valid < count,
                          tools.read_targets(plan, at, count, units), tools, records);
  });
  return totals;
}

// The sums of e h over one stretch of rows, and the rows' coefficients from them.
template <bool kHasTarget, class X, class T>
void prepare_rows(const RegionPlan& plan, const GroupRun& run, const T* exps, const T* targets,
                  RegionTools<X, T>& tools) {
  constexpr int64_t kChunk = 4096;  // float sums this short lose nothing
  const int64_t classes = plan.call.num_classes, step = tools.walk.step(), at = run.begin;
  const RegionTable<T> table{tools.table.overlap(), tools.table.linear(), tools.table.quadratic()};
  const RowArrays<T>& rows = tools.rows;
  RegionRows<T>& own = tools.own;
  const auto row_dot = [&](int64_t i) {
    double dot = 0.0;
    for (int64_t c = 0; c < classes; c += kChunk) {
      const int64_t length = std::min(kChunk, classes - c);
      const RegionTable<T> part{table.overlap + c, table.linear + c, table.quadratic + c};
      const T* e = exps + i * classes + c;
      if constexpr (kHasTarget)
        dot += RegionLoops<T>::row_dot(e, length, static_cast<Label<T>>(rows.label[i] - c), part,
                                       own.share[i]);
      else
        dot +=
            RegionLoops<T>::row_soft_dot(e, targets + i * classes + c, length, part, own.share[i]);
    }
    return static_cast<T>(dot);
  };
  if (!plan.along_rows)
    for (int64_t i = at; i < at + run.count; ++i) own.dots[i] = row_dot(i);
  else if constexpr (kHasTarget)
    RegionLoops<T>::pixels_dots(exps + at, step, classes, run.count, rows.label + at, table,
                                own.share + at, own.dots + at);
  else
    RegionLoops<T>::pixels_soft_dots(exps + at, targets + at, step, classes, run.count, table,
                                     own.share + at, own.dots + at);
  if constexpr (kHasTarget)
    RegionLoops<T>::coefficients(rows.label + at, rows.logit + at, rows.max + at, rows.rest + at,
                                 rows.softmax + at, rows.target + at, table, run.count,
                                 own.share + at, own.dots + at, own.base + at, own.own + at);
  else
    RegionLoops<T>::soft_coefficients(rows.softmax + at, run.count, own.share + at, own.dots + at,
                                      own.base + at);
}

// Writes the gradient of one stretch, along the rows.
template <bool kHasTarget, class X, class T>
void write_pixels(const RegionPlan& plan, const GroupRun& run, const T* exps, const T* targets,
                  const T* units, const RegionTools<X, T>& tools, int64_t step, X* out,
                  int64_t out_step) {
  const int64_t classes = plan.call.num_classes, at = run.begin;
  const RegionTable<T> table{tools.table.overlap(), tools.table.linear(), tools.table.quadratic()};
  const RowArrays<T>& rows = tools.rows;
  const RegionRows<T>& own = tools.own;
  if constexpr (kHasTarget)
    RegionGradientLoops<X>::pixels(exps + at, step, classes, run.count, rows.label + at, table,
                                   units, own.share + at, own.base + at, rows.slope + at,
                                   own.own + at, out + at, out_step);
  else
    RegionGradientLoops<X>::pixels_soft(exps + at, targets + at, units + at, step, classes,
                                        run.count, table, own.share + at, own.base + at,
                                        rows.slope + at, out + at, out_step);
}

// A block's gradient from its exponentials.
template <bool kHasTarget, class X, class T>
void write_block(const RegionPlan& plan, int64_t begin, int64_t count, bool any_ignored,
                 const T* targets, const T* units, RegionTools<X, T>& tools) {
  const int64_t classes = plan.call.num_classes;
  const RowArrays<T>& rows = tools.rows;
  const RegionRows<T>& own = tools.own;
  bool finite = true;
  RegionLoops<T>::shares(rows.label, kHasTarget, rows.rest, whole_vectors(count), tools.own.share);
  find_groups(plan, begin, count, tools.groups);
  for (const GroupRun& run : tools.groups) {
    tools.table.load(run.first_region);
    finite = finite && tools.table.finite();
    prepare_rows<kHasTarget>(plan, run, tools.walk.exps(), targets, tools);
  }
  if (plan.along_rows) {
    const bool clear = any_ignored && (!finite || any_ignored_nan(rows.label, rows.rest, count));
    const int64_t step = tools.walk.step();
    tools.walk.write_along_rows(
        begin, count, clear, rows, [&](const T* exps, X* out, int64_t out_step) {
          for (const GroupRun& run : tools.groups) {
            tools.table.load(run.first_region);
            write_pixels<kHasTarget>(plan, run, exps, targets, units, tools, step, out, out_step);
          }
        });
    return;
  }
  size_t group = 0;
  tools.walk.write_along_classes(begin, count, rows, [&](int64_t i, const T* exps, X* out) {
    while (i >= tools.groups[group].begin + tools.groups[group].count) ++group;
    tools.table.load(tools.groups[group].first_region);
    const RegionTable<T> table{tools.table.overlap(), tools.table.linear(),
                               tools.table.quadratic()};
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
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    LabelReport report;
    const RowCounts counts = read_labels(plan, at, count, rows, report);
    // The incoming gradient is in the scale: what is joined has one for all rows.
    std::fill_n(rows.upstream, whole_vectors(count), T(1));
    restore_block<kTerms>(plan, loss, constants, at, count, tools.walk, rows);
    const T* units = tools.walk.units(at, count);
    const T* targets = tools.read_targets(plan, at, count, units);
    if (kHasTarget && kTerms != Terms::kWeights) units = tools.ones.data();
    tools.walk.exps(at, count, rows);
    write_block<kHasTarget>(plan, at, count, counts.valid < count, targets, units, tools);
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
