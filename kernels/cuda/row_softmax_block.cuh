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
template <int N, class T>
__device__ __forceinline__ void add_chunk(const RowSoftmaxCall& call, const RowPlan& plan,
                                          const LogitRule<T>& rule, int64_t target_at, int j,
                                          int label, T (&x)[N], RowStats<T>& stats) {
  if (label >= j && label < j + N) {
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k == label) x[k] = -kInfinity<T>;
  }
  stats.add(rule, x);
  if (call.terms == Terms::kNone) return;
  T u[N];
  term_units<Along::kClasses>(call, target_at + j * plan.target_step, plan.target_step, j, u);
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (j + k != label) stats.add_term(x[k], u[k]);
}

template <Pass kPass, class T, class X>
__device__ __forceinline__ RowStats<T> block_row_stats(const RowSoftmaxCall& call,
                                                       const RowPlan& plan,
                                                       const LogitRule<T>& rule,
                                                       const RowWalk<X>& walk, const X* row,
                                                       X* kept, int64_t target_at, int label) {
  constexpr int V = RowWalk<X>::V, kAhead = RowWalk<X>::kAhead;
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
      add_chunk(call, plan, rule, target_at, j, label, chunks[a].x, stats);
    }
  }
  for (int i = threadIdx.x; i < walk.leftovers(); i += threads) {
    const int j = walk.span.template peeled<V>(i);
    RowChunk<kPass, 1, X, T> chunk;
    chunk.load(row + j);
    if (kept != nullptr) kept[j] = chunk.raw[0];
    chunk.convert();
    add_chunk(call, plan, rule, target_at, j, label, chunk.x, stats);
  }
  return stats;
}

template <Pass kPass, int N, class X, class T>
__device__ __forceinline__ void chunk_gradient(const RowSoftmaxCall& call, const RowPlan& plan,
                                               int64_t target_at, int j, const RowSlope<T>& slope,
                                               RowChunk<kPass, N, X, T>& chunk, X* grad) {
  T u[N] = {};
  if (call.terms != Terms::kNone)
    term_units<Along::kClasses>(call, target_at + j * plan.target_step, plan.target_step, j, u);
#pragma unroll
  for (int k = 0; k < N; ++k) chunk.raw[k] = from<X>(slope.at(j + k, to<T>(chunk.raw[k]), u[k]));
  store_vector<N>(chunk.raw, grad + j);
}

// Each thread reads what it or nobody wrote: its own places of `kept`, or the logits.
template <Pass kPass, class X, class T>
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
    chunk_gradient(call, plan, target_at, j, slope, chunk, grad);
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
        chunk_gradient(call, plan, target_at, j[a], slope, chunks[a], grad);
  }
}

// Joins the statistics of all threads: every thread gets the row's. `slots` must not be in use.
template <class T>
__device__ __forceinline__ void join_block(const LogitRule<T>& rule, RowStats<T>& stats,
                                           bool has_terms, RowStats<T>* slots) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  stats.join(rule, kWarp, has_terms);
  if (lane == 0) slots[warp] = stats;
  __syncthreads();
  stats = lane < static_cast<int>(blockDim.x) / kWarp ? slots[lane] : RowStats<T>();
  stats.join(rule, kWarp, has_terms);
}

template <Pass kPass, class X, class Loss>
__global__ void __launch_bounds__(kRowBlockThreads<X>, 1)
    row_block_kernel(const __grid_constant__ RowSoftmaxCall call,
                     const __grid_constant__ RowPlan plan, const __grid_constant__ BlockPlan block,
                     const Loss loss) {
  using T = typename Loss::value_type;
  extern __shared__ __align__(16) unsigned char row_block_storage[];
  __shared__ RowStats<T> slots[kWarp];
  const auto rule = LogitRule<T>::of(call, loss);
  RowTotals<T> totals;
  for (int64_t index = blockIdx.x; index < plan.rows; index += gridDim.x) {
    RowOffsets at = locate_row(call, plan, index);
    const X* row = static_cast<const X*>(call.logits.data) + at.logits;
    X* kept = nullptr;
    if (kPass == Pass::kLossAndGrad && block.keep)
      kept = reinterpret_cast<X*>(row_block_storage + misalignment(row));
    const X* grads = static_cast<const X*>(call.grad.data);
    const RowWalk<X> walk(row, kPass == Pass::kLoss ? nullptr : grads + at.grad, block.classes);
    int label[1];
    load_classes(call, at.target, label);
    const T logit[1] = {label[0] >= 0 ? to<T>(row[label[0]]) : T(0)};
    T upstream = T(0);
    RowState<T> state[1] = {};
    if constexpr (kPass == Pass::kGrad) {
      restore_rows(call, loss, label, logit, at.saved, state);
      upstream = static_cast<const T*>(call.grad_output.data)[at.upstream];
      __syncthreads();  // all threads have read the target's logit
    } else {
      if (label[0] != kIgnored) {  // an ignored row is not read
        RowStats<T> stats =
            block_row_stats<kPass, T>(call, plan, rule, walk, row, kept, at.target, label[0]);
        __syncthreads();  // the slots of the row before have been read
        join_block(rule, stats, call.terms != Terms::kNone, slots);
        state[0] = finish_row(call, loss, RowInput<T>(call, label[0]), stats, logit[0]);
      }
      // Found again: kept, the offsets would fill registers during the walk.
      at = locate_row(call, plan, index);
      if (threadIdx.x == 0) leave_rows(call, loss, label, state, at, totals);
    }
    if constexpr (kPass != Pass::kLoss) {
      const RowSlope<T> slope(loss, rule, label[0], state[0],
                              row_scale<kPass, T>(call, plan, upstream));
      block_row_gradient<kPass>(call, plan, walk, row, kept, at.target, slope,
                                static_cast<X*>(call.grad.data) + at.grad);
    }
  }
  if (kPass != Pass::kGrad) leave_row_totals(call, totals, false, blockIdx.x);
}

}  // namespace fusedloss::cuda
