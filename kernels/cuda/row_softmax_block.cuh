// Long rows whose classes are neighbours in memory: a block takes one row after the other, each
// with 16-byte accesses from its own first 16-byte boundary on. One walk collects the statistics; a
// forward that writes the gradient walks again, over the row kept in shared memory where that holds
// it, else backwards over the logits, whose end is what the cache still has.
#pragma once

#include "row_softmax_tile.cuh"

namespace fusedloss::cuda {

struct BlockPlan {
  int classes;
  bool keep;  // the row in shared memory
};

// At most: as many as registers allow of the same occupancy.
template <class X>
constexpr int kRowBlockThreads = kRowThreads * kRowBlocksPerMultiprocessor<X>;

// A row as a block walks it: vectors, then what they leave over, each with the loads of kAhead
// steps under way.
template <class X>
struct RowWalk {
  static constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  // A double exponential takes too many registers for two.
  static constexpr int kAhead = sizeof(X) == 8 ? 1 : 2;
  Span span;
  int classes;

  // No vectors where the gradient lies otherwise than the logits.
  __device__ __forceinline__ RowWalk(const X* logits, const X* grad, int row_classes)
      : span(Span::of(logits, row_classes)), classes(row_classes) {
    if (grad != nullptr && misalignment(grad) != misalignment(logits)) span = {row_classes, 0};
  }

  __device__ __forceinline__ int vector_at(int v) const { return span.head + v * V; }
  __device__ __forceinline__ int leftovers() const { return classes - span.vectors * V; }
};

template <Pass kPass, int N, class X, class T>
struct RowChunk {
  alignas(sizeof(X) * N) X raw[N];
  T x[N];

  __device__ __forceinline__ void load(const X* from) { load_logits<kPass, N>(from, raw); }

  // For the gradient: what the first walk kept, if it did. Of an ignored row nothing is read.
  __device__ __forceinline__ void load_again(const X* from, const X* kept, bool ignored) {
    if (ignored) {
#pragma unroll
      for (int k = 0; k < N; ++k) raw[k] = X{};
    } else if (kept != nullptr) {
      load_vector_coherent<N>(kept, raw);
    } else {
      load(from);
    }
  }

  __device__ __forceinline__ void convert() {
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = to<T>(raw[k]);
  }
};

// Takes N neighbouring logits into the statistics.
template <TermsKind kTerms, int N, class T>
__device__ __forceinline__ void add_chunk(const RowSoftmaxCall& call, const RowPlan& plan,
                                          const LogitRule<T>& rule, int64_t target_at, int j,
                                          int label, T (&x)[N], RowStats<T>& stats) {
  const bool has_label = static_cast<unsigned>(label - j) < static_cast<unsigned>(N);
  if (has_label) {
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k == label) x[k] = -kInfinity<T>;
  }
  stats.add(rule, x);
  if (kTerms == TermsKind::kUniform && !has_label) stats.add_uniform_terms(x);
  if (kTerms == TermsKind::kUniform && has_label) {
    bool counted[N];
#pragma unroll
    for (int k = 0; k < N; ++k) counted[k] = j + k != label;
    stats.add_uniform_terms(x, counted);
  }
  if (kTerms != TermsKind::kAny || call.terms == Terms::kNone) return;
  T u[N];
  term_units<Along::kClasses>(call, target_at + j * plan.target_step, plan.target_step, j, u);
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (j + k != label) stats.add_term(x[k], u[k]);
}

template <Pass kPass, TermsKind kTerms, class T, class X>
__device__ __forceinline__ RowStats<T> block_row_stats(const RowSoftmaxCall& call,
                                                       const RowPlan& plan,
                                                       const LogitRule<T>& rule,
                                                       const RowWalk<X>& walk, const X* row,
                                                       X* kept, int64_t target_at, int label) {
  // Weights beside the 8 logits of a half type's vector leave no registers for a second one.
  constexpr bool kCrowded = kTerms == TermsKind::kAny && sizeof(X) == 2;
  constexpr int V = RowWalk<X>::V, kAhead = kCrowded ? 1 : RowWalk<X>::kAhead;
  const int threads = blockDim.x;
  RowStats<T> stats;
  for (int first = threadIdx.x; first < walk.span.vectors; first += kAhead * threads) {
    RowChunk<kPass, V, X, T> chunks[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (first + a * threads < walk.span.vectors)
        chunks[a].load(row + walk.vector_at(first + a * threads));
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + a * threads >= walk.span.vectors) continue;
      const int j = walk.vector_at(first + a * threads);
      if (kept != nullptr) store_vector<V>(chunks[a].raw, kept + j);
      chunks[a].convert();
      add_chunk<kTerms>(call, plan, rule, target_at, j, label, chunks[a].x, stats);
    }
  }
  for (int i = threadIdx.x; i < walk.leftovers(); i += threads) {
    const int j = walk.span.template peeled<V>(i);
    RowChunk<kPass, 1, X, T> chunk;
    chunk.load(row + j);
    if (kept != nullptr) kept[j] = chunk.raw[0];
    chunk.convert();
    add_chunk<kTerms>(call, plan, rule, target_at, j, label, chunk.x, stats);
  }
  return stats;
}

template <TermsKind kTerms, Pass kPass, int N, class X, class T>
__device__ __forceinline__ void chunk_gradient(const RowSoftmaxCall& call, const RowPlan& plan,
                                               int64_t target_at, int j, const RowSlope<T>& slope,
                                               RowChunk<kPass, N, X, T>& chunk, X* grad) {
  T u[N];
#pragma unroll
  for (int k = 0; k < N; ++k) u[k] = T(kTerms == TermsKind::kUniform ? 1 : 0);
  if (kTerms == TermsKind::kAny && call.terms != Terms::kNone)
    term_units<Along::kClasses>(call, target_at + j * plan.target_step, plan.target_step, j, u);
#pragma unroll
  for (int k = 0; k < N; ++k) chunk.raw[k] = from<X>(slope.others(to<T>(chunk.raw[k]), u[k]));
  if (static_cast<unsigned>(slope.label - j) < static_cast<unsigned>(N)) {
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k == slope.label) chunk.raw[k] = from<X>(slope.target);
  }
  if (slope.ignored()) {
#pragma unroll
    for (int k = 0; k < N; ++k) chunk.raw[k] = X{};
  }
  store_vector<N>(chunk.raw, grad + j);
}

// Each thread reads what it or nobody wrote: its own places of `kept`, or the logits.
template <Pass kPass, TermsKind kTerms, class X, class T>
__device__ __forceinline__ void block_row_gradient(const RowSoftmaxCall& call, const RowPlan& plan,
                                                   const RowWalk<X>& walk, const X* row,
                                                   const X* kept, int64_t target_at,
                                                   const RowSlope<T>& slope, X* grad) {
  // Half types have twice the elements in a vector, and registers for one.
  constexpr int V = RowWalk<X>::V, kAhead = sizeof(X) == 4 ? RowWalk<X>::kAhead : 1;
  const int threads = blockDim.x;
  for (int i = threadIdx.x; i < walk.leftovers(); i += threads) {
    const int j = walk.span.template peeled<V>(i);
    RowChunk<kPass, 1, X, T> chunk;
    chunk.load_again(row + j, kept == nullptr ? nullptr : kept + j, slope.ignored());
    chunk_gradient<kTerms>(call, plan, target_at, j, slope, chunk, grad);
  }
  for (int first = threadIdx.x; first < walk.span.vectors; first += kAhead * threads) {
    RowChunk<kPass, V, X, T> chunks[kAhead];
    int j[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int v = first + a * threads;
      if (v >= walk.span.vectors) continue;
      // What the first walk read by this thread is read back by it, in reverse where not kept.
      j[a] =
          walk.vector_at(kPass == Pass::kGrad || kept != nullptr ? v : walk.span.vectors - 1 - v);
      chunks[a].load_again(row + j[a], kept == nullptr ? nullptr : kept + j[a], slope.ignored());
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (first + a * threads < walk.span.vectors)
        chunk_gradient<kTerms>(call, plan, target_at, j[a], slope, chunks[a], grad);
  }
}

// Joins the statistics of a block's warps, as they left them in `slots`.
template <class T>
__device__ __forceinline__ RowStats<T> join_warps(const LogitRule<T>& rule, bool has_terms,
                                                  const RowStats<T>* slots) {
  const int lane = threadIdx.x % kWarp;
  RowStats<T> stats;
  if (lane < static_cast<int>(blockDim.x) / kWarp) stats = slots[lane];
  stats.join(rule, kWarp, has_terms);
  return stats;
}

template <Pass kPass, TermsKind kTerms, class X, class Loss>
__global__ void __launch_bounds__(kRowBlockThreads<X>, 1)
    row_block_kernel(const __grid_constant__ RowSoftmaxCall call,
                     const __grid_constant__ RowPlan plan, const __grid_constant__ BlockPlan block,
                     const Loss loss) {
  using T = typename Loss::value_type;
  extern __shared__ __align__(16) unsigned char row_block_storage[];
  // Two sets in turn: a row's may still be read when the next row's are written.
  __shared__ RowStats<T> slots[2][kWarp];
  int set = 0;
  const auto rule = LogitRule<T>::of(call, loss);
  const bool has_terms = kTerms != TermsKind::kNone && call.terms != Terms::kNone;
  const int warp = threadIdx.x / kWarp;
  RowTotals<T> totals;
  RawLabels<1> raw, next;  // a row's label is loaded while the row before is worked on
  RowShares<1, kPass, Loss> shares, next_shares;
  begin_rows<kPass>(loss);
  if (blockIdx.x < plan.rows) {
    const RowOffsets at = locate_row(call, plan, blockIdx.x);
    next.load(call, at.target);
    next_shares.load(call, at.saved);
  }
  for (int64_t index = blockIdx.x; index < plan.rows; index += gridDim.x) {
    raw = next;
    shares = next_shares;
    if (index + gridDim.x < plan.rows) {
      const RowOffsets after = locate_row(call, plan, index + gridDim.x);
      next.load(call, after.target);
      next_shares.load(call, after.saved);
    }
    RowOffsets at = locate_row(call, plan, index);
    const X* row = static_cast<const X*>(call.logits.data) + at.logits;
    X* kept = nullptr;
    if (kPass != Pass::kLoss && kCollects<kPass, Loss> && block.keep)
      kept = reinterpret_cast<X*>(row_block_storage + misalignment(row));
    const X* grads = static_cast<const X*>(call.grad.data);
    const RowWalk<X> walk(row, kPass == Pass::kLoss ? nullptr : grads + at.grad, block.classes);
    int label[1];
    raw.to_classes(call, label);
    shares.select(loss, label);
    const T logit[1] = {label[0] >= 0 ? to<T>(row[label[0]]) : T(0)};
    T upstream = T(0);
    RowState<T> state[1] = {};
    if constexpr (!kCollects<kPass, Loss>) {
      restore_rows(call, loss, label, logit, at.saved, state);
      upstream = static_cast<const T*>(call.grad_output.data)[at.upstream];
      __syncthreads();  // all threads have read the target's logit
    } else {
      if (label[0] != kIgnored) {  // an ignored row is not read
        RowStats<T> stats = block_row_stats<kPass, kTerms, T>(call, plan, rule, walk, row, kept,
                                                              at.target, label[0]);
        stats.join(rule, kWarp, has_terms);
        if (threadIdx.x % kWarp == 0) slots[set][warp] = stats;
        __syncthreads();
      }
      // Where no gradient follows, the end of a row is the first warp's; the others go on.
      if (kPass == Pass::kLoss && warp != 0) {
        set ^= label[0] != kIgnored ? 1 : 0;
        continue;
      }
      if (label[0] != kIgnored) {
        const RowStats<T> stats = join_warps(rule, has_terms, slots[set]);
        state[0] = finish_row(call, loss, RowInput<T>(call, label[0]), stats, logit[0]);
        set ^= 1;
      }
      // Found again: kept, the offsets would fill registers during the walk.
      at = locate_row(call, plan, index);
      if constexpr (kPass == Pass::kGrad)
        upstream = static_cast<const T*>(call.grad_output.data)[at.upstream];
      else if (threadIdx.x == 0)
        leave_rows(call, loss, label, state, at, totals);
    }
    if constexpr (kPass != Pass::kLoss) {
      const RowSlope<T> slope(loss, rule, label[0], state[0],
                              row_scale<kPass>(call, plan, loss, upstream, shares.of(loss, 0)));
      block_row_gradient<kPass, kTerms>(call, plan, walk, row, kept, at.target, slope,
                                        static_cast<X*>(call.grad.data) + at.grad);
    }
  }
  end_rows<kPass>(call, loss, totals, false);
}

}  // namespace fusedloss::cuda
