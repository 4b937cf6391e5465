// Regions over rows of a softmax on the CPU: what both passes need, the plan of a call, the groups
// of a block and a thread's buffers. See row_regions.h.
#pragma once

#include "../loss/joined.h"
#include "region_few.h"
#include "region_loops.h"
#include "region_sums.h"
#include "row_softmax.h"
#include "softmax_regions.h"

namespace fusedloss::cpu {

struct RegionPlan : RowPlan {
  RegionCall regions;  // its index by rows
  bool few_classes;    // has_few_classes()
};

// Whether backward needs no more of few classes than what forward leaves of a begun gradient, if it
// begins one: few_classes_hold_all().
template <Terms kTerms, class X, class Loss>
constexpr bool kCanHoldAll =
    kTerms == Terms::kNone && std::is_same_v<X, float> && kCanBeFew<float, Loss>;

// Whether a forward leaves its exponentials for backward.
inline bool begins_gradient(const RowPlan& plan) { return plan.call.grad.data != nullptr; }

inline RegionPlan plan_regions(const RowSoftmaxCall& call, RegionCall regions) {
  RegionPlan plan{};
  static_cast<RowPlan&>(plan) = plan_rows(call, 1.0, &regions.index);
  plan.regions = regions;
  plan.few_classes = has_few_classes(plan.call, regions);
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
    const T* weights = static_cast<const T*>(call.class_weight);
    for (int64_t c = 0; c < call.num_classes; ++c)
      class_weights.push_back(weights == nullptr ? static_cast<T>(call.weight_value) : weights[c]);
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
  std::vector<T> ones, sums, targets, class_weights;
  std::vector<GroupRun> groups;
};

// Asks for the next block's numbers of one tensor with an entry a row, while this one is at work.
// Where classes are few these are as much memory as the logits.
inline void prefetch_rows(const RegionPlan& plan, const TensorView& view, int64_t begin) {
  const int64_t count = std::min(plan.num_rows - begin, plan.block_rows);
  if (count <= 0 || view.data == nullptr || view.strides[plan.rows.ndim - 1] != 1) return;
  const int64_t size = size_of(view.dtype);
  const char* data = static_cast<const char*>(view.data);
  prefetch(data + offset_of_row(plan.rows, view, begin) * size, count * size);
}

}  // namespace fusedloss::cpu
