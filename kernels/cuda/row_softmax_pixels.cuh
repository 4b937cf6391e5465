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

// The classes from j on; `whole`: none of the U is beyond the last.
template <Pass kPass, int V, int U, class X>
__device__ __forceinline__ void load_pixels(const X* pixels, int64_t step, int j, int classes,
                                            bool whole, X (&raw)[U][V]) {
  const X* from = pixels + j * step;
  if (whole) {
#pragma unroll
    for (int u = 0; u < U; ++u, from += step) load_logits<kPass, V>(from, raw[u]);
  } else {
#pragma unroll
    for (int u = 0; u < U; ++u, from += step)
      if (j + u < classes) load_logits<kPass, V>(from, raw[u]);
  }
}

// u_j of V rows.
template <int V, class T>
__device__ __forceinline__ void pixel_units(const RowSoftmaxCall& call, const RowPlan& plan,
                                            int64_t target_at, int j, T (&out)[V]) {
  term_units<Along::kRows>(call, target_at + j * plan.target_step,
                           call.target.strides[call.shape.ndim - 1], j, out);
}

// Takes U classes of V rows into their statistics.
template <TermsKind kTerms, int V, int U, class X, class T>
__device__ __forceinline__ void add_pixels(const LogitRule<T>& rule, const X (&raw)[U][V], int j,
                                           int classes, const int (&labels)[V],
                                           PixelStats<V, T>& stats) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    T x[U];
#pragma unroll
    for (int u = 0; u < U; ++u) x[u] = j + u < classes ? to<T>(raw[u][v]) : -kInfinity<T>;
    const bool has_label = static_cast<unsigned>(labels[v] - j) < static_cast<unsigned>(U);
    if (has_label) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (j + u != labels[v]) continue;
        stats.logits[v] = x[u];
        x[u] = -kInfinity<T>;
      }
    }
    stats.rows[v].add(rule, x);
    if (kTerms != TermsKind::kUniform) continue;
    if (!has_label && j + U <= classes) {
      stats.rows[v].add_uniform_terms(x);
      continue;
    }
    bool counted[U];
#pragma unroll
    for (int u = 0; u < U; ++u) counted[u] = j + u < classes && j + u != labels[v];
    stats.rows[v].add_uniform_terms(x, counted);
  }
}

// The terms of classes j to `end` of V rows. The logits once more, from the nearest cache: kept,
// they would fill registers.
template <Pass kPass, int V, class X, class T>
__device__ __forceinline__ void add_pixel_terms(const RowSoftmaxCall& call, const RowPlan& plan,
                                                const X* pixels, int64_t target_at, int j, int end,
                                                const int (&labels)[V], PixelStats<V, T>& stats) {
#pragma unroll 1
  for (; j < end; ++j) {
    T units[V];
    alignas(sizeof(X) * V) X raw[V];
    pixel_units(call, plan, target_at, j, units);
    load_logits<kPass, V>(pixels + j * plan.logits_step, raw);
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (j != labels[v]) stats.rows[v].add_term(to<T>(raw[v]), units[v]);
  }
}

// `raw_labels(labels)` makes classes of the labels.
template <Pass kPass, TermsKind kTerms, int V, class X, class T, class RawLabelsOf>
__device__ __forceinline__ void pixel_stats(const RowSoftmaxCall& call, const RowPlan& plan,
                                            const LogitRule<T>& rule, const PixelPlan& pixel,
                                            int slice, const X* pixels, int64_t target_at,
                                            const RawLabelsOf& raw_labels, int (&labels)[V],
                                            PixelStats<V, T>& stats) {
  constexpr int U = kPixelClasses<X>;
  alignas(sizeof(X) * V) X raw[U][V];
  const auto whole = [&](int j) { return j + U <= pixel.classes; };
  const auto load = [&](int j) {
    load_pixels<kPass>(pixels, plan.logits_step, j, pixel.classes, whole(j), raw);
  };
  int j = slice * U;
  load(j);
  raw_labels(labels);  // waits for the labels while logits are on their way
  while (true) {
    if (whole(j))
      add_pixels<kTerms>(rule, raw, j, j + U, labels, stats);
    else
      add_pixels<kTerms>(rule, raw, j, pixel.classes, labels, stats);
    if (kTerms == TermsKind::kAny && call.terms != Terms::kNone)
      add_pixel_terms<kPass>(call, plan, pixels, target_at, j, min(j + U, pixel.classes), labels,
                             stats);
    j += pixel.slices * U;
    if (j >= pixel.classes) return;
    load(j);
  }
}

template <Pass kPass, TermsKind kTerms, int V, class X, class T>
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
    load_pixels<kPass>(pixels, plan.logits_step, j, pixel.classes, j + U <= pixel.classes, raw);
    X* to_grads = grads + j * plan.grad_step;
#pragma unroll
    for (int u = 0; u < U; ++u, to_grads += plan.grad_step) {
      if (j + u >= pixel.classes) break;
      T units[V];
#pragma unroll
      for (int v = 0; v < V; ++v) units[v] = T(kTerms == TermsKind::kUniform ? 1 : 0);
      if (kTerms == TermsKind::kAny && call.terms != Terms::kNone)
        pixel_units(call, plan, target_at, j + u, units);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const T others = slopes[v].others(to<T>(raw[u][v]), units[v]);
        const T own = j + u == slopes[v].label ? slopes[v].target : others;
        raw[u][v] = from<X>(slopes[v].ignored() ? T(0) : own);
      }
      store_vector<V>(raw[u], to_grads);
    }
  }
}

// Those of rows of which none is selected.
template <int V, class X>
__device__ __forceinline__ void zero_pixels(const RowPlan& plan, const PixelPlan& pixel, int slice,
                                            X* grads) {
  alignas(sizeof(X) * V) const X zeros[V] = {};
#pragma unroll 4
  for (int j = slice; j < pixel.classes; j += pixel.slices)
    store_vector<V>(zeros, grads + j * plan.grad_step);
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
template <Pass kPass, TermsKind kTerms, int V, class X, class Loss>
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
  RawLabels<V> raw;
  RowShares<V, kPass, Loss> shares;
  if (here) raw.load(call, at.target);
  if (here) shares.load(call, at.saved);
  int labels[V];
#pragma unroll
  for (int v = 0; v < V; ++v) labels[v] = kIgnored;
  RowState<T> states[V] = {};
  T upstream[V] = {};
  bool any = here;
  const auto load_upstream = [&] {
    load_apart(static_cast<const T*>(call.grad_output.data) + at.upstream,
               call.grad_output.strides[call.shape.ndim - 1], upstream);
  };
  if constexpr (!kCollects<kPass, Loss>) {
    T logits[V] = {};
    if (here) raw.to_classes(call, labels);
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (labels[v] >= 0) logits[v] = to<T>(pixels[v + labels[v] * plan.logits_step]);
    restore_rows(call, loss, labels, logits, at.saved, states);
    load_upstream();
    if (pixel.slices > 1) __syncthreads();  // all warps have read the target's logit
  } else {
    PixelStats<V, T> stats;
    if (kSelects<kPass, Loss> && here) {  // before a logit is read
      raw.to_classes(call, labels);
      any = shares.select(loss, labels);
    }
    const auto classes_of = [&](int (&out)[V]) {
      if (!kSelects<kPass, Loss>) raw.to_classes(call, out);
    };
    if (any)
      pixel_stats<kPass, kTerms>(call, plan, rule, pixel, slice, pixels, at.target, classes_of,
                                 labels, stats);
    if (pixel.slices > 1)
      join_slices(rule, stats, pixel.slices, slice, static_cast<PixelStats<V, T>*>(slots));
    at = offsets();
#pragma unroll
    for (int v = 0; v < V; ++v)
      states[v] =
          finish_row(call, loss, RowInput<T>(call, labels[v]), stats.rows[v], stats.logits[v]);
    if constexpr (kPass == Pass::kGrad)
      load_upstream();
    else if (here && slice == 0)
      leave_rows(call, loss, labels, states, at, totals);
  }
  if constexpr (kPass != Pass::kLoss) {
    if (!here) return;
    at = offsets();
    if (!any) return zero_pixels<V>(plan, pixel, slice, static_cast<X*>(call.grad.data) + at.grad);
    RowSlope<T> slopes[V];
#pragma unroll
    for (int v = 0; v < V; ++v)
      slopes[v] = {loss, rule, labels[v], states[v],
                   row_scale<kPass>(call, plan, loss, upstream[v], shares.of(loss, v))};
    pixel_gradients<kPass, kTerms>(call, plan, pixel, slice, pixels, at.target, slopes,
                                   static_cast<X*>(call.grad.data) + at.grad);
  }
}

template <Pass kPass, TermsKind kTerms, int V, class X, class Loss>
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
  begin_rows<kPass>(loss);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * of_block; first < plan.rows;
       first += static_cast<int64_t>(gridDim.x) * of_block)
    pixel_rows<kPass, kTerms, V, X>(call, plan, pixel, loss, first + of_thread, slice,
                                    row_pixels_storage, totals);
  end_rows<kPass>(call, loss, totals, true);
}

}  // namespace fusedloss::cuda
