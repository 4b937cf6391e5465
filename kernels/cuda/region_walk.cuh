// How the region engine walks the classes of neighbouring rows, and the first of its walks: the
// rows' maxima and sums.
#pragma once

#include "row_softmax_pixels.cuh"

namespace fusedloss::cuda {

// The classes of V rows, the first of whose targets is at `target_at`.
template <int V>
__device__ __forceinline__ void load_classes(const RowSoftmaxCall& call, int64_t target_at,
                                             int (&out)[V]) {
  RawLabels<V> raw;
  raw.load(call, target_at);
  raw.to_classes(call, out);
}

// U classes of V rows for a walk that moves its pointer: `left` classes are there from `at` on, and
// -inf stands for the others, so that nothing else has to know of them.
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

// As pixel_stats, with a moving pointer and one question for all labels, which takes a little more
// registers than that kernel has. `kWithTerms`: whether the loss may have such terms.
template <bool kWithTerms, int V, class X, class T>
__device__ __forceinline__ void region_stats(const RowSoftmaxCall& call, const RowPlan& plan,
                                             const LogitRule<T>& rule, const X* pixels,
                                             int64_t target_at, const int (&labels)[V],
                                             PixelStats<V, T>& stats) {
  constexpr int U = kPixelClasses<X>;
  const int classes = static_cast<int>(call.num_classes);
  const int64_t step = plan.logits_step;
  const X* at = pixels;
#pragma unroll 1
  for (int j = 0; j < classes; j += U) {
    alignas(sizeof(X) * V) X raw[U][V];
    load_chunk<Pass::kLoss>(at, step, classes - j, raw);
    at += U * step;
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
      for (int k = j; k < j + U && k < classes; ++k) {
        T units[V];
        pixel_units(call, plan, target_at, k, units);
        load_logits<Pass::kLoss, V>(pixels + k * plan.logits_step, raw[0]);
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (k != labels[v]) stats.rows[v].add_term(to<T>(raw[0][v]), units[v]);
      }
    }
  }
}

}  // namespace fusedloss::cuda
