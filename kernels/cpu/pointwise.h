// The pointwise engine on the CPU: any functor of ../core/pointwise.h over tensors of any layout.
//
// A task (tasks.h) walks blocks of kBlock elements that live in L1 (stage.h): it brings the inputs
// into shape, runs the functor over them in one vectorised loop, and stores what comes out.
#pragma once

#include <vector>

#include "../core/pointwise.h"
#include "pointwise_calls.h"
#include "stage.h"
#include "tasks.h"

namespace fusedloss::cpu {

// The hot loop: logits and gradients of type X, arithmetic in T.
template <Pass kPass, class X, class T, class Loss>
FUSEDLOSS_CPU_LEVELS void evaluate_block(const Loss loss, const X* __restrict logit,
                                         const T* __restrict target, const T* __restrict side,
                                         const T* __restrict weight, const T* __restrict upstream,
                                         T scale, int64_t count, T* __restrict loss_out,
                                         X* __restrict grad_out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const ValueGrad<T> v = loss(Element<T>{to<T>(logit[i]), target[i], side[i], weight[i]});
    if constexpr (kPass != Pass::kGrad) loss_out[i] = v.loss;
    if constexpr (kPass == Pass::kLossAndGrad) grad_out[i] = from<X>(v.grad * scale);
    if constexpr (kPass == Pass::kGrad) grad_out[i] = from<X>(v.grad * upstream[i]);
  }
}

template <class T>
FUSEDLOSS_CPU_LEVELS int64_t count_equal(const T* __restrict values, T wanted, int64_t count) {
  int32_t matches = 0;  // as wide as a float, so that the loop keeps the floats' vector length
#pragma omp simd reduction(+ : matches)
  for (int64_t i = 0; i < count; ++i) matches += values[i] == wanted;
  return matches;
}

// Targets of one class from a stretch of labels. Returns how many of these are no class or ignored.
template <class Label, class T>
FUSEDLOSS_CPU_LEVELS int64_t mark_class(const Label* __restrict labels, int64_t stride,
                                        int64_t count, int64_t this_class, int64_t num_classes,
                                        int64_t ignored, T* __restrict target) {
  int64_t others = 0;
  if (stride == 1) {
#pragma omp simd reduction(+ : others)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t label = labels[i];
      target[i] = label == this_class ? T(1) : T(0);
      others += label < 0 || label >= num_classes || label == ignored;
    }
    return others;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = labels[i * stride];
    target[i] = label == this_class ? T(1) : T(0);
    others += label < 0 || label >= num_classes || label == ignored;
  }
  return others;
}

template <class X, class T>
struct BlockBuffers {
  alignas(64) X logit[kBlock], grad[kBlock];
  alignas(64) T target[kBlock], side[kBlock], weight[kBlock], upstream[kBlock], loss[kBlock];
  bool fresh = true;         // the constant operands' buffers are still to be filled
  bool fresh_weight = true;  // the weight buffer is, or was changed for ignored elements
};

struct TaskTotals {
  double loss = 0.0;
  int64_t valid = 0;
  LabelReport report;
};

// One block's inputs, ready for evaluate_block.
template <class X, class T>
struct BlockInputs {
  const X* logit;
  const T *target, *side, *weight, *upstream;
  int64_t valid;
};

// Reads blocks of one call. Ignored elements get logit, target and weight 0, so that the hot loop
// need not know of them and their logits (NaN included) have no effect.
template <class X, class T>
class PointwiseReader {
 public:
  PointwiseReader(const PointwiseCall& call, T upstream)
      : call_(call),
        logit_(call.shape, call.logits, X{}),
        target_(call.shape, call.target, T(0)),
        side_(call.shape, call.side, static_cast<T>(call.side_value)),
        weight_(call.shape, call.weight, T(1)),
        upstream_(call.shape, call.grad_output, upstream) {}

  BlockInputs<X, T> read(int64_t begin, int64_t count, BlockBuffers<X, T>& buffers,
                         LabelReport& report) const {
    BlockInputs<X, T> in;
    in.logit = logit_.read(begin, count, buffers.logit, buffers.fresh);
    in.side = side_.read(begin, count, buffers.side, buffers.fresh);
    in.weight = weight_.read(begin, count, buffers.weight, buffers.fresh_weight);
    in.upstream = upstream_.read(begin, count, buffers.upstream, buffers.fresh);
    buffers.fresh = buffers.fresh_weight = false;
    in.valid = count;
    if (call_.indexed)
      read_labels(begin, count, buffers, in, report);
    else
      read_dense_target(begin, count, buffers, in);
    return in;
  }

 private:
  void read_dense_target(int64_t begin, int64_t count, BlockBuffers<X, T>& buffers,
                         BlockInputs<X, T>& in) const {
    in.target = target_.read(begin, count, buffers.target, true);
    if (call_.counts_all) return;
    const T ignored = static_cast<T>(call_.ignored_target);
    const int64_t matches = count_equal(in.target, ignored, count);
    if (matches == 0) return;
    for (int64_t i = 0; i < count; ++i)
      if (in.target[i] == ignored) ignore(i, 1, count, buffers, in);
  }

  // Class indices become the block's 0/1 targets: zeros and, for each row, one 1.
  void read_labels(int64_t begin, int64_t count, BlockBuffers<X, T>& buffers, BlockInputs<X, T>& in,
                   LabelReport& report) const {
    std::fill_n(buffers.target, whole_vectors(count), T(0));
    in.target = buffers.target;
    with_typed_labels(call_.target, [&](const auto* labels) {
      if (call_.shape.ndim <= 2 && call_.shape.class_dim == call_.shape.ndim - 1)
        read_rows(labels, begin, count, buffers, in, report);
      else
        read_strided_labels(labels, begin, count, buffers, in, report);
    });
  }

  // Rows that lie one after the other.
  template <class Label>
  void read_rows(const Label* labels, int64_t begin, int64_t count, BlockBuffers<X, T>& buffers,
                 BlockInputs<X, T>& in, LabelReport& report) const {
    const int64_t classes = call_.num_classes;
    const int64_t stride = call_.shape.ndim == 2 ? call_.target.strides[0] : 0;
    const int64_t row = begin / classes;
    labels += row * stride;
    for (int64_t start = row * classes - begin; start < count; start += classes, labels += stride) {
      const int64_t first = start > 0 ? start : 0;
      const int64_t end = start + classes < count ? start + classes : count;
      place(*labels, start, first, end - first, count, buffers, in, report);
    }
  }

  template <class Label>
  void read_strided_labels(const Label* labels, int64_t begin, int64_t count,
                           BlockBuffers<X, T>& buffers, BlockInputs<X, T>& in,
                           LabelReport& report) const {
    const Shape& shape = call_.shape;
    const int last = shape.ndim - 1;
    for_each_run(shape, begin, count, [&](const Run& run) {
      const Label* label = labels + offset_of(shape, call_.target, run.index);
      if (shape.class_dim == last) {
        const int64_t start = run.offset_in_block - run.index[last];
        place(*label, start, run.offset_in_block, run.length, count, buffers, in, report);
        return;
      }
      const int64_t this_class = shape.class_dim < 0 ? 0 : run.index[shape.class_dim];
      const int64_t stride = call_.target.strides[last];
      T* target = buffers.target + run.offset_in_block;
      if (mark_class(label, stride, run.length, this_class, call_.num_classes, call_.ignore_index,
                     target) == 0)
        return;
      for (int64_t i = 0; i < run.length; ++i) {
        const int64_t at = run.offset_in_block + i;
        place(label[i * stride], at - this_class, at, 1, count, buffers, in, report);
      }
    });
  }

  // Marks class `label` in a stretch of one row; the row's class 0 would stand at `row_start`.
  void place(int64_t label, int64_t row_start, int64_t begin, int64_t length, int64_t count,
             BlockBuffers<X, T>& buffers, BlockInputs<X, T>& in, LabelReport& report) const {
    if (label == call_.ignore_index) return ignore(begin, length, count, buffers, in);
    if (label >= 0 && label < call_.num_classes) {
      const int64_t at = row_start + label;
      if (at >= begin && at < begin + length) buffers.target[at] = T(1);
    } else if (is_bad_label(label, call_.num_classes) && !report.bad_label) {
      report = {true, label};
    }
  }

  void ignore(int64_t begin, int64_t length, int64_t count, BlockBuffers<X, T>& buffers,
              BlockInputs<X, T>& in) const {
    const int64_t whole = whole_vectors(count);
    if (in.logit != buffers.logit) std::copy_n(in.logit, whole, buffers.logit);
    if (in.weight != buffers.weight) std::copy_n(in.weight, whole, buffers.weight);
    if (in.target != buffers.target) std::copy_n(in.target, whole, buffers.target);
    std::fill_n(buffers.logit + begin, length, X{});
    std::fill_n(buffers.target + begin, length, T(0));
    std::fill_n(buffers.weight + begin, length, T(0));
    in.logit = buffers.logit;
    in.target = buffers.target;
    in.weight = buffers.weight;
    in.valid -= length;
    buffers.fresh_weight = true;
  }

  const PointwiseCall& call_;
  BlockReader<X> logit_;
  BlockReader<T> target_, side_, weight_, upstream_;
};

template <Pass kPass, class X, class T, class Loss>
TaskTotals run_task(const PointwiseCall& call, const Loss& loss,
                    const PointwiseReader<X, T>& reader, T scale, int64_t begin, int64_t end) {
  const bool keeps_losses = kPass != Pass::kGrad && call.reduction == Reduction::kNone;
  const BlockWriter<T> loss_writer(call.shape, keeps_losses ? call.loss : TensorView{});
  const BlockWriter<X> grad_writer(call.shape, call.grad);
  BlockBuffers<X, T> buffers;
  TaskTotals totals;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    const BlockInputs<X, T> in = reader.read(at, count, buffers, totals.report);
    T* losses = loss_writer.target(at, count, buffers.loss);
    X* grads = grad_writer.target(at, count, buffers.grad);
    evaluate_block<kPass>(loss, in.logit, in.target, in.side, in.weight, in.upstream, scale,
                          whole_vectors(count), losses, grads);
    if (kPass != Pass::kGrad) totals.loss += sum_block(losses, count);
    totals.valid += in.valid;
    loss_writer.finish(at, count, losses);
    if (kPass != Pass::kLoss) grad_writer.finish(at, count, grads);
  }
  return totals;
}

// Elements whose label is not ignored: read from the labels alone, before the logits are touched.
inline int64_t count_valid_labels(const PointwiseCall& call, const Threads& threads) {
  Shape rows = call.shape;
  if (rows.class_dim >= 0) rows.sizes[rows.class_dim] = 1;
  const int64_t numel = rows.numel();
  std::vector<int64_t> ignored(num_tasks(numel));
  for_each_task(numel, threads, [&](int64_t task, int64_t begin, int64_t end) {
    int64_t found = 0;
    with_typed_labels(call.target, [&](const auto* labels) {
      for_each_run(rows, begin, end - begin, [&](const Run& run) {
        const auto* label = labels + offset_of(rows, call.target, run.index);
        const int64_t stride = call.target.strides[rows.ndim - 1];
        for (int64_t i = 0; i < run.length; ++i) found += label[i * stride] == call.ignore_index;
      });
    });
    ignored[task] = found;
  });
  int64_t valid = numel;
  for (const int64_t found : ignored) valid -= found;
  return valid * (call.shape.numel() / (numel > 0 ? numel : 1));
}

// The divisor that the caller gave for the mean.
template <class T>
double given_divisor(const PointwiseCall& call) {
  return call.normalizer != nullptr ? static_cast<double>(*static_cast<const T*>(call.normalizer))
                                    : call.normalizer_value;
}

// What the mean divides by, as the gradient written in forward assumes it (see design.md,
// "prescale").
template <class T>
double expected_divisor(const PointwiseCall& call, const Threads& threads) {
  if (has_normalizer(call)) return given_divisor<T>(call);
  return static_cast<double>(call.indexed ? count_valid_labels(call, threads) : call.shape.numel());
}

template <class X, class Loss>
LabelReport pointwise_forward(PointwiseCall call, const Loss& loss, const Threads& threads) {
  using T = typename Loss::value_type;
  simplify_call(call);
  const int64_t numel = call.shape.numel();
  const bool with_grad = call.grad.data != nullptr;
  const bool mean = call.reduction == Reduction::kMean;
  double expected = mean && call.prescale ? expected_divisor<T>(call, threads) : 1.0;
  if (expected == 0.0)
    expected = 1.0;  // no prescale: what 1/0 makes of the mean is left to backward
  const T scale = static_cast<T>(1.0 / expected);

  const PointwiseReader<X, T> reader(call, T(1));
  std::vector<TaskTotals> slots(num_tasks(numel));
  for_each_task(numel, threads, [&](int64_t task, int64_t begin, int64_t end) {
    slots[task] = with_grad ? run_task<Pass::kLossAndGrad>(call, loss, reader, scale, begin, end)
                            : run_task<Pass::kLoss>(call, loss, reader, scale, begin, end);
  });
  TaskTotals total;
  for (const TaskTotals& slot : slots) {
    total.loss += slot.loss;
    total.valid += slot.valid;
    if (slot.report.bad_label && !total.report.bad_label) total.report = slot.report;
  }

  const double divisor = !mean                  ? 1.0
                         : has_normalizer(call) ? given_divisor<T>(call)
                                                : static_cast<double>(total.valid);
  const bool nothing = mean && total.valid == 0 && !call.counts_all;  // 0, with zero gradient
  if (call.reduction != Reduction::kNone)
    *static_cast<T*>(call.loss.data) = static_cast<T>(nothing ? 0.0 : total.loss / divisor);
  *static_cast<T*>(call.scale) = static_cast<T>(nothing ? 0.0 : expected / divisor);
  return total.report;
}

template <class X, class Loss>
void pointwise_backward(PointwiseCall call, const Loss& loss, const Threads& threads) {
  using T = typename Loss::value_type;
  simplify_call(call);
  T upstream = *static_cast<const T*>(call.scale);
  const BlockReader<T> grad_output(call.shape, call.grad_output, T(1));
  if (grad_output.constant()) {
    upstream *= grad_output.value();
    call.grad_output.data = nullptr;
  }
  const PointwiseReader<X, T> reader(call, upstream);
  for_each_task(call.shape.numel(), threads, [&](int64_t, int64_t begin, int64_t end) {
    run_task<Pass::kGrad>(call, loss, reader, T(1), begin, end);
  });
}

}  // namespace fusedloss::cpu

namespace fusedloss {

// Calls run(functor) with the loss of these options in arithmetic of T. A loss with several
// functors has an overload for its options.
template <class T, class Options, class Run>
auto with_functor(const Options& options, const Run& run) {
  return run(options.template functor<T>());
}

template <class Options>
LabelReport launch_pointwise_fwd(const PointwiseCall& call, const Options& options,
                                 const cpu::Threads& threads) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    return with_functor<Accumulator<X>>(
        options, [&](const auto& loss) { return cpu::pointwise_forward<X>(call, loss, threads); });
  });
}

template <class Options>
void launch_pointwise_bwd(const PointwiseCall& call, const Options& options,
                          const cpu::Threads& threads) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    with_functor<Accumulator<X>>(
        options, [&](const auto& loss) { cpu::pointwise_backward<X>(call, loss, threads); });
  });
}

}  // namespace fusedloss
