// The pointwise engine on CUDA: any functor of ../core/pointwise.h.
//
// Two walks. `linear_kernel` takes logits that are dense in memory (in any order of dimensions):
// each thread moves kFewestVectors vectors of V elements with 16-byte accesses, the unaligned head
// and tail of the tensor go to single threads of block 0 (pointwise_plain.cuh has it for the calls
// that matter). `strided_kernel` takes everything else, element by element. A forward with a sum or
// mean writes one BlockTotals a block, and `finish_kernel` adds them in order: two launches, no
// atomics, no host synchronisation. A backward is one launch.
#pragma once

#include "../core/pointwise.h"
#include "block.cuh"
#include "divide.cuh"
#include "launch.cuh"
#include "mean.cuh"
#include "pointwise.h"
#include "vec_io.cuh"

namespace fusedloss::cuda {

// How a side operand follows the walk over [rows, classes].
enum class Follows : int32_t { kConstant, kElement, kClass, kRow, kOther };

template <class T>
struct SideOperand {
  const T* data;  // nullptr: the constant
  Follows follows;
  T constant;
};

template <class T>
struct LinearPlan {
  int64_t numel;
  int64_t classes;  // length of a row; numel where nothing depends on rows
  int64_t head;     // elements before the first aligned vector
  int64_t vectors;
  int rounds;  // vectors of a thread of plain_kernel, kPointwiseThreads vectors apart
  int step_rows, step_classes;  // what that distance is in rows and classes
  Divider by_classes;
  bool by_row;  // whether labels or side operands need row and class
  SideOperand<T> side, weight, upstream;
};

// What gradients are multiplied by beside the incoming one.
template <Pass kPass, class T>
__device__ __forceinline__ T gradient_factor(const PointwiseCall& call) {
  if (kPass == Pass::kGrad) return *static_cast<const T*>(call.scale);
  return kPass == Pass::kLossAndGrad ? reciprocal(expected_divisor<T>(call, call.shape.numel()))
                                     : T(1);
}

// What a thread has seen.
template <class T>
struct ThreadTotals {
  T loss = T(0);
  int valid = 0;
};

// One element: its inputs, and whether it is ignored.
template <class T>
struct Fetched {
  Element<T> element;
  T upstream;
  bool valid;
};

template <class T>
__device__ __forceinline__ void apply_label(const PointwiseCall& call, int64_t label,
                                            int64_t this_class, Fetched<T>& f) {
  f.valid = label != call.ignore_index;
  f.element.target = label == this_class ? T(1) : T(0);
  if (f.valid && is_bad_label(label, call.num_classes))
    f.element.target = bit_cast<float>(0x7fc00000u);  // NaN: the loss and gradient of the row
}

// Runs the functor on one element. Ignored ones get logit 0 and weight 0, so that their own logit,
// NaN included, has no effect.
template <class T, class Loss>
__device__ __forceinline__ ValueGrad<T> evaluate(const Loss& loss, Fetched<T> f, T factor,
                                                 ThreadTotals<T>& totals) {
  if (!f.valid) f.element.logit = f.element.weight = f.element.target = T(0);
  ValueGrad<T> v = loss(f.element);
  v.grad *= f.upstream * factor;
  totals.loss += v.loss;
  totals.valid += f.valid ? 1 : 0;
  return v;
}

// A side operand for V elements from `element` on, the first of them at [row, this_class].
template <int V, class T>
__device__ __forceinline__ void load_side(const SideOperand<T>& side, int64_t element, int64_t row,
                                          int64_t this_class, int64_t classes, T (&out)[V]) {
  if (side.follows == Follows::kElement) return load_vector<V>(side.data + element, out);
  T value = side.data == nullptr              ? side.constant
            : side.follows == Follows::kClass ? __ldg(side.data + this_class)
            : side.follows == Follows::kRow   ? __ldg(side.data + row)
                                              : __ldg(side.data);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    out[j] = value;
    if (j + 1 == V || side.follows == Follows::kConstant) continue;
    if (++this_class == classes) {
      this_class = 0;
      ++row;
    }
    if (side.follows == Follows::kClass) value = __ldg(side.data + this_class);
    if (side.follows == Follows::kRow && this_class == 0) value = __ldg(side.data + row);
  }
}

// Everything but the logits for V elements from `element` on. `target` holds their dense targets.
template <Pass kPass, int V, class T>
__device__ __forceinline__ void fetch(const PointwiseCall& call, const LinearPlan<T>& plan,
                                      int64_t element, int64_t row, int64_t this_class,
                                      const T* target, Fetched<T> (&out)[V]) {
  T side[V], weight[V], upstream[V];
  load_side<V>(plan.side, element, row, this_class, plan.classes, side);
  load_side<V>(plan.weight, element, row, this_class, plan.classes, weight);
  if (kPass == Pass::kGrad)
    load_side<V>(plan.upstream, element, row, this_class, plan.classes, upstream);
  int64_t label = call.indexed ? load_label(call.target.data, call.target.dtype, row) : 0;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    Fetched<T>& f = out[j];
    f.element.side = side[j];
    f.element.weight = weight[j];
    f.upstream = kPass == Pass::kGrad ? upstream[j] : T(1);
    if (!call.indexed) {
      f.element.target = target[j];
      f.valid = target[j] != static_cast<T>(call.ignored_target);
      continue;
    }
    apply_label(call, label, this_class, f);
    if (++this_class == plan.classes && j + 1 < V) {
      this_class = 0;
      label = load_label(call.target.data, call.target.dtype, ++row);
    }
  }
}

// V elements that lie together: the aligned vectors with V as large as memory allows, the head and
// tail with V = 1. The arithmetic goes in steps of at most 4, which keeps registers at half
// occupancy.
template <Pass kPass, int V, class X, class Loss>
__device__ __forceinline__ void process(const PointwiseCall& call,
                                        const LinearPlan<typename Loss::value_type>& plan,
                                        const Loss& loss, int64_t element, const X (&logits)[V],
                                        typename Loss::value_type factor,
                                        ThreadTotals<typename Loss::value_type>& totals) {
  using T = typename Loss::value_type;
  constexpr int kStep = V < 4 ? V : 4;
  alignas(sizeof(X) * V) X grads[V];
  T target[V] = {};
  if (!call.indexed) load_as<V>(call.target.data, call.target.dtype, element, target);
#pragma unroll
  for (int first = 0; first < V; first += kStep) {
    int64_t row = 0, this_class = 0;
    if (plan.by_row) row = plan.by_classes.divide(element + first, this_class);
    Fetched<T> fetched[kStep];
    fetch<kPass, kStep>(call, plan, element + first, row, this_class, target + first, fetched);
    T losses[kStep];
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      fetched[j].element.logit = to<T>(logits[first + j]);
      const ValueGrad<T> v = evaluate(loss, fetched[j], factor, totals);
      losses[j] = v.loss;
      grads[first + j] = from<X>(v.grad);
    }
    if (kPass != Pass::kGrad && call.reduction == Reduction::kNone)
      store_vector<kStep>(losses, static_cast<T*>(call.loss.data) + element + first);
  }
  if (kPass != Pass::kLoss) store_vector<V>(grads, static_cast<X*>(call.grad.data) + element);
}

template <class T>
__device__ __forceinline__ void leave_totals(const PointwiseCall& call,
                                             const ThreadTotals<T>& totals) {
  __shared__ T loss_slots[kPointwiseThreads / kWarp];
  __shared__ int valid_slots[kPointwiseThreads / kWarp];
  if (call.reduction == Reduction::kNone) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *static_cast<T*>(call.scale) = T(1);
    return;
  }
  const T loss = block_sum(totals.loss, loss_slots);
  const int valid = block_sum(totals.valid, valid_slots);
  if (threadIdx.x == 0)
    static_cast<BlockTotals*>(call.workspace)[blockIdx.x] = {static_cast<double>(loss), valid};
}

template <Pass kPass, int V, class X, class Loss>
__global__ void __launch_bounds__(kPointwiseThreads, kBlocksPerMultiprocessor)
    linear_kernel(const __grid_constant__ PointwiseCall call,
                  const __grid_constant__ LinearPlan<typename Loss::value_type> plan,
                  const Loss loss) {
  using T = typename Loss::value_type;
  constexpr int kTile = kPointwiseThreads * kFewestVectors * V;
  const X* all_logits = static_cast<const X*>(call.logits.data);
  const int64_t tile = plan.head + static_cast<int64_t>(blockIdx.x) * kTile;
  const T factor = gradient_factor<kPass, T>(call);
  ThreadTotals<T> totals;

  // The next vector is on its way while this one is worked on.
  const int64_t tail = plan.head + plan.vectors * V;
  int offset = static_cast<int>(threadIdx.x) * V;
  alignas(sizeof(X) * V) X logits[V], next[V];
  if (tile + offset < tail) load_vector<V>(all_logits + tile + offset, logits);
#pragma unroll 1
  for (; offset < kTile && tile + offset < tail; offset += kPointwiseThreads * V) {
    const int ahead = offset + kPointwiseThreads * V;
    if (ahead < kTile && tile + ahead < tail) load_vector<V>(all_logits + tile + ahead, next);
    process<kPass, V>(call, plan, loss, tile + offset, logits, factor, totals);
#pragma unroll
    for (int j = 0; j < V; ++j) logits[j] = next[j];
  }

  const int64_t peeled = plan.head + plan.numel - tail;
  if (blockIdx.x == 0 && threadIdx.x < peeled) {
    const int64_t i = threadIdx.x < plan.head ? threadIdx.x : tail + threadIdx.x - plan.head;
    const X logit[1] = {all_logits[i]};
    process<kPass, 1>(call, plan, loss, i, logit, factor, totals);
  }
  if (kPass != Pass::kGrad) leave_totals(call, totals);
}

struct StridedPlan {
  int64_t numel;
  Divider by_size[kMaxDims];
};

// Offsets of one element in every operand, from its place in the iteration space.
struct Offsets {
  int64_t logits = 0, target = 0, side = 0, weight = 0, upstream = 0, grad = 0, loss = 0;
  int64_t this_class = 0;
};

__device__ __forceinline__ Offsets locate(const PointwiseCall& call, const StridedPlan& plan,
                                          int64_t element) {
  Offsets at;
  for_each_index(call.shape.ndim, plan.by_size, element, [&](int d, int64_t index) {
    at.logits += index * call.logits.strides[d];
    at.target += index * call.target.strides[d];
    at.side += index * call.side.strides[d];
    at.weight += index * call.weight.strides[d];
    at.upstream += index * call.grad_output.strides[d];
    at.grad += index * call.grad.strides[d];
    at.loss += index * call.loss.strides[d];
    if (d == call.shape.class_dim) at.this_class = index;
  });
  return at;
}

template <Pass kPass, class X, class Loss>
__global__ void __launch_bounds__(kPointwiseThreads, kBlocksPerMultiprocessor)
    strided_kernel(const __grid_constant__ PointwiseCall call,
                   const __grid_constant__ StridedPlan plan, const Loss loss) {
  using T = typename Loss::value_type;
  const T factor = gradient_factor<kPass, T>(call);
  ThreadTotals<T> totals;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kSmallestTile;
#pragma unroll 1
  for (int64_t i = tile + threadIdx.x; i < plan.numel && i < tile + kSmallestTile;
       i += kPointwiseThreads) {
    const Offsets at = locate(call, plan, i);
    Fetched<T> f;
    f.element.logit = to<T>(static_cast<const X*>(call.logits.data)[at.logits]);
    f.element.side = call.side.data ? load_one<T>(call.side.data, call.side.dtype, at.side)
                                    : static_cast<T>(call.side_value);
    f.element.weight =
        call.weight.data ? load_one<T>(call.weight.data, call.weight.dtype, at.weight) : T(1);
    f.upstream =
        kPass == Pass::kGrad ? static_cast<const T*>(call.grad_output.data)[at.upstream] : T(1);
    if (call.indexed) {
      apply_label(call, load_label(call.target.data, call.target.dtype, at.target), at.this_class,
                  f);
    } else {
      f.element.target = load_one<T>(call.target.data, call.target.dtype, at.target);
      f.valid = f.element.target != static_cast<T>(call.ignored_target);
    }
    const ValueGrad<T> v = evaluate(loss, f, factor, totals);
    if (kPass != Pass::kLoss) static_cast<X*>(call.grad.data)[at.grad] = from<X>(v.grad);
    if (kPass != Pass::kGrad && call.reduction == Reduction::kNone)
      static_cast<T*>(call.loss.data)[at.loss] = v.loss;
  }
  if (kPass != Pass::kGrad) leave_totals(call, totals);
}

// Adds the blocks' totals and applies the mean's divisor: the loss, and the scale for backward. One
// block, so as many loads as possible are under way.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    finish_kernel(const __grid_constant__ PointwiseCall call, int64_t blocks) {
  __shared__ double loss_slots[kSumThreads / kWarp];
  __shared__ long long valid_slots[kSumThreads / kWarp];
  double loss = 0.0;
  long long valid = 0;
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < blocks; b += kSumThreads) {
    const BlockTotals& block = static_cast<const BlockTotals*>(call.workspace)[b];
    loss += block.loss;
    valid += block.valid;
  }
  loss = block_sum(loss, loss_slots);
  valid = block_sum(valid, valid_slots);
  if (threadIdx.x != 0) return;
  const bool mean = call.reduction == Reduction::kMean;
  const double divisor = true_divisor<T>(call, static_cast<double>(valid));
  const bool nothing = mean && valid == 0 && !call.counts_all;  // 0, with zero gradient
  if (call.reduction != Reduction::kNone)
    *static_cast<T*>(call.loss.data) = static_cast<T>(nothing ? 0.0 : loss / divisor);
  const double expected = static_cast<double>(expected_divisor<T>(call, call.shape.numel()));
  *static_cast<T*>(call.scale) = static_cast<T>(nothing ? 0.0 : expected / divisor);
}

}  // namespace fusedloss::cuda
