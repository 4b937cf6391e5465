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

#include "row_regions_backward.h"
#include "row_regions_forward.h"

namespace fusedloss::cpu {

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
