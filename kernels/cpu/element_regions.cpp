// Region losses over elements on the CPU: the walk and its instantiations.
//
// The pointwise engine's tasks and blocks (pointwise.h). A block is cut into the stretches that lie
// in one region, and each is summed, or given its gradient, by one loop. Where the classes or the
// samples lie innermost regions alternate: there the loop leaves its terms for a second one to sort
// and reads slopes that were laid out before. Whatever the input's type, blocks are read and
// written as the arithmetic's (the reader and writer convert).
#include "element_regions.h"

#include "element_loops.h"
#include "pointwise.h"
#include "region_sums.h"

namespace fusedloss {
namespace cpu {
namespace {

struct ElementPlan {
  PointwiseCall call;
  RegionCall regions;
  bool alternates;  // neighbouring elements lie in regions of their own
  int64_t width;    // of records and tables: a region, or the classes of a group
};

ElementPlan plan_elements(PointwiseCall call, RegionCall regions) {
  call.ignored_target = as_stored(call.ignore_index, call.target.dtype);
  TensorView* views[] = {&call.logits, &call.target,      &call.side, &call.weight,
                         &call.grad,   &call.grad_output, &call.loss, &regions.index};
  simplify(call.shape, views, 8);
  const bool alternates = regions.index.strides[call.shape.ndim - 1] != 0;
  return {call, regions, alternates, alternates ? regions.num_classes : 1};
}

// Calls visit(region, begin, count) for the stretches of a block that lie in one region.
template <class Visit>
void for_each_stretch(const ElementPlan& plan, int64_t begin, int64_t count, const Visit& visit) {
  int64_t region = -1, from = 0;
  for_each_run(plan.call.shape, begin, count, [&](const Run& run) {
    const int64_t this_region = offset_of(plan.call.shape, plan.regions.index, run.index);
    if (this_region == region) return;
    if (region >= 0) visit(region, from, run.offset_in_block - from);
    region = this_region;
    from = run.offset_in_block;
  });
  visit(region, from, count - from);
}

// Calls visit(group's first region, class, element) for elements whose regions alternate.
template <class Visit>
void for_each_alternating(const ElementPlan& plan, int64_t begin, int64_t count,
                          const Visit& visit) {
  const Shape& shape = plan.call.shape;
  const int64_t stride = plan.regions.index.strides[shape.ndim - 1];
  for_each_run(shape, begin, count, [&](const Run& run) {
    const int64_t region = offset_of(shape, plan.regions.index, run.index);
    int64_t this_class = region % plan.width, first = region - this_class;
    for (int64_t i = 0; i < run.length; ++i) {
      visit(first, this_class, run.offset_in_block + i);
      if (stride != 1) {
        first += stride;
      } else if (++this_class == plan.width) {  // samples and classes may be walked as one
        this_class = 0;
        first += plan.width;
      }
    }
  });
}

// Labels other than classes, which the pointwise reader takes for background.
LabelReport find_bad_label(const PointwiseCall& call, const Threads& threads) {
  if (!call.indexed) return {};
  Shape rows = call.shape;
  if (rows.class_dim >= 0) rows.sizes[rows.class_dim] = 1;
  const int64_t stride = call.target.strides[rows.ndim - 1];
  std::vector<LabelReport> slots(num_tasks(rows.numel()));
  for_each_task(rows.numel(), threads, [&](int64_t task, int64_t begin, int64_t end) {
    with_typed_labels(call.target, [&](const auto* labels) {
      for_each_run(rows, begin, end - begin, [&](const Run& run) {
        const auto* first = labels + offset_of(rows, call.target, run.index);
        for (int64_t i = 0; i < run.length && !slots[task].bad_label; ++i) {
          const int64_t label = first[i * stride];
          if (label != call.ignore_index && (label < 0 || label >= call.num_classes))
            slots[task] = {true, label};
        }
      });
    });
  });
  for (const LabelReport& slot : slots)
    if (slot.bad_label) return slot;
  return {};
}

template <class T>
ElementArrays<T> arrays_from(const BlockInputs<T, T>& in, int64_t at) {
  return {in.logit + at, in.target + at, in.side + at, in.weight + at};
}

void add(RegionSums& sums, double overlap, double mass, double truth) {
  sums.overlap += overlap;
  sums.mass += mass;
  sums.truth += truth;
}

// Adds a block to its regions' sums; returns its joined loss.
template <class Loss, class T>
double add_block(const ElementPlan& plan, const Loss& loss, const BlockInputs<T, T>& in,
                 int64_t begin, int64_t count, RegionRecords& records) {
  const RegionPower<T> power(plan.regions.squared);
  double joined = 0.0;
  if (!plan.alternates) {
    for_each_stretch(plan, begin, count, [&](int64_t region, int64_t from, int64_t length) {
      const ElementSums<T> sums = element_sums(loss, arrays_from(in, from), power, length);
      add(*records.at(region), sums.overlap, sums.mass, sums.truth);
      joined += static_cast<double>(sums.loss);
    });
    return joined;
  }
  alignas(64) T overlap[kBlock], mass[kBlock], truth[kBlock];
  joined = element_terms(loss, arrays_from(in, 0), power, count, overlap, mass, truth);
  for_each_alternating(plan, begin, count, [&](int64_t first, int64_t this_class, int64_t i) {
    add(records.at(first)[this_class], overlap[i], mass[i], truth[i]);
  });
  return joined;
}

template <class Loss, class T>
LabelReport forward_elements(const PointwiseCall& given, const RegionCall& regions,
                             const Loss& loss, const Threads& threads) {
  const ElementPlan plan = plan_elements(given, regions);
  const LabelReport bad = find_bad_label(plan.call, threads);
  if (bad.bad_label) return bad;
  const int64_t numel = plan.call.shape.numel();
  const PointwiseReader<T, T> reader(plan.call, T(1));
  std::vector<TaskTotals> slots(num_tasks(numel));
  std::vector<RegionRecords> records(slots.size(), RegionRecords(plan.width));
  for_each_task(numel, threads, [&](int64_t task, int64_t begin, int64_t end) {
    BlockBuffers<T, T> buffers;
    TaskTotals& slot = slots[task];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = end - at < kBlock ? end - at : kBlock;
      const BlockInputs<T, T> in = reader.read(at, count, buffers, slot.report);
      slot.valid += in.valid;
      slot.loss += add_block(plan, loss, in, at, count, records[task]);
    }
  });
  TaskTotals total;
  for (const TaskTotals& slot : slots) {
    total.loss += slot.loss;
    total.valid += slot.valid;
  }
  const bool mean = regions.reduction == Reduction::kMean;
  const double divisor = mean ? static_cast<double>(total.valid) : 1.0;
  const bool nothing = total.valid == 0;
  T* scale = static_cast<T*>(plan.call.scale);
  scale[0] = scale[1] = static_cast<T>(nothing ? 0.0 : regions.joined_factor / divisor);
  finish_regions<T>(regions, add_up(regions, records), nothing ? 0.0 : total.loss / divisor);
  return {};
}

// Writes a block's gradient; returns whether all slopes were finite.
template <class Loss, class T>
bool write_block(const ElementPlan& plan, const Loss& loss, const BlockInputs<T, T>& in, T upstream,
                 int64_t begin, int64_t count, SlopeTable<T>& table, T* grad) {
  bool finite = true;
  if (!plan.alternates) {
    for_each_stretch(plan, begin, count, [&](int64_t region, int64_t from, int64_t length) {
      table.load(region);
      finite = finite && table.finite();
      element_gradient<true>(loss, arrays_from(in, from),
                             {table.overlap(), table.linear(), table.quadratic()}, upstream, length,
                             grad + from);
    });
    return finite;
  }
  alignas(64) T overlap[kBlock], linear[kBlock], quadratic[kBlock];
  for_each_alternating(plan, begin, count, [&](int64_t first, int64_t this_class, int64_t i) {
    table.load(first);
    finite = finite && table.finite();
    overlap[i] = table.overlap()[this_class];
    linear[i] = table.linear()[this_class];
    quadratic[i] = table.quadratic()[this_class];
  });
  element_gradient<false>(loss, arrays_from(in, 0), {overlap, linear, quadratic}, upstream, count,
                          grad);
  return finite;
}

template <class Loss, class T>
void backward_elements(const PointwiseCall& given, const RegionCall& regions, const Loss& loss,
                       const Threads& threads) {
  const ElementPlan plan = plan_elements(given, regions);
  const T upstream = regions.joined ? *static_cast<const T*>(plan.call.scale) *
                                          *static_cast<const T*>(regions.upstream)
                                    : T(0);
  const PointwiseReader<T, T> reader(plan.call, T(1));
  const BlockWriter<T> writer(plan.call.shape, plan.call.grad);
  for_each_task(plan.call.shape.numel(), threads, [&](int64_t, int64_t begin, int64_t end) {
    BlockBuffers<T, T> buffers;
    SlopeTable<T> table(plan.regions, plan.width);
    LabelReport report;
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = end - at < kBlock ? end - at : kBlock;
      const BlockInputs<T, T> in = reader.read(at, count, buffers, report);
      T* grad = writer.target(at, count, buffers.grad);
      const bool finite = write_block(plan, loss, in, upstream, at, count, table, grad);
      // 0 times a slope that is not finite.
      for (int64_t i = 0; !finite && i < count; ++i)
        if (in.weight[i] == T(0)) grad[i] = T(0);
      writer.finish(at, count, grad);
    }
  });
}

// Calls run(functor) with what the options say.
template <class T, class Run>
auto with_joined(const ElementRegionOptions& options, const Run& run) {
  const auto with = [&](auto power) {
    using Loss = SigmoidFocal<T, decltype(power)>;
    return run(JoinedElementLoss<T, Loss>{Loss(options.focal, power)});
  };
  if (options.activation == Activation::kNone) return run(NoElementLoss<T, Activation::kNone>{});
  if (options.joined == Joined::kNothing) return run(NoElementLoss<T, Activation::kSigmoid>{});
  if (options.focal.gamma == 0.0) return with(IntegerPower<0>{});
  if (is_small_integer(options.focal.gamma)) return with(SmallIntegerPower<T>(options.focal.gamma));
  return with(RealPower<T>{static_cast<T>(options.focal.gamma)});
}

template <class F>
auto with_arithmetic(const PointwiseCall& call, const F& f) {
  return call.accumulator() == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace
}  // namespace cpu

LabelReport launch_element_regions_fwd(const PointwiseCall& call, const RegionCall& regions,
                                       const ElementRegionOptions& options,
                                       const cpu::Threads& threads) {
  return cpu::with_arithmetic(call, [&](auto zero) {
    using T = decltype(zero);
    return cpu::with_joined<T>(options, [&](const auto& loss) {
      return cpu::forward_elements<std::decay_t<decltype(loss)>, T>(call, regions, loss, threads);
    });
  });
}

void launch_element_regions_bwd(const PointwiseCall& call, const RegionCall& regions,
                                const ElementRegionOptions& options, const cpu::Threads& threads) {
  cpu::with_arithmetic(call, [&](auto zero) {
    using T = decltype(zero);
    cpu::with_joined<T>(options, [&](const auto& loss) {
      cpu::backward_elements<std::decay_t<decltype(loss)>, T>(call, regions, loss, threads);
    });
  });
}

}  // namespace fusedloss
