// Short rows that lie one after the other: a block moves a tile of whole rows, one contiguous span,
// into shared memory with 16-byte accesses whatever the number of classes, works on it by rows, and
// moves the gradient out the same way. Groups of 1 to 32 lanes take a row each.
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

// One lane's share of a row in shared memory: classes lane, lane + lanes, ... from `start` on,
// around the row's end.
struct LaneWalk {
  int classes, lane, lanes, start;

  __device__ __forceinline__ int class_of(int i) const {
    const int j = i + start;
    return j < classes ? j : j - classes;
  }
};

template <class T, class X>
__device__ __forceinline__ RowStats<T> row_stats(const RowSoftmaxCall& call, const RowPlan& plan,
                                                 const LogitRule<T>& rule, const LaneWalk& walk,
                                                 const X* row, int label, int64_t target_at) {
  constexpr int kStep = sizeof(T) == 8 ? 1 : 4;  // a double exponential takes many registers
  RowStats<T> stats;
  for (int first = walk.lane; first < walk.classes; first += kStep * walk.lanes) {
    T x[kStep];
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      const int i = first + k * walk.lanes;
      const int j = walk.class_of(i);
      x[k] = i < walk.classes && j != label ? to<T>(row[j]) : -kInfinity<T>;
    }
    stats.add(rule, x);
  }
  if (call.terms == Terms::kNone) return stats;
  for (int i = walk.lane; i < walk.classes; i += walk.lanes) {
    const int j = walk.class_of(i);
    T u[1];
    term_units<Along::kClasses>(call, target_at + j * plan.target_step, 0, j, u);
    if (j != label) stats.add_term(to<T>(row[j]), u[0]);
  }
  return stats;
}

// Overwrites a row's logits with their gradient.
template <class X, class T>
__device__ __forceinline__ void write_gradient(const RowSoftmaxCall& call, const RowPlan& plan,
                                               const LaneWalk& walk, const RowSlope<T>& slope,
                                               int64_t target_at, X* row) {
#pragma unroll(sizeof(T) == 8 ? 1 : 4)
  for (int i = walk.lane; i < walk.classes; i += walk.lanes) {
    const int j = walk.class_of(i);
    T u[1] = {T(0)};
    if (call.terms != Terms::kNone)
      term_units<Along::kClasses>(call, target_at + j * plan.target_step, 0, j, u);
    row[j] = from<X>(slope.at(j, to<T>(row[j]), u[0]));
  }
}

// One row by one group of lanes. All lanes of a warp come here together; a group without a row
// (`here` false) only takes part in the exchange.
template <Pass kPass, class X, class Loss>
__device__ __forceinline__ void tile_row(const RowSoftmaxCall& call, const RowPlan& plan,
                                         const LaneWalk& walk, const Loss& loss, int64_t index,
                                         X* row, bool here,
                                         RowTotals<typename Loss::value_type>& totals) {
  using T = typename Loss::value_type;
  RowOffsets at;
  int label[1] = {kIgnored};
  T logit[1] = {}, upstream[1] = {};
  RowState<T> state[1] = {};
  const auto rule = LogitRule<T>::of(call, loss);
  if (here) {
    at = locate_row(call, plan, index);
    load_classes(call, at.target, label);
    if (label[0] >= 0) logit[0] = to<T>(row[label[0]]);
  }
  if constexpr (kPass == Pass::kGrad) {
    if (here) {
      restore_rows(call, loss, label, logit, at.saved, state);
      upstream[0] = static_cast<const T*>(call.grad_output.data)[at.upstream];
    }
  } else {
    RowStats<T> stats;
    if (here) stats = row_stats<T>(call, plan, rule, walk, row, label[0], at.target);
    stats.join(rule, walk.lanes, call.terms != Terms::kNone);
    // Found again: kept, the offsets would fill registers during the walk.
    if (here) at = locate_row(call, plan, index);
    state[0] = finish_row(call, loss, RowInput<T>(call, label[0]), stats, logit[0]);
    if (here && walk.lane == 0) leave_rows(call, loss, label, state, at, totals);
  }
  if constexpr (kPass != Pass::kLoss) {
    __syncwarp();  // all lanes have read the target's logit
    const RowSlope<T> slope(loss, rule, label[0], state[0],
                            row_scale<kPass, T>(call, plan, upstream[0]));
    if (kPass == Pass::kLossAndGrad && here) at = locate_row(call, plan, index);
    if (here) write_gradient(call, plan, walk, slope, at.target, row);
  }
}

template <Pass kPass, class X, class Loss>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerMultiprocessor<X>)
    row_tile_kernel(const __grid_constant__ RowSoftmaxCall call,
                    const __grid_constant__ RowPlan plan, const __grid_constant__ TilePlan tile,
                    const Loss loss) {
  extern __shared__ __align__(16) unsigned char row_tile_storage[];
  const int group = threadIdx.x / tile.lanes, groups = kRowThreads / tile.lanes;
  const int group_in_warp = threadIdx.x % kWarp / tile.lanes;
  const LaneWalk walk{tile.classes, static_cast<int>(threadIdx.x) % tile.lanes, tile.lanes,
                      group_in_warp / tile.rotation_groups * tile.rotation % tile.classes};
  RowTotals<typename Loss::value_type> totals;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * tile.rows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * tile.rows; first < plan.rows;
       first += stride) {
    const int64_t left = plan.rows - first;
    const int rows = left < tile.rows ? static_cast<int>(left) : tile.rows;
    const int64_t start = first * tile.classes;
    const X* from = static_cast<const X*>(call.logits.data) + start;
    X* shared = reinterpret_cast<X*>(row_tile_storage + misalignment(from));
    copy_in<kPass>(from, shared, rows * tile.classes);
    __syncthreads();
    for (int base = 0; base < rows; base += groups) {
      const int row = base + group;
      tile_row<kPass>(call, plan, walk, loss, first + row, shared + row * tile.classes, row < rows,
                      totals);
    }
    __syncthreads();
    if constexpr (kPass != Pass::kLoss) {
      copy_out(shared, static_cast<X*>(call.grad.data) + start, rows * tile.classes);
      if (first + stride < plan.rows) __syncthreads();
    }
  }
  if (kPass != Pass::kGrad) leave_row_totals(call, totals, true, blockIdx.x);
}

}  // namespace fusedloss::cuda
