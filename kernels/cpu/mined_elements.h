// Mined elements on the CPU, over the pointwise engine's tasks and blocks (pointwise.h).
//
// Forward leaves a mark of every element instead of a loss. Backward reads the marks first: a block
// of which nothing is selected becomes zeros, and its logits are not read.
#pragma once

#include <vector>

#include "../loss/binary_cross_entropy.h"
#include "select.h"
#include "stage.h"
#include "tasks.h"

namespace fusedloss::cpu {

template <class X, class T>
struct ElementBuffers {
  alignas(64) X logit[kBlock], grad[kBlock];
  alignas(64) T target[kBlock], mask[kBlock], marks[kBlock], factor[kBlock];
  bool fresh = true;
};

template <bool kMasked, class X, class T, class Loss>
FUSEDLOSS_CPU_LEVELS void mark_elements(const Loss loss, const X* __restrict logit,
                                        const T* __restrict target, const T* __restrict mask,
                                        int64_t count, T* __restrict marks) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const Element<T> element{to<T>(logit[i]), target[i], T(-1), T(1)};
    const bool masked = kMasked && mask[i] == T(0);
    marks[i] = bit_cast<T>(mark_element(loss(element).loss, target[i], masked));
  }
}

// Gradients of the elements whose factor is not 0; the others' logits may be anything.
template <class X, class T, class Loss>
FUSEDLOSS_CPU_LEVELS void mined_gradients(const Loss loss, const X* __restrict logit,
                                          const T* __restrict target, const T* __restrict factor,
                                          int64_t count, X* __restrict grad) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const T slope = loss(Element<T>{to<T>(logit[i]), target[i], T(-1), T(1)}).grad;
    grad[i] = from<X>(factor[i] == T(0) ? T(0) : slope * factor[i]);
  }
}

// Adds to nothing: writes shares of a stretch that belongs to one slice. Returns their sum.
template <class T>
FUSEDLOSS_CPU_LEVELS T share_elements(const Selection<T> selection, const T* __restrict marks,
                                      int64_t count, T* __restrict share) {
  T sum = T(0);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    share[i] = share_of(selection, bit_cast<Mark<T>>(marks[i]));
    sum += share[i];
  }
  return sum;
}

// `views` of the call and of what mining adds, in the order of the logits' memory.
inline void simplify_mined(PointwiseCall& call, TensorView& marks, TensorView* slice) {
  TensorView* views[] = {&call.logits,      &call.target, &call.weight, &call.grad,
                         &call.grad_output, &marks,       slice};
  simplify(call.shape, views, slice == nullptr ? 6 : 7);
}

template <class X, class Loss>
void mined_elements_forward(PointwiseCall call, const Loss& loss, MiningCall mining,
                            const Threads& threads) {
  using T = typename Loss::value_type;
  simplify_mined(call, mining.marks, nullptr);
  const int64_t numel = call.shape.numel();
  const bool masked = call.weight.data != nullptr, one_slice = mining.select.num_slices == 1;
  const BlockReader<X> logits(call.shape, call.logits, X{});
  const BlockReader<T> targets(call.shape, call.target, T(0)), mask(call.shape, call.weight, T(1));
  const BlockWriter<T> writer(call.shape, mining.marks);
  std::vector<MarkTotals> slots(num_tasks(numel));
  for_each_task(numel, threads, [&](int64_t task, int64_t begin, int64_t end) {
    ElementBuffers<X, T> buffers;
    const auto mark = masked ? mark_elements<true, X, T, Loss> : mark_elements<false, X, T, Loss>;
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = end - at < kBlock ? end - at : kBlock;
      T* marks = writer.target(at, count, buffers.marks);
      mark(loss, logits.read(at, count, buffers.logit, buffers.fresh),
           targets.read(at, count, buffers.target, buffers.fresh),
           mask.read(at, count, buffers.mask, buffers.fresh), whole_vectors(count), marks);
      buffers.fresh = false;
      if (one_slice) slots[task] += count_block<T>(marks, nullptr, count);
      writer.finish(at, count, marks);
    }
  });
  MarkTotals total;
  for (const MarkTotals& slot : slots) total += slot;
  select<T>(mining.select, one_slice ? &total : nullptr, threads);
}

// The shares of a block, whose marks are at hand. Returns their sum.
template <class T>
T share_block(const Shape& shape, const MinedGradientCall& mined, int64_t begin, int64_t count,
              const T* marks, T* share) {
  const Selection<T>* selections = static_cast<const Selection<T>*>(mined.selection);
  const int64_t step = mined.slice.strides[shape.ndim - 1];
  T sum = T(0);
  for_each_run(shape, begin, count, [&](const Run& run) {
    const Selection<T>* first = selections + offset_of(shape, mined.slice, run.index);
    const int64_t at = run.offset_in_block;
    if (step == 0) {
      sum += share_elements(*first, marks + at, run.length, share + at);
      return;
    }
    for (int64_t i = 0; i < run.length; ++i) {
      share[at + i] = share_of(first[i * step], bit_cast<Mark<T>>(marks[at + i]));
      sum += share[at + i];
    }
  });
  return sum;
}

// Shares to factors: times what comes in.
template <class T>
FUSEDLOSS_CPU_LEVELS void scale_shares(const T* __restrict upstream, T scale, int64_t count,
                                       T* __restrict factor) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    factor[i] = factor[i] == T(0) ? T(0) : factor[i] * scale * upstream[i];
}

template <class X, class Loss>
void mined_elements_backward(PointwiseCall call, const Loss& loss, MinedGradientCall mined,
                             const Threads& threads) {
  using T = typename Loss::value_type;
  simplify_mined(call, mined.marks, &mined.slice);
  const BlockReader<X> logits(call.shape, call.logits, X{});
  const BlockReader<T> targets(call.shape, call.target, T(0));
  const BlockReader<T> incoming(call.shape, call.grad_output, T(1));
  const BlockReader<T> marks(call.shape, mined.marks, T(0));
  const BlockWriter<X> writer(call.shape, call.grad);
  const T scale = *static_cast<const T*>(call.scale);
  for_each_task(call.shape.numel(), threads, [&](int64_t, int64_t begin, int64_t end) {
    ElementBuffers<X, T> buffers;
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = end - at < kBlock ? end - at : kBlock;
      const int64_t whole = whole_vectors(count);
      X* grads = writer.target(at, count, buffers.grad);
      const T shares = share_block(call.shape, mined, at, count,
                                   marks.read(at, count, buffers.marks, true), buffers.factor);
      if (shares == T(0)) {
        std::fill_n(grads, count, X{});
      } else {
        std::fill_n(buffers.factor + count, whole - count, T(0));
        scale_shares(incoming.read(at, count, buffers.mask, true), scale, whole, buffers.factor);
        mined_gradients(loss, logits.read(at, count, buffers.logit, true),
                        targets.read(at, count, buffers.target, true), buffers.factor, whole,
                        grads);
      }
      writer.finish(at, count, grads);
    }
  });
}

}  // namespace fusedloss::cpu
