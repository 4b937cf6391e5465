// Sums of regions over the rows of a softmax, the first pass of the region engine: threads along
// the rows (pixels) as in row_softmax_pixels.cuh, V neighbours each, in any layout.
//
// A block belongs to one group, a sample or the pooled batch, and takes several tiles of its rows.
// A tile is walked twice: for each row's maximum and sum, and again, from the cache and in reverse,
// for what its p_j add to their classes. Those are summed over a warp U classes at a time, so that
// an exchange between lanes serves several classes, and kept in shared memory by warp. Overlap and
// truth of class indices concern one class a row: a warp goes through the classes that its rows
// have, which in an image are few.
//
// Where there are more classes than shared memory has room for, blocks share them out by windows
// and each sees all logits for its row's maximum.
#pragma once

#include <type_traits>

#include "../loss/nothing.h"
#include "region_finish.cuh"
#include "region_walk.cuh"

namespace fusedloss::cuda {

template <class Loss>
constexpr bool kNothingJoined = std::is_same_v<Loss, NoRowLoss<typename Loss::value_type>>;
// Whether targets may be probabilities.
template <class Loss>
constexpr bool kTakesSoft = kNothingJoined<Loss> || Loss::kHasWeightedTerms;

// The rows of a call: `rows` without the dimension of groups, whose strides are here.
struct RegionRowPlan {
  RowPlan rows;  // of one group
  int64_t logits_group, target_group, saved_group, grad_group;
  int64_t tiles, parts;          // of one group: pieces of its rows, and blocks that share them
  int classes, window, windows;  // all, of one block, and blocks that share them
};

// One block's place.
struct RegionRowBlock {
  int64_t group, part;
  int first, count;  // its classes

  __device__ __forceinline__ explicit RegionRowBlock(const RegionRowPlan& plan) {
    int64_t b = blockIdx.x;
    first = static_cast<int>(b % plan.windows) * plan.window;
    b /= plan.windows;
    part = b % plan.parts;
    group = b / plan.parts;
    count = plan.classes - first < plan.window ? plan.classes - first : plan.window;
  }
};

__device__ __forceinline__ RowOffsets locate_group_row(const RowSoftmaxCall& call,
                                                       const RegionRowPlan& plan, int64_t group,
                                                       int64_t row) {
  RowOffsets at = locate_row(call, plan.rows, row);
  at.logits += group * plan.logits_group;
  at.target += group * plan.target_group;
  at.saved += group * plan.saved_group;
  at.grad += group * plan.grad_group;
  return at;
}

// Sums of U numbers over a warp: lane l gets that of number l % U. U - 1 exchanges take the place
// of U for every halving that they make.
template <int U, class T>
__device__ __forceinline__ T sums_by_lane(T (&values)[U]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int d = U / 2; d > 0; d /= 2) {
    const bool upper = (lane & d) != 0;
#pragma unroll
    for (int i = 0; i < d; ++i) {
      const T kept = upper ? values[i + d] : values[i];
      const T given = upper ? values[i] : values[i + d];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, given, d);
    }
  }
  T sum = values[0];
#pragma unroll
  for (int d = U; d < kWarp; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return sum;
}

// What a warp has seen of the block's classes, in shared memory.
template <class T>
struct WarpSums {
  T *overlap, *mass, *truth;

  __device__ __forceinline__ WarpSums(void* storage, int warp, int window)
      : overlap(static_cast<T*>(storage) + warp * kRegionNumbers * window),
        mass(overlap + window),
        truth(mass + window) {}
};

// The number of the two where one is NaN.
__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double smaller(double a, double b) { return fmin(a, b); }

// V rows of a tile as the sweeps over their classes see them.
template <int V, class T>
struct RegionRows {
  T max[V], share[V];  // p_j = e^(x_j - max) share
  bool kept[V];
  bool all_kept;  // of the whole warp

  __device__ __forceinline__ RegionRows(const RowState<T> (&states)[V], const int (&labels)[V]) {
    bool all = true;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      max[v] = states[v].max;
      kept[v] = labels[v] != kIgnored;
      share[v] = kept[v] ? states[v].inverse : T(0);
      if (labels[v] == kBadLabel) share[v] = std::numeric_limits<T>::quiet_NaN();
      all = all && kept[v];
    }
    all_kept = __all_sync(0xffffffffu, all);
  }

  // p_j of U classes. Those of ignored rows are 0, as their share is, if e is finite, which it is
  // made unless all rows are kept (kAllKept). No NaN is lost that way: it is in the share.
  template <bool kAllKept, int U, class X>
  __device__ __forceinline__ void probabilities(const X (&raw)[U][V], T (&p)[U][V]) const {
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const T below = to<T>(raw[u][v]) - max[v];
        p[u][v] = exp_nonpositive(kAllKept ? below : smaller(below, T(0))) * share[v];
      }
    }
  }
};

// Adds U classes' terms, summed over the warp, to the classes from `at` on, `left` of which exist.
template <int U, class T>
__device__ __forceinline__ void add_terms(T (&terms)[U], T* sums, int at, int left) {
  const int lane = threadIdx.x % kWarp;
  const T sum = sums_by_lane(terms);
  if (lane < U && lane < left) sums[at + lane] += sum;
}

template <bool kSquared, bool kAllKept, int V, class X, class T>
__device__ __forceinline__ void sweep_mass(const RegionRowPlan& plan, const RegionRowBlock& block,
                                           const X* pixels, const RegionRows<V, T>& rows,
                                           const WarpSums<T>& sums) {
  constexpr int U = kPixelClasses<X>;
  const int64_t step = plan.rows.logits_step;
  int at = (block.count - 1) / U * U;
  const X* from = pixels + (block.first + at) * step;
#pragma unroll 1
  for (; at >= 0; at -= U) {
    alignas(sizeof(X) * V) X raw[U][V];
    load_chunk<Pass::kLoss>(from, step, block.count - at, raw);
    from -= U * step;
    T p[U][V], terms[U];
    rows.template probabilities<kAllKept>(raw, p);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      terms[u] = T(0);
#pragma unroll
      for (int v = 0; v < V; ++v) terms[u] += kSquared ? p[u][v] * p[u][v] : p[u][v];
    }
    add_terms(terms, sums.mass, at, block.count - at);
  }
}

template <bool kSquared, int V, class X, class T>
__device__ __forceinline__ void add_mass(const RegionRowPlan& plan, const RegionRowBlock& block,
                                         const X* pixels, const RegionRows<V, T>& rows,
                                         const WarpSums<T>& sums) {
  if (rows.all_kept)
    sweep_mass<kSquared, true>(plan, block, pixels, rows, sums);
  else
    sweep_mass<kSquared, false>(plan, block, pixels, rows, sums);
}

// Overlap and truth of class indices. `p`: of the rows' own classes.
template <int V, class T>
__device__ __forceinline__ void add_labels(const RegionRowBlock& block, const int (&labels)[V],
                                           const T (&p)[V], const WarpSums<T>& sums) {
  unsigned left[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const bool here = labels[v] >= block.first && labels[v] < block.first + block.count;
    left[v] = __ballot_sync(0xffffffffu, here);
  }
#pragma unroll 1
  for (;;) {
    int this_class = -1;
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (this_class < 0 && left[v] != 0)
        this_class = __shfl_sync(0xffffffffu, labels[v], __ffs(static_cast<int>(left[v])) - 1);
    if (this_class < 0) break;
    T own = T(0);
    int count = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool match = labels[v] == this_class;
      const unsigned matches = __ballot_sync(0xffffffffu, match);
      own += match ? p[v] : T(0);
      count += __popc(matches);
      left[v] &= ~matches;
    }
    own = warp_sum(own);
    if (threadIdx.x % kWarp == 0) {
      sums.overlap[this_class - block.first] += own;
      sums.truth[this_class - block.first] += static_cast<T>(count);
    }
  }
}

// All three of targets that every class has.
template <int V, class X, class T>
__device__ __forceinline__ void add_soft(const RowSoftmaxCall& call, const RegionRowPlan& plan,
                                         const RegionRowBlock& block, const X* pixels,
                                         int64_t target_at, bool squared,
                                         const RegionRows<V, T>& rows, const WarpSums<T>& sums) {
  constexpr int U = kPixelClasses<X> / 2 > 0 ? kPixelClasses<X> / 2 : 1;
  const int64_t row_step = call.target.strides[call.shape.ndim - 1];
#pragma unroll 1
  for (int at = (block.count - 1) / U * U; at >= 0; at -= U) {
    alignas(sizeof(X) * V) X raw[U][V];
    T t[U][V] = {}, p[U][V];
    const int first = block.first + at, end = block.first + block.count;
    load_chunk<Pass::kLoss>(pixels + first * plan.rows.logits_step, plan.rows.logits_step,
                            end - first, raw);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (first + u < end)
        load_floats<V>(call.target.data, call.target.dtype,
                       target_at + (first + u) * plan.rows.target_step, row_step, t[u]);
    rows.template probabilities<false>(raw, p);
    T overlap[U], mass[U], truth[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      overlap[u] = mass[u] = truth[u] = T(0);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const T own = rows.kept[v] ? t[u][v] : T(0);
        overlap[u] += p[u][v] * own;
        mass[u] += squared ? p[u][v] * p[u][v] : p[u][v];
        truth[u] += squared ? own * own : own;
      }
    }
    add_terms(overlap, sums.overlap, at, block.count - at);
    add_terms(mass, sums.mass, at, block.count - at);
    add_terms(truth, sums.truth, at, block.count - at);
  }
}

// One tile. A warp that has no rows does nothing; lanes without rows count as ignored ones.
template <int V, class X, class Loss>
__device__ __forceinline__ void region_tile(const RowSoftmaxCall& call, const RegionCall& region,
                                            const RegionRowPlan& plan, const RegionRowBlock& block,
                                            const Loss& loss, int64_t tile,
                                            const WarpSums<typename Loss::value_type>& sums,
                                            RowTotals<typename Loss::value_type>& totals) {
  using T = typename Loss::value_type;
  const int64_t first = tile * (kRowThreads * V);
  if (first + threadIdx.x / kWarp * kWarp * V >= plan.rows.rows) return;
  const int64_t row = first + static_cast<int64_t>(threadIdx.x) * V;
  const bool here = row < plan.rows.rows;
  // Found again where needed: kept, the offsets would fill registers during the walk.
  const auto offsets = [&] { return locate_group_row(call, plan, block.group, here ? row : 0); };
  RowOffsets at = offsets();
  const X* pixels = static_cast<const X*>(call.logits.data) + at.logits;
  int labels[V];
#pragma unroll
  for (int v = 0; v < V; ++v) labels[v] = kIgnored;
  if (here) load_classes(call, at.target, labels);

  const auto rule = LogitRule<T>::of(call, loss);
  PixelStats<V, T> stats;
  region_stats<!kNothingJoined<Loss>>(call, plan.rows, rule, pixels, at.target, labels, stats);
  at = offsets();
  RowState<T> states[V];
#pragma unroll
  for (int v = 0; v < V; ++v)
    states[v] =
        finish_row(call, loss, RowInput<T>(call, labels[v]), stats.rows[v], stats.logits[v]);
  if (here && block.first == 0) leave_rows(call, loss, labels, states, at, totals);

  const RegionRows<V, T> rows(states, labels);
  if (!kTakesSoft<Loss> || call.indexed()) {
    T p[V];
#pragma unroll
    for (int v = 0; v < V; ++v) p[v] = states[v].p;
    add_labels(block, labels, p, sums);
    if (region.squared)
      add_mass<true>(plan, block, pixels, rows, sums);
    else
      add_mass<false>(plan, block, pixels, rows, sums);
  } else if constexpr (kTakesSoft<Loss>) {
    add_soft(call, plan, block, pixels, offsets().target, region.squared, rows, sums);
  }
}

template <int V, class X, class Loss>
__global__ void __launch_bounds__(kRowThreads, kRowBlocksPerMultiprocessor<X>)
    region_rows_kernel(const __grid_constant__ RowSoftmaxCall call,
                       const __grid_constant__ RegionCall region,
                       const __grid_constant__ RegionRowPlan plan, const Loss loss,
                       const RegionPartials<typename Loss::value_type> partials) {
  using T = typename Loss::value_type;
  constexpr int kWarps = kRowThreads / kWarp;
  extern __shared__ __align__(16) unsigned char region_rows_storage[];
  const RegionRowBlock block(plan);
  const WarpSums<T> sums(region_rows_storage, threadIdx.x / kWarp, plan.window);
  for (int i = threadIdx.x % kWarp; i < kRegionNumbers * plan.window; i += kWarp)
    sums.overlap[i] = T(0);
  __syncwarp();
  RowTotals<T> totals;
#pragma unroll 1
  for (int64_t tile = block.part; tile < plan.tiles; tile += plan.parts)
    region_tile<V, X>(call, region, plan, block, loss, tile, sums, totals);
  __syncthreads();
  for (int i = threadIdx.x; i < kRegionNumbers * block.count; i += kRowThreads) {
    const int number = i / block.count, c = i % block.count;
    T sum = T(0);
    for (int w = 0; w < kWarps; ++w)
      sum += WarpSums<T>(region_rows_storage, w, plan.window).overlap[number * plan.window + c];
    const int64_t index = block.group * plan.classes + block.first + c;
    partials.at(number, index)[block.part] = sum;
  }
  if (block.first == 0) leave_row_totals(call, totals, true, block.group * plan.parts + block.part);
}

}  // namespace fusedloss::cuda
