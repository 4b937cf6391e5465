// Rows whose classes are not neighbours in memory, such as the pixels of [N, C, H, W]: threads take
// V neighbouring rows each and walk the classes, so that a warp's accesses lie together. Any
// strides are right here; V > 1 where rows are neighbours and vectors of them aligned. Where there
// are few rows and many classes, the warps of a block share the classes of their rows.
#pragma once

#include "row_softmax_finish.cuh"

namespace fusedloss::cuda {

struct PixelPlan {
  int classes;
  int slices;  // warps that share the classes of their rows, a power of two
};

// Rows of a thread. More would leave no registers for what is under way at half occupancy, and
// bandwidth needs no wider loads than these: a warp moves full sectors either way.
template <class X>
constexpr int kPixelVector = sizeof(X) == 8 ? 1 : 2;
// Classes that a thread loads ahead, as many as registers allow.
template <class X>
constexpr int kPixelClasses = sizeof(X) == 8 ? 1 : 4;

template <int V, class T>
struct PixelStats {
  RowStats<T> rows[V];
  T logits[V] = {};  // of the targets
};

template <Pass kPass, int V, int U, class X>
__device__ __forceinline__ void load_pixels(const X* pixels, int64_t step, int j, int classes,
                                            X (&raw)[U][V]) {
#pragma unroll
  for (int u = 0; u < U; ++u)
    if (j + u < classes) load_logits<kPass, V>(pixels + (j + u) * step, raw[u]);
}

// The same for a walk that moves its pointer: `left` classes are there from `at` on, and -inf
// stands for the others, so that nothing else has to know of them.
template <Pass kPass, int V, int U, class X>
__device__ __forceinline__ void load_chunk(const X* at, int64_t step, int left, X (&raw)[U][V]) {
  if (left >= U) {
#pragma unroll
    for (int u = 0; u < U; ++u) load_logits<kPass, V>(at + u * step, raw[u]);
    return;
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < left) {
      load_logits<kPass, V>(at + u * step, raw[u]);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) raw[u][v] = from<X>(-kInfinity<Accumulator<X>>);
    }
  }
}

// Whether a label is one of the U classes from j on: asked once for all, as it seldom is.
template <int U, int V>
__device__ __forceinline__ bool any_among(const int (&labels)[V], int j) {
  bool any = false;
#pragma unroll
  for (int v = 0; v < V; ++v)
    any = any || static_cast<unsigned>(labels[v] - j) < static_cast<unsigned>(U);
  return any;
}

// u_j of V rows.
template <int V, class T>
__device__ __forceinline__ void pixel_units(const RowSoftmaxCall& call, const RowPlan& plan,
                                            int64_t target_at, int j, T (&out)[V]) {
  term_units<Along::kRows>(call, target_at + j * plan.target_step,
                           call.target.strides[call.shape.ndim - 1], j, out);
}

// `kWithTerms`: whether the loss may have such terms.
template <Pass kPass, bool kWithTerms, int V, class X, class T>
__device__ __forceinline__ void pixel_stats(const RowSoftmaxCall& call, const RowPlan& plan,
                                            const LogitRule<T>& rule, const PixelPlan& pixel,
                                            int slice, const X* pixels, int64_t target_at,
                                            const int (&labels)[V], PixelStats<V, T>& stats) {
  constexpr int U = kPixelClasses<X>;
  const int64_t step = plan.logits_step;
  const X* at = pixels + slice * U * step;
#pragma unroll 1
  for (int j = slice * U; j < pixel.classes; j += pixel.slices * U) {
    alignas(sizeof(X) * V) X raw[U][V];
    load_chunk<kPass>(at, step, pixel.classes - j, raw);
    at += pixel.slices * U * step;
    T x[V][U];
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int u = 0; u < U; ++u) x[v][u] = to<T>(raw[u][v]);
    if (any_among<U>(labels, j)) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
          if (j + u != labels[v]) continue;
          stats.logits[v] = x[v][u];
          x[v][u] = -kInfinity<T>;
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) stats.rows[v].add(rule, x[v]);
    if constexpr (kWithTerms) {
      if (call.terms == Terms::kNone) continue;
      // The logits once more, from the nearest cache: kept, they would fill registers.
#pragma unroll 1
      for (int k = j; k < j + U && k < pixel.classes; ++k) {
        T units[V];
        pixel_units(call, plan, target_at, k, units);
        load_logits<kPass, V>(pixels + k * plan.logits_step, raw[0]);
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (k != labels[v]) stats.rows[v].add_term(to<T>(raw[0][v]), units[v]);
      }
    }
  }
}

template <Pass kPass, int V, class X, class T>
__device__ __forceinline__ void pixel_gradients(const RowSoftmaxCall& call, const RowPlan& plan,
                                                const PixelPlan& pixel, int slice, const X* pixels,
                                                int64_t target_at, const RowSlope<T> (&slopes)[V],
                                                X* grads) {
  constexpr int U = kPixelClasses<X>;
  const int chunks = (pixel.classes + U - 1) / U;
  for (int c = slice; c < chunks; c += pixel.slices) {
    // After the statistics the last classes are those that the cache still has.
    const int j = (kPass == Pass::kGrad ? c : chunks - 1 - c) * U;
    alignas(sizeof(X) * V) X raw[U][V];
    load_pixels<kPass>(pixels, plan.logits_step, j, pixel.classes, raw);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (j + u >= pixel.classes) break;
      T units[V] = {};
      if (call.terms != Terms::kNone) pixel_units(call, plan, target_at, j + u, units);
#pragma unroll
      for (int v = 0; v < V; ++v)
        raw[u][v] = from<X>(slopes[v].at(j + u, to<T>(raw[u][v]), units[v]));
      store_vector<V>(raw[u], grads + (j + u) * plan.grad_step);
    }
  }
}

// Joins what the warps that share rows have seen: every thread gets the whole. `slots` has one
// place for each thread and may still be read by others.
template <int V, class T>
__device__ __forceinline__ void join_slices(const LogitRule<T>& rule, PixelStats<V, T>& stats,
                                            int slices, int slice, PixelStats<V, T>* slots) {
  __syncthreads();
  slots[threadIdx.x] = stats;
  __syncthreads();
  stats = PixelStats<V, T>();
  const int first = static_cast<int>(threadIdx.x) - slice * kWarp;
#pragma unroll 1
  for (int s = 0; s < slices; ++s) {
    const PixelStats<V, T>& other = slots[first + s * kWarp];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      stats.rows[v].join(rule, other.rows[v]);
      stats.logits[v] += other.logits[v];  // 0 but for the slice that has the target
    }
  }
}

// The V rows from `row` on, by one slice of their classes. All threads of a block come here; one
// without rows only waits with the others.
template <Pass kPass, int V, class X, class Loss>
__device__ __forceinline__ void pixel_rows(const RowSoftmaxCall& call, const RowPlan& plan,
                                           const PixelPlan& pixel, const Loss& loss, int64_t row,
                                           int slice, void* slots,
                                           RowTotals<typename Loss::value_type>& totals) {
  using T = typename Loss::value_type;
  const bool here = row < plan.rows;
  const auto rule = LogitRule<T>::of(call, loss);
  // Found again where needed: kept, the offsets would fill registers during the walk.
  const auto offsets = [&] { return locate_row(call, plan, here ? row : 0); };
  RowOffsets at = offsets();
  const X* pixels = static_cast<const X*>(call.logits.data) + at.logits;
  int labels[V];
#pragma unroll
  for (int v = 0; v < V; ++v) labels[v] = kIgnored;
  if (here) load_classes(call, at.target, labels);
  RowState<T> states[V] = {};
  T upstream[V] = {};
  if constexpr (kPass == Pass::kGrad) {
    T logits[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (labels[v] >= 0) logits[v] = to<T>(pixels[v + labels[v] * plan.logits_step]);
    restore_rows(call, loss, labels, logits, at.saved, states);
    load_apart(static_cast<const T*>(call.grad_output.data) + at.upstream,
               call.grad_output.strides[call.shape.ndim - 1], upstream);
    if (pixel.slices > 1) __syncthreads();  // all warps have read the target's logit
  } else {
    PixelStats<V, T> stats;
    if (here)
      pixel_stats<kPass, true>(call, plan, rule, pixel, slice, pixels, at.target, labels, stats);
    if (pixel.slices > 1)
      join_slices(rule, stats, pixel.slices, slice, static_cast<PixelStats<V, T>*>(slots));
    at = offsets();
#pragma unroll
    for (int v = 0; v < V; ++v)
      states[v] =
          finish_row(call, loss, RowInput<T>(call, labels[v]), stats.rows[v], stats.logits[v]);
    if (here && slice == 0) leave_rows(call, loss, labels, states, at, totals);
  }
  if constexpr (kPass != Pass::kLoss) {
    if (!here) return;
    at = offsets();
    RowSlope<T> slopes[V];
#pragma unroll
    for (int v = 0; v < V; ++v)
      slopes[v] = {loss, rule, labels[v], states[v], row_scale<kPass, T>(call, plan, upstream[v])};
    pixel_gradients<kPass>(call, plan, pixel, slice, pixels, at.target, slopes,
                           static_cast<X*>(call.grad.data) + at.grad);
  }
}

template <Pass kPass, int V, class X, class Loss>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerMultiprocessor<X>)
    row_pixels_kernel(const __grid_constant__ RowSoftmaxCall call,
                      const __grid_constant__ RowPlan plan, const __grid_constant__ PixelPlan pixel,
                      const Loss loss) {
  extern __shared__ __align__(16) unsigned char row_pixels_storage[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int slice = warp % pixel.slices;
  const int of_thread = (warp / pixel.slices * kWarp + lane) * V;
  const int of_block = kRowThreads / pixel.slices * V;
  RowTotals<typename Loss::value_type> totals;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * of_block; first < plan.rows;
       first += static_cast<int64_t>(gridDim.x) * of_block)
    pixel_rows<kPass, V, X>(call, plan, pixel, loss, first + of_thread, slice, row_pixels_storage,
                            totals);
  if (kPass != Pass::kGrad) leave_row_totals(call, totals, true, blockIdx.x);
}

}  // namespace fusedloss::cuda
