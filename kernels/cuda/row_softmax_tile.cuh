// Short rows that lie one after the other: a block moves a tile of whole rows, one contiguous span,
// into shared memory with 16-byte accesses whatever the number of classes, works on it by rows, and
// moves the gradient out the same way. Groups of 1 to 32 lanes walk a row each; its ends, which
// take as many instructions as a hundred classes (label, loss, saved numbers, coefficients), have
// one thread a row. The target's logit gives way to -inf before the walk, which thus need not know
// it.
#pragma once

#include "row_softmax_finish.cuh"

namespace fusedloss::cuda {

struct TilePlan {
  int classes;
  int rows;   // of a tile
  int lanes;  // of a row
  // Lanes start at different places of their rows where equal places would share a bank of shared
  // memory: group g of a warp starts at class g / rotation_groups * rotation.
  int rotation, rotation_groups;
};

// The part of a span that 16-byte accesses reach: its head and tail are moved by element.
struct Span {
  int head, vectors;

  template <class X>
  static __device__ __forceinline__ Span of(const X* data, int count) {
    constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(data) % kVectorBytes);
    const int ahead = past == 0 ? 0 : (kVectorBytes - past) / static_cast<int>(sizeof(X));
    const int head = ahead < count ? ahead : count;
    return {head, (count - head) / V};
  }

  // The i-th element that no vector holds.
  template <int V>
  __device__ __forceinline__ int peeled(int i) const {
    return i < head ? i : i + vectors * V;
  }
};

// Bytes from the last 16-byte boundary: shared memory is filled at the same place, so that vectors
// stay vectors.
template <class X>
__device__ __forceinline__ int misalignment(const X* data) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(data) % kVectorBytes);
}

template <Pass kPass, class X>
__device__ __forceinline__ void copy_in(const X* from, X* shared, int count) {
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  constexpr int kBatch = 4;  // loads under way before the first is stored
  const Span span = Span::of(from, count);
#pragma unroll 1
  for (int first = threadIdx.x; first < span.vectors; first += kBatch * kRowThreads) {
    alignas(kVectorBytes) X batch[kBatch][V];
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      if (first + b * kRowThreads < span.vectors)
        load_logits<kPass, V>(from + span.head + (first + b * kRowThreads) * V, batch[b]);
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      if (first + b * kRowThreads < span.vectors)
        store_vector<V>(batch[b], shared + span.head + (first + b * kRowThreads) * V);
  }
  if (static_cast<int>(threadIdx.x) < count - span.vectors * V) {
    const int i = span.peeled<V>(threadIdx.x);
    shared[i] = from[i];
  }
}

template <class X>
__device__ __forceinline__ void copy_out(const X* shared, X* to, int count) {
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  constexpr int kBatch = 2;
  const Span span = Span::of(to, count);
  const bool aligned = misalignment(to) == misalignment(shared);
#pragma unroll 1
  for (int first = threadIdx.x; first < span.vectors; first += kBatch * kRowThreads) {
    alignas(kVectorBytes) X batch[kBatch][V];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int v = first + b * kRowThreads;
      if (v >= span.vectors) break;
      const X* from = shared + span.head + v * V;
      if (aligned) {
        load_vector_coherent<V>(from, batch[b]);
      } else {
#pragma unroll
        for (int k = 0; k < V; ++k) batch[b][k] = from[k];
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      if (first + b * kRowThreads < span.vectors)
        store_whole<V>(batch[b], to + span.head + (first + b * kRowThreads) * V);
  }
  if (static_cast<int>(threadIdx.x) < count - span.vectors * V) {
    const int i = span.peeled<V>(threadIdx.x);
    to[i] = shared[i];
  }
}

template <class X>
__device__ __forceinline__ void fill_with_zeros(X* to, int count) {
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  const Span span = Span::of(to, count);
  alignas(kVectorBytes) const X zeros[V] = {};
#pragma unroll 1
  for (int v = threadIdx.x; v < span.vectors; v += kRowThreads)
    store_whole<V>(zeros, to + span.head + v * V);
  if (static_cast<int>(threadIdx.x) < count - span.vectors * V)
    to[span.peeled<V>(threadIdx.x)] = X{};
}

// One lane's share of a row in shared memory: classes lane, lane + lanes, ... from `start` on,
// around the row's end.
struct LaneWalk {
  int classes, lane, lanes, start;

  __device__ __forceinline__ int class_of(int i) const {
    const int j = i + start;
    return j < classes ? j : j - classes;
  }
};

// Calls visit(j, here) for a lane's share of a row, kStep logits at a time: of class
// j[k], if here[k]. Most steps neither reach the row's end nor go around it.
template <int kStep, class Visit>
__device__ __forceinline__ void for_each_step(const LaneWalk& walk, const Visit& visit) {
  const int last = (kStep - 1) * walk.lanes;
#pragma unroll 1
  for (int first = walk.lane; first < walk.classes; first += kStep * walk.lanes) {
    const int at = walk.class_of(first);
    int j[kStep];
    bool here[kStep];
    if (first + last < walk.classes && at + last < walk.classes) {
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        j[k] = at + k * walk.lanes;
        here[k] = true;
      }
      visit(j, here);
    } else {
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        j[k] = walk.class_of(first + k * walk.lanes);
        here[k] = first + k * walk.lanes < walk.classes;
      }
      visit(j, here);
    }
  }
}

// A double exponential takes many registers.
template <class T>
constexpr int kTileStep = sizeof(T) == 8 ? 1 : 4;

template <TermsKind kTerms, class T, class X>
__device__ __forceinline__ RowStats<T> row_stats(const RowSoftmaxCall& call, const RowPlan& plan,
                                                 const LogitRule<T>& rule, const LaneWalk& walk,
                                                 const X* row, int label, int64_t target_at) {
  constexpr int N = kTileStep<T>;
  RowStats<T> stats;
  for_each_step<N>(walk, [&](const int (&j)[N], const bool (&here)[N]) {
    T x[N];
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = here[k] ? to<T>(row[j[k]]) : -kInfinity<T>;
    stats.add(rule, x);
    if constexpr (kTerms == TermsKind::kUniform) {
      bool counted[N];
#pragma unroll
      for (int k = 0; k < N; ++k) counted[k] = here[k] && j[k] != label;
      stats.add_uniform_terms(x, counted);
    }
  });
  if (kTerms != TermsKind::kAny || call.terms == Terms::kNone) return stats;
  for (int i = walk.lane; i < walk.classes; i += walk.lanes) {
    const int j = walk.class_of(i);
    T u[1];
    term_units<Along::kClasses>(call, target_at + j * plan.target_step, 0, j, u);
    if (j != label) stats.add_term(to<T>(row[j]), u[0]);
  }
  return stats;
}

// Overwrites a row's logits with their gradient.
template <TermsKind kTerms, class X, class T>
__device__ __forceinline__ void write_gradient(const RowSoftmaxCall& call, const RowPlan& plan,
                                               const LaneWalk& walk, const RowSlope<T>& slope,
                                               int64_t target_at, X* row) {
  // Weights of terms take the registers of further logits.
  constexpr int N = kTerms == TermsKind::kAny ? 1 : kTileStep<T>;
  for_each_step<N>(walk, [&](const int (&j)[N], const bool (&here)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (!here[k]) continue;
      T u[1] = {T(kTerms == TermsKind::kUniform ? 1 : 0)};
      if (kTerms == TermsKind::kAny && call.terms != Terms::kNone)
        term_units<Along::kClasses>(call, target_at + j[k] * plan.target_step, 0, j[k], u);
      row[j[k]] = from<X>(slope.others(to<T>(row[j[k]]), u[0]));
    }
  });
  __syncwarp();
  if (walk.lane == 0 && slope.label >= 0) row[slope.label] = from<X>(slope.target);
}

// What the thread of a row and the lanes that walk it tell each other.
template <class T>
struct TileRow {
  int label;
  union {
    struct {
      T max, others, terms, sum_u;
    } stats;
    struct {
      T max, softmax, terms, target;
    } slope;
  };

  __device__ __forceinline__ void put(const RowStats<T>& s) {
    stats = {s.max, s.others, s.terms, s.sum_u};
  }
  __device__ __forceinline__ void put(const RowSlope<T>& s) {
    slope = {s.max, s.softmax, s.terms, s.target};
  }
  __device__ __forceinline__ RowStats<T> get_stats() const {
    RowStats<T> out;
    out.max = stats.max;
    out.others = stats.others;
    out.terms = stats.terms;
    out.sum_u = stats.sum_u;
    return out;
  }
  __device__ __forceinline__ RowSlope<T> get_slope(const LogitRule<T>& rule) const {
    RowSlope<T> out;
    out.max = slope.max;
    out.softmax = slope.softmax;
    out.terms = slope.terms;
    out.target = slope.target;
    out.label = label;
    out.rule = rule;
    return out;
  }
};

// Calls visit(row, here) for the rows of a tile, one for each group of lanes. All lanes of a warp
// come together; a group without a row (`here` false) only takes part in their exchange.
template <class Visit>
__device__ __forceinline__ void for_each_tile_row(const LaneWalk& walk, int rows,
                                                  const Visit& visit) {
  const int group = threadIdx.x / walk.lanes, groups = kRowThreads / walk.lanes;
  for (int base = 0; base < rows; base += groups) visit(base + group, base + group < rows);
}

// Statistics of all rows of a tile, or of those that are not ignored, by groups of lanes.
template <TermsKind kTerms, bool kIgnoredToo, class T, class X>
__device__ __forceinline__ void tile_stats(const RowSoftmaxCall& call, const RowPlan& plan,
                                           const LogitRule<T>& rule, const LaneWalk& walk,
                                           int64_t first, int rows, const X* shared,
                                           TileRow<T>* slots) {
  for_each_tile_row(walk, rows, [&](int row, bool here) {
    int64_t target_at = 0;
    if (kTerms == TermsKind::kAny && here) target_at = locate_row(call, plan, first + row).target;
    RowStats<T> stats;
    if (here && (kIgnoredToo || slots[row].label != kIgnored))
      stats = row_stats<kTerms>(call, plan, rule, walk, shared + row * walk.classes,
                                slots[row].label, target_at);
    const bool has_terms = kTerms != TermsKind::kNone && call.terms != Terms::kNone;
    stats.join(rule, walk.lanes, has_terms);
    if (here && walk.lane == 0) slots[row].put(stats);
  });
}

// Gradients of all rows of a tile, over their logits.
template <TermsKind kTerms, class T, class X>
__device__ __forceinline__ void tile_gradients(const RowSoftmaxCall& call, const RowPlan& plan,
                                               const LogitRule<T>& rule, const LaneWalk& walk,
                                               int64_t first, int rows, X* shared,
                                               const TileRow<T>* slots) {
  for_each_tile_row(walk, rows, [&](int row, bool here) {
    int64_t target_at = 0;
    if (kTerms == TermsKind::kAny && here) target_at = locate_row(call, plan, first + row).target;
    RowSlope<T> slope = slots[here ? row : 0].get_slope(rule);
    LaneWalk own = walk;
    if (!here) {
      own.classes = 0;
      slope.label = kNoLabel;
    }
    X* logits = shared + row * walk.classes;
    if (slope.label == kIgnored)
      for (int i = own.lane; i < own.classes; i += own.lanes) logits[i] = from<X>(T(0));
    if (slope.label == kIgnored) own.classes = 0;
    write_gradient<kTerms>(call, plan, own, slope, target_at, logits);
  });
}

// The end of a forward's row, or the start of a backward's, by its own thread: its losses and saved
// numbers, and what its gradient needs.
template <Pass kPass, class T, class Loss>
__device__ __forceinline__ void tile_row_end(const RowSoftmaxCall& call, const RowPlan& plan,
                                             const LogitRule<T>& rule, const Loss& loss,
                                             int64_t index, T logit, T share, TileRow<T>& slot,
                                             RowTotals<T>& totals) {
  const RowOffsets at = locate_row(call, plan, index);
  const int label[1] = {slot.label};
  const T logits[1] = {logit};
  T upstream = T(0);
  RowState<T> state[1];
  if constexpr (!kCollects<kPass, Loss>) {
    restore_rows(call, loss, label, logits, at.saved, state);
  } else {
    state[0] = finish_row(call, loss, RowInput<T>(call, label[0]), slot.get_stats(), logit);
    if constexpr (kPass != Pass::kGrad) leave_rows(call, loss, label, state, at, totals);
  }
  if constexpr (kPass == Pass::kGrad)
    upstream = static_cast<const T*>(call.grad_output.data)[at.upstream];
  if constexpr (kPass != Pass::kLoss)
    slot.put(RowSlope<T>(loss, rule, label[0], state[0],
                         row_scale<kPass>(call, plan, loss, upstream, share)));
}

template <Pass kPass, TermsKind kTerms, class X, class Loss>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerMultiprocessor<X>)
    row_tile_kernel(const __grid_constant__ RowSoftmaxCall call,
                    const __grid_constant__ RowPlan plan, const __grid_constant__ TilePlan tile,
                    const Loss loss) {
  using T = typename Loss::value_type;
  extern __shared__ __align__(16) unsigned char row_tile_storage[];
  __shared__ TileRow<T> slots[kRowThreads];
  const int group_in_warp = threadIdx.x % kWarp / tile.lanes;
  const LaneWalk walk{tile.classes, static_cast<int>(threadIdx.x) % tile.lanes, tile.lanes,
                      group_in_warp / tile.rotation_groups * tile.rotation % tile.classes};
  const auto rule = LogitRule<T>::of(call, loss);
  RowTotals<T> totals;
  begin_rows<kPass>(loss);
  const int mine = threadIdx.x;  // the row whose ends this thread has
  const int64_t stride = static_cast<int64_t>(gridDim.x) * tile.rows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * tile.rows; first < plan.rows;
       first += stride) {
    const int64_t left = plan.rows - first;
    const int rows = left < tile.rows ? static_cast<int>(left) : tile.rows;
    const int64_t start = first * tile.classes;
    const X* from_logits = static_cast<const X*>(call.logits.data) + start;
    X* shared = reinterpret_cast<X*>(row_tile_storage + misalignment(from_logits));
    RawLabels<1> raw;
    RowShares<1, kPass, Loss> shares;
    if (mine < rows) {
      const RowOffsets at = locate_row(call, plan, first + mine);
      raw.load(call, at.target);
      shares.load(call, at.saved);
    }
    int label[1];
    if constexpr (kSelects<kPass, Loss>) {
      raw.to_classes(call, label);
      if (!__syncthreads_or(mine < rows && shares.select(loss, label))) {
        fill_with_zeros(static_cast<X*>(call.grad.data) + start, rows * tile.classes);
        continue;
      }
    }
    copy_in<kPass>(from_logits, shared, rows * tile.classes);
    if constexpr (!kSelects<kPass, Loss>) raw.to_classes(call, label);
    if (mine < rows) slots[mine].label = label[0];
    __syncthreads();
    T logit = T(0);
    if (mine < rows && label[0] >= 0) {
      X& place = shared[mine * tile.classes + label[0]];
      logit = to<T>(place);
      if (kCollects<kPass, Loss>) place = from<X>(-kInfinity<T>);
    }
    if constexpr (kCollects<kPass, Loss>) {
      __syncthreads();
      tile_stats<kTerms, !kMines<Loss>>(call, plan, rule, walk, first, rows, shared, slots);
      __syncthreads();
    }
    if (mine < rows)
      tile_row_end<kPass>(call, plan, rule, loss, first + mine, logit, shares.of(loss, 0),
                          slots[mine], totals);
    __syncthreads();
    if constexpr (kPass != Pass::kLoss) {
      tile_gradients<kTerms>(call, plan, rule, walk, first, rows, shared, slots);
      __syncthreads();
      copy_out(shared, static_cast<X*>(call.grad.data) + start, rows * tile.classes);
      if (first + stride < plan.rows) __syncthreads();
    }
  }
  end_rows<kPass>(call, loss, totals, true);
}

}  // namespace fusedloss::cuda
