// Regions over rows of a softmax on the CPU: the forward pass. See row_regions.h.
#pragma once

#include "row_regions_plan.h"

namespace fusedloss::cpu {

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

// Adds a block of few classes to the sums of its regions and leaves what backward needs of it.
inline void few_add_and_begin(const RegionPlan& plan, int64_t begin, int64_t count,
                              RegionTools<float, float>& tools, RegionRecords& records) {
  const RowArrays<float>& rows = tools.rows;
  find_groups(plan, begin, count, tools.groups);
  with_few_classes(plan.call.num_classes, [&](auto classes) {
    tools.walk.write_along_rows(
        begin, count, false, rows, [&](const float* exps, float* out, int64_t out_step) {
          for (const GroupRun& run : tools.groups) {
            const int64_t at = run.begin;
            few_begin<classes.value>(exps + at, tools.walk.step(), run.count, rows.label + at,
                                     rows.max + at, rows.logit + at, rows.rest + at,
                                     tools.own.share, records.at(run.first_region), out + at,
                                     out_step);
          }
        });
  });
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
    if constexpr (kCanHoldAll<kTerms, X, Loss>) {
      if (plan.few_classes && begins_gradient(plan))
        return few_add_and_begin(plan, at, count, tools, records);
    }
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

}  // namespace fusedloss::cpu
