// Hard example mining over single elements: a pointwise functor of logit and target, without
// weights. Forward leaves marks and the counts that the selection begins with; backward computes
// the gradient of what is selected and writes zeros elsewhere, and reads marks first: where a
// vector has nothing selected, no logit of it is read.
//
// Dense calls are walked in vectors of as many elements as a 16-byte vector has marks; everything
// else element by element.
#pragma once

#include "../core/pointwise.h"
#include "../loss/binary_cross_entropy.h"
#include "divide.cuh"
#include "launch.cuh"
#include "select_count.cuh"
#include "vec_io.cuh"

namespace fusedloss::cuda {

constexpr int kMinedThreads = 256;
constexpr int kMinedBlocksPerMultiprocessor = 4;
// Vectors of a thread that are under way, and elements of a block at least: its counts cost as much
// as some elements.
constexpr int kMinedAhead = 2;
constexpr int64_t kElementsOfMinedBlock = 4096;

// A call of either pass: `call` with its views, and what mining adds.
struct MinedElements {
  PointwiseCall call;
  TensorView marks, slice;
  MarkCounts counts;      // forward
  const void* selection;  // backward
  int64_t numel, vectors;
  bool one_slice;
  Divider by_size[kMaxDims];

  template <class T>
  __device__ __forceinline__ Mark<T>* mark_at(int64_t at) const {
    return static_cast<Mark<T>*>(marks.data) + at;
  }
};

__device__ __forceinline__ int64_t thread_in_grid() {
  return static_cast<int64_t>(blockIdx.x) * kMinedThreads + threadIdx.x;
}

// --- Forward

template <class T>
struct MinedInput {
  T logit, target;
  bool masked;
};

template <class T, class Loss>
__device__ __forceinline__ Mark<T> mark_of(const Loss& loss, const MinedInput<T>& in) {
  return mark_element(loss({in.logit, in.target, T(-1), T(1)}).loss, in.target, in.masked);
}

// V elements from `at` on, where everything is dense.
template <int V, class X, class T>
struct MinedVector {
  alignas(sizeof(X) * V) X logits[V];
  T targets[V], mask[V];

  __device__ __forceinline__ void load(const PointwiseCall& call, int64_t at) {
    load_vector<V>(static_cast<const X*>(call.logits.data) + at, logits);
    load_as<V>(call.target.data, call.target.dtype, at, targets);
    if (call.weight.data != nullptr) load_as<V>(call.weight.data, call.weight.dtype, at, mask);
  }

  template <class Loss>
  __device__ __forceinline__ void leave(const MinedElements& mined, const Loss& loss, int64_t at,
                                        MarkSums<T>& sums) const {
    Mark<T> marks[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const bool masked = mined.call.weight.data != nullptr && mask[k] == T(0);
      marks[k] = mark_of<T>(loss, {to<T>(logits[k]), targets[k], masked});
      count_mark<T>(mined.counts, marks[k], sums);
    }
    store_vector<V>(marks, mined.mark_at<T>(at));
  }
};

template <int V, class X, class Loss>
__global__ void __launch_bounds__(kMinedThreads, kMinedBlocksPerMultiprocessor)
    mined_elements_kernel(const __grid_constant__ MinedElements mined, const Loss loss) {
  using T = typename Loss::value_type;
  begin_counting<T>(mined.counts);
  MarkSums<T> sums;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kMinedThreads;
#pragma unroll 1
  for (int64_t v = thread_in_grid(); v < mined.vectors; v += kMinedAhead * stride) {
    MinedVector<V, X, T> ahead[kMinedAhead];
#pragma unroll
    for (int b = 0; b < kMinedAhead; ++b)
      if (v + b * stride < mined.vectors) ahead[b].load(mined.call, (v + b * stride) * V);
#pragma unroll
    for (int b = 0; b < kMinedAhead; ++b)
      if (v + b * stride < mined.vectors) ahead[b].leave(mined, loss, (v + b * stride) * V, sums);
  }
  const int64_t last = mined.vectors * V + threadIdx.x;
  if (blockIdx.x == 0 && last < mined.numel) {
    MinedVector<1, X, T> one;
    one.load(mined.call, last);
    one.leave(mined, loss, last, sums);
  }
  end_counting(mined.counts, sums, true);
}

struct MinedOffsets {
  int64_t logits = 0, target = 0, mask = 0, marks = 0, slice = 0, upstream = 0, grad = 0;
};

__device__ __forceinline__ MinedOffsets locate_mined(const MinedElements& mined, int64_t element) {
  const PointwiseCall& call = mined.call;
  MinedOffsets at;
  for_each_index(call.shape.ndim, mined.by_size, element, [&](int d, int64_t index) {
    at.logits += index * call.logits.strides[d];
    at.target += index * call.target.strides[d];
    at.mask += index * call.weight.strides[d];
    at.marks += index * mined.marks.strides[d];
    at.slice += index * mined.slice.strides[d];
    at.upstream += index * call.grad_output.strides[d];
    at.grad += index * call.grad.strides[d];
  });
  return at;
}

template <class X, class Loss>
__global__ void __launch_bounds__(kMinedThreads, kMinedBlocksPerMultiprocessor)
    mined_strided_kernel(const __grid_constant__ MinedElements mined, const Loss loss) {
  using T = typename Loss::value_type;
  const PointwiseCall& call = mined.call;
  begin_counting<T>(mined.counts);
  MarkSums<T> sums;
#pragma unroll 1
  for (int64_t i = thread_in_grid(); i < mined.numel;
       i += static_cast<int64_t>(gridDim.x) * kMinedThreads) {
    const MinedOffsets at = locate_mined(mined, i);
    const T logit = to<T>(static_cast<const X*>(call.logits.data)[at.logits]);
    const T target = load_one<T>(call.target.data, call.target.dtype, at.target);
    const bool masked = call.weight.data != nullptr &&
                        load_one<T>(call.weight.data, call.weight.dtype, at.mask) == T(0);
    const Mark<T> mark = mark_of<T>(loss, {logit, target, masked});
    *mined.mark_at<T>(at.marks) = mark;
    count_mark<T>(mined.counts, mark, sums);
  }
  end_counting(mined.counts, sums, true);
}

// --- Backward

template <class T>
__device__ __forceinline__ Selection<T> selection_of(const MinedElements& mined, int64_t slice) {
  const T* pair = static_cast<const T*>(mined.selection) + 2 * slice;
  return {__ldg(pair), __ldg(pair + 1)};
}

// The gradient of one element of which `factor` is not 0.
template <class X, class T, class Loss>
__device__ __forceinline__ X mined_gradient(const Loss& loss, X logit, T target, T factor) {
  return from<X>(factor * loss({to<T>(logit), target, T(-1), T(1)}).grad);
}

// Which part of V elements' gradients counts. Slices are rows of the dense call, if there are
// several.
template <int V, class T>
__device__ __forceinline__ bool vector_shares(const MinedElements& mined,
                                              const Selection<T>& selection,
                                              const Mark<T> (&marks)[V], int64_t at,
                                              T (&shares)[V]) {
  bool any = false;
  int64_t place = 0, row = 0;
  if (!mined.one_slice) row = mined.by_size[1].divide(at, place);
  Selection<T> own = selection;
  if (!mined.one_slice) own = selection_of<T>(mined, row * mined.slice.strides[0]);
#pragma unroll
  for (int k = 0; k < V; ++k) {
    shares[k] = share_of(own, marks[k]);
    any |= shares[k] != T(0);
    if (k + 1 == V || mined.one_slice || ++place < mined.call.shape.sizes[1]) continue;
    place = 0;
    own = selection_of<T>(mined, ++row * mined.slice.strides[0]);
  }
  return any;
}

template <int V, class X, class Loss, class T>
__device__ __forceinline__ void vector_gradient(const MinedElements& mined, const Loss& loss,
                                                const Selection<T>& selection, T scale,
                                                const Mark<T> (&marks)[V], int64_t at) {
  const PointwiseCall& call = mined.call;
  alignas(sizeof(X) * V) X grads[V] = {};
  T shares[V];
  if (vector_shares<V, T>(mined, selection, marks, at, shares)) {
    alignas(sizeof(X) * V) X logits[V];
    T targets[V], upstream[V];
    load_vector<V>(static_cast<const X*>(call.logits.data) + at, logits);
    load_as<V>(call.target.data, call.target.dtype, at, targets);
    const bool constant = call.grad_output.strides[call.shape.ndim - 1] == 0;
    const T* upstreams = static_cast<const T*>(call.grad_output.data);
    if (!constant) load_vector<V>(upstreams + at, upstream);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const T factor = shares[k] * ((constant ? *upstreams : upstream[k]) * scale);
      if (shares[k] != T(0)) grads[k] = mined_gradient(loss, logits[k], targets[k], factor);
    }
  }
  store_vector<V>(grads, static_cast<X*>(call.grad.data) + at);
}

template <int V, class X, class Loss>
__global__ void __launch_bounds__(kMinedThreads, kMinedBlocksPerMultiprocessor)
    mined_gradient_kernel(const __grid_constant__ MinedElements mined, const Loss loss) {
  using T = typename Loss::value_type;
  const T scale = *static_cast<const T*>(mined.call.scale);
  Selection<T> selection{};
  if (mined.one_slice) selection = selection_of<T>(mined, 0);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kMinedThreads;
#pragma unroll 1
  for (int64_t v = thread_in_grid(); v < mined.vectors; v += kMinedAhead * stride) {
    Mark<T> marks[kMinedAhead][V];
#pragma unroll
    for (int b = 0; b < kMinedAhead; ++b)
      if (v + b * stride < mined.vectors)
        load_vector<V>(mined.mark_at<T>((v + b * stride) * V), marks[b]);
#pragma unroll
    for (int b = 0; b < kMinedAhead; ++b)
      if (v + b * stride < mined.vectors)
        vector_gradient<V, X>(mined, loss, selection, scale, marks[b], (v + b * stride) * V);
  }
  const int64_t last = mined.vectors * V + threadIdx.x;
  if (blockIdx.x != 0 || last >= mined.numel) return;
  const Mark<T> mark[1] = {*mined.mark_at<T>(last)};
  vector_gradient<1, X>(mined, loss, selection, scale, mark, last);
}

template <class X, class Loss>
__global__ void __launch_bounds__(kMinedThreads, kMinedBlocksPerMultiprocessor)
    mined_strided_gradient_kernel(const __grid_constant__ MinedElements mined, const Loss loss) {
  using T = typename Loss::value_type;
  const PointwiseCall& call = mined.call;
  const T scale = *static_cast<const T*>(call.scale);
#pragma unroll 1
  for (int64_t i = thread_in_grid(); i < mined.numel;
       i += static_cast<int64_t>(gridDim.x) * kMinedThreads) {
    const MinedOffsets at = locate_mined(mined, i);
    const T share = share_of(selection_of<T>(mined, at.slice), *mined.mark_at<T>(at.marks));
    X grad{};
    if (share != T(0)) {
      const T upstream = static_cast<const T*>(call.grad_output.data)[at.upstream];
      const T target = load_one<T>(call.target.data, call.target.dtype, at.target);
      grad = mined_gradient(loss, static_cast<const X*>(call.logits.data)[at.logits], target,
                            share * (upstream * scale));
    }
    static_cast<X*>(call.grad.data)[at.grad] = grad;
  }
}

}  // namespace fusedloss::cuda
