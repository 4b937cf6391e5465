// Regions over rows of a softmax on the CPU: the backward pass. See row_regions.h.
#pragma once

#include "row_regions_plan.h"

namespace fusedloss::cpu {

// The gradient of a block of few classes.
template <class X, class Loss, class T>
void few_backward(const RegionPlan& plan, const Loss& loss, const RowScale<T> scale, int64_t begin,
                  int64_t count, RegionTools<X, T>& tools) {
  const RowArrays<T>& rows = tools.rows;
  with_few_classes(plan.call.num_classes, [&](auto classes) {
    const auto write = [&](const T* x, int64_t step, T* out, int64_t out_step) {
      for (const GroupRun& run : tools.groups) {
        const int64_t at = run.begin;
        few_gradient<classes.value>(loss, scale, tools.load(run), x + at, step, run.count,
                                    rows.label + at, rows.weight + at, rows.max + at,
                                    rows.rest + at, out + at, out_step);
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

// The same from all that forward left of it.
template <class Loss>
void few_finish_block(const RegionPlan& plan, const Loss& loss, const RowScale<float> scale,
                      int64_t begin, int64_t count, RegionTools<float, float>& tools) {
  const RowArrays<float>& rows = tools.rows;
  find_groups(plan, begin, count, tools.groups);
  with_few_classes(plan.call.num_classes, [&](auto classes) {
    with_few_logits<float>(tools.walk, begin, count, classes, [&](const float* x, int64_t step) {
      tools.walk.write_along_rows(
          begin, count, false, rows, [&](const float*, float* out, int64_t out_step) {
            for (const GroupRun& run : tools.groups)
              few_finish<classes.value>(loss, scale, tools.load(run), x + run.begin, step,
                                        run.count, tools.class_weights.data(), out + run.begin,
                                        out_step);
          });
    });
  });
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
  if constexpr (kCanHoldAll<kTerms, X, Loss>) {
    if (plan.few_classes && plan.regions.begun)
      return for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
        few_finish_block(plan, loss, constants.scale, at, count, tools);
      });
  }
  for_each_block(plan, begin, end, [&](int64_t at, int64_t count) {
    const int64_t whole = whole_vectors(count);
    LabelReport report;
    const RowCounts counts = read_labels(plan, at, count, rows, report);
    read_saved<kTerms, Loss>(plan, at, count, rows);
    const bool few = kTerms == Terms::kNone && kCanBeFew<T, Loss> && plan.few_classes;
    if (plan.regions.begun) {
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

}  // namespace fusedloss::cpu
