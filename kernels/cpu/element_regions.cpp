// Region losses over elements on the CPU: the walk and its instantiations.
//
// The pointwise engine's tasks and blocks (pointwise.h). A block is cut into the stretches that lie
// in one region, and each is summed, or given its gradient, by one loop. Where the classes lie
// innermost a stretch is a single element: right, but slower. Whatever the input's type, blocks are
// read and written as the arithmetic's (the reader and writer convert).
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
  int64_t width;  // of records and tables: a region, or the classes of a group
};

ElementPlan plan_elements(PointwiseCall call, RegionCall regions) {
  call.ignored_target = as_stored(call.ignore_index, call.target.dtype);
  TensorView* views[] = {&call.logits, &call.target,      &call.side, &call.weight,
                         &call.grad,   &call.grad_output, &call.loss, &regions.index};
  simplify(call.shape, views, 8);
  const bool together = regions.index.strides[call.shape.ndim - 1] == 0;
  return {call, regions, together ? 1 : regions.num_classes};
}

// Calls visit(region, begin, count) for the stretches of a block that lie in one region.
template <class Visit>
void for_each_stretch(const ElementPlan& plan, int64_t begin, int64_t count, const Visit& visit) {
  const Shape& shape = plan.call.shape;
  const int64_t stride = plan.regions.index.strides[shape.ndim - 1];
  int64_t region = -1, from = 0;
  for_each_run(shape, begin, count, [&](const Run& run) {
    const int64_t first = offset_of(shape, plan.regions.index, run.index);
    for (int64_t i = 0; i < (stride == 0 ? 1 : run.length); ++i) {
      const int64_t this_region = first + i * stride, at = run.offset_in_block + i;
      if (this_region == region) continue;
      if (at > from) visit(region, from, at - from);
      region = this_region;
      from = at;
    }
  });
  visit(region, from, count - from);
}

// Labels other than classes, which the pointwise reader takes for background.
LabelReport find_bad_label(const PointwiseCall& call) {
  LabelReport report;
  if (!call.indexed) return report;
  Shape rows = call.shape;
  if (rows.class_dim >= 0) rows.sizes[rows.class_dim] = 1;
  const int64_t stride = call.target.strides[rows.ndim - 1];
  with_typed_labels(call.target, [&](const auto* labels) {
    for_each_run(rows, 0, rows.numel(), [&](const Run& run) {
      const auto* first = labels + offset_of(rows, call.target, run.index);
      for (int64_t i = 0; i < run.length && !report.bad_label; ++i) {
        const int64_t label = first[i * stride];
        if (label != call.ignore_index && (label < 0 || label >= call.num_classes))
          report = {true, label};
      }
    });
  });
  return report;
}

template <class T>
ElementArrays<T> arrays_from(const BlockInputs<T, T>& in, int64_t at) {
  return {in.logit + at, in.target + at, in.side + at, in.weight + at};
}

template <class Loss, class T>
LabelReport forward_elements(const PointwiseCall& given, const RegionCall& regions,
                             const Loss& loss, const Threads& threads) {
  const ElementPlan plan = plan_elements(given, regions);
  const LabelReport bad = find_bad_label(plan.call);
  if (bad.bad_label) return bad;
  const int64_t numel = plan.call.shape.numel();
  const PointwiseReader<T, T> reader(plan.call, T(1));
  const RegionPower<T> power(regions.squared);
  std::vector<TaskTotals> slots(num_tasks(numel));
  std::vector<RegionRecords> records(slots.size(), RegionRecords(plan.width));
  for_each_task(numel, threads, [&](int64_t task, int64_t begin, int64_t end) {
    BlockBuffers<T, T> buffers;
    TaskTotals& slot = slots[task];
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = end - at < kBlock ? end - at : kBlock;
      const BlockInputs<T, T> in = reader.read(at, count, buffers, slot.report);
      slot.valid += in.valid;
      for_each_stretch(plan, at, count, [&](int64_t region, int64_t from, int64_t length) {
        const ElementSums<T> sums = element_sums(loss, arrays_from(in, from), power, length);
        const int64_t place = region % plan.width;
        RegionSums& record = records[task].at(region - place)[place];
        record.overlap += static_cast<double>(sums.overlap);
        record.mass += static_cast<double>(sums.mass);
        record.truth += static_cast<double>(sums.truth);
        slot.loss += static_cast<double>(sums.loss);
      });
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
      T* grad = writer.target(at, buffers.grad);
      bool finite = true;
      for_each_stretch(plan, at, count, [&](int64_t region, int64_t from, int64_t length) {
        const int64_t place = region % plan.width;
        table.load(region - place);
        finite = finite && table.finite();
        element_gradient(loss, arrays_from(in, from), table.overlap()[place], table.linear()[place],
                         table.quadratic()[place], upstream, length, grad + from);
      });
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
