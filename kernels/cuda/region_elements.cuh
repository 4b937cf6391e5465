// Regions over single elements, both passes of the region engine: probabilities from a sigmoid or
// taken as they are, the pointwise engine's loss joined. A block belongs to one region, so that its
// sums are the block's and its slopes are two numbers.
//
// Two walks over a region's elements. Runs of neighbours, as in [N, C, H, W], are moved by 16-byte
// vectors, a run's unaligned head and tail by single threads. Where there are none (classes
// innermost, short runs) threads take elements one by one wherever they lie: right for any strides,
// and paid for with sectors that blocks of several classes read.
#pragma once

#include "../loss/joined.h"
#include "pointwise.cuh"
#include "region_finish.cuh"

namespace fusedloss::cuda {

constexpr int kRunVectors = 4;  // of a thread and tile: loads of one are under way at a time

// A probability and its derivative by the input.
template <class T>
struct Probability {
  T p, slope;
};

template <class T>
FUSEDLOSS_HD Probability<T> sigmoid_probability(T x) {
  const Logistic<T> s = logistic(x);
  const T rare = s.small * s.large;
  return {s.positive ? s.large : rare, rare * s.large};
}

// What may be done with elements: nothing but regions, of the inputs themselves or of their
// sigmoid, or a pointwise loss of the logits beside them.
template <class T>
struct PlainElements {
  using value_type = T;
  static constexpr bool kJoined = false;
  FUSEDLOSS_HD Probability<T> probability(T x) const { return {x, T(1)}; }
  FUSEDLOSS_HD ValueGrad<T> joined(const Element<T>&) const { return {T(0), T(0)}; }
};

template <class T>
struct SigmoidElements {
  using value_type = T;
  static constexpr bool kJoined = false;
  FUSEDLOSS_HD Probability<T> probability(T x) const { return sigmoid_probability(x); }
  FUSEDLOSS_HD ValueGrad<T> joined(const Element<T>&) const { return {T(0), T(0)}; }
};

template <class Loss>
struct JoinedElements {
  using value_type = typename Loss::value_type;
  static constexpr bool kJoined = true;
  Loss loss;
  FUSEDLOSS_HD Probability<value_type> probability(value_type x) const {
    return sigmoid_probability(x);
  }
  FUSEDLOSS_HD ValueGrad<value_type> joined(const Element<value_type>& in) const {
    return loss(in);
  }
};

// The elements of a region: the call's shape and views without groups and classes, whose steps are
// here. Runs lie along the last dimension.
struct RegionElementPlan {
  int64_t logits_group, target_group, grad_group;
  int64_t logits_class, target_class, grad_class, side_class;
  StridedPlan elements;
  int64_t run;           // elements of a run, or of the region where there are no runs
  int64_t tiles_of_run;  // and tiles of it
  int64_t tiles, parts;  // of a region, and blocks that share them
  Divider by_run_tiles;
  int64_t target_size, target_word;  // bytes of a target, and of an access to a vector's
};

struct ElementOffsets {
  int64_t logits = 0, target = 0, grad = 0;
};

// The `element`-th of a region that starts at `start`.
__device__ __forceinline__ ElementOffsets locate_in_region(const PointwiseCall& call,
                                                           const RegionElementPlan& plan,
                                                           const ElementOffsets& start,
                                                           int64_t element) {
  ElementOffsets at = start;
  for_each_index(call.shape.ndim, plan.elements.by_size, element, [&](int d, int64_t index) {
    at.logits += index * call.logits.strides[d];
    at.target += index * call.target.strides[d];
    at.grad += index * call.grad.strides[d];
  });
  return at;
}

// A block's region: where it starts, and what all its elements share.
template <class T>
struct ElementRegion {
  int64_t index, part, this_class;
  ElementOffsets start;
  T side;
  RegionSlope<T> slope;  // backward
  T joined_scale;        // backward

  template <Pass kPass>
  static __device__ __forceinline__ ElementRegion of(const PointwiseCall& call,
                                                     const RegionCall& region,
                                                     const RegionElementPlan& plan, int64_t block) {
    ElementRegion out;
    out.index = block / plan.parts;
    out.part = block % plan.parts;
    const int64_t group = out.index / region.num_classes;
    out.this_class = out.index % region.num_classes;
    out.start.logits = group * plan.logits_group + out.this_class * plan.logits_class;
    out.start.target = group * plan.target_group + out.this_class * plan.target_class;
    out.start.grad = group * plan.grad_group + out.this_class * plan.grad_class;
    out.side = call.side.data == nullptr
                   ? static_cast<T>(call.side_value)
                   : load_one<T>(call.side.data, call.side.dtype, out.this_class * plan.side_class);
    if constexpr (kPass == Pass::kGrad) {
      out.slope = incoming_slope<T>(region, out.index);
      out.joined_scale = region.joined ? *static_cast<const T*>(region.upstream) *
                                             *static_cast<const T*>(call.scale)
                                       : T(0);
    }
    return out;
  }
};

template <class T>
struct ElementSums {
  T overlap = T(0), mass = T(0), truth = T(0);
  ThreadTotals<T> joined;
};

// Targets of N elements from their class indices, and whether each is valid.
template <int N, class T>
__device__ __forceinline__ void targets_of_labels(const PointwiseCall& call, int64_t at,
                                                  int64_t this_class, T* t, bool* valid) {
  int64_t labels[N];
  load_labels(call.target.data, call.target.dtype, at, 1, labels);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    valid[k] = labels[k] != call.ignore_index;
    t[k] = labels[k] == this_class ? T(1) : T(0);
    if (labels[k] < 0 || labels[k] >= call.num_classes) t[k] = std::numeric_limits<T>::quiet_NaN();
  }
}

// N neighbours: their terms are added to `sums`, or their logits replaced by gradients. The
// arithmetic goes in steps of at most 4, which keeps registers at half occupancy.
template <Pass kPass, int N, class X, class Loss, class T>
__device__ __forceinline__ void region_elements(const PointwiseCall& call, bool squared,
                                                const Loss& loss, const ElementRegion<T>& region,
                                                int64_t target_at, X (&raw)[N],
                                                ElementSums<T>& sums) {
  constexpr int kStep = N < 4 ? N : 4;
  T t[N] = {}, grads[N];
  bool valid[N] = {};
  if (!call.indexed) load_as<N>(call.target.data, call.target.dtype, target_at, t);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k % kStep == 0 && call.indexed)
      targets_of_labels<kStep>(call, target_at + k, region.this_class, t + k, valid + k);
    if (!call.indexed) valid[k] = t[k] != static_cast<T>(call.ignored_target);
    const T x = valid[k] ? to<T>(raw[k]) : T(0);
    const T own = valid[k] ? t[k] : T(0);
    const T weight = valid[k] ? T(1) : T(0);
    const Probability<T> s = loss.probability(x);
    ValueGrad<T> joined{T(0), T(0)};
    if constexpr (Loss::kJoined) joined = loss.joined({x, own, region.side, weight});
    if constexpr (kPass == Pass::kGrad) {
      const T by_mass = region.slope.mass * (squared ? T(2) * s.p : T(1));
      const T h = s.slope * (region.slope.overlap * own + by_mass);
      grads[k] = (valid[k] ? h : T(0)) + joined.grad * region.joined_scale;
    } else {
      const T p = s.p * weight;
      sums.overlap += p * own;
      sums.mass += squared ? p * p : p;
      sums.truth += squared ? own * own : own;
      sums.joined.loss += joined.loss;
      sums.joined.valid += valid[k] ? 1 : 0;
    }
  }
  if constexpr (kPass == Pass::kGrad) convert_all(grads, raw);
}

// One element by itself.
template <Pass kPass, class X, class Loss, class T>
__device__ __forceinline__ void region_element(const PointwiseCall& call, bool squared,
                                               const Loss& loss, const ElementRegion<T>& region,
                                               const ElementOffsets& at, ElementSums<T>& sums) {
  X raw[1] = {static_cast<const X*>(call.logits.data)[at.logits]};
  region_elements<kPass, 1>(call, squared, loss, region, at.target, raw, sums);
  if (kPass == Pass::kGrad) static_cast<X*>(call.grad.data)[at.grad] = raw[0];
}

// One tile of a run that starts at `at`; all of its operands have steps of 1. Vectors start where
// the logits' first does; where other operands are not aligned there, elements go one by one.
template <Pass kPass, int V, class X, class Loss, class T>
__device__ __forceinline__ void region_run(const PointwiseCall& call, const RegionCall& regions,
                                           const RegionElementPlan& plan, const Loss& loss,
                                           const ElementRegion<T>& region, const ElementOffsets& at,
                                           int64_t tile, ElementSums<T>& sums) {
  constexpr int kStep = kPointwiseThreads * V;
  const X* logits = static_cast<const X*>(call.logits.data) + at.logits;
  X* grads = static_cast<X*>(call.grad.data) + at.grad;
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % kVectorBytes / sizeof(X));
  const int64_t unaligned = (V - past) % V;
  const int64_t head = unaligned < plan.run ? unaligned : plan.run;
  const int64_t first = head + tile * (kStep * kRunVectors);
  const int64_t vectors_end = head + (plan.run - head) / V * V;
  const int64_t tile_end = first + kStep * kRunVectors;
  const int64_t end = tile_end < vectors_end ? tile_end : vectors_end;
  const auto single = [&](int64_t i) {
    region_element<kPass, X>(call, regions.squared, loss, region,
                             {at.logits + i, at.target + i, at.grad + i}, sums);
  };
  const bool aligned =
      reinterpret_cast<uintptr_t>(static_cast<const unsigned char*>(call.target.data) +
                                  (at.target + head) * plan.target_size) %
              plan.target_word ==
          0 &&
      (kPass != Pass::kGrad || reinterpret_cast<uintptr_t>(grads + head) % kVectorBytes == 0);
  if (aligned) {
#pragma unroll 1
    for (int64_t i = first + static_cast<int64_t>(threadIdx.x) * V; i < end; i += kStep) {
      alignas(kVectorBytes) X raw[V];
      load_logits<kPass, V>(logits + i, raw);
      region_elements<kPass, V>(call, regions.squared, loss, region, at.target + i, raw, sums);
      if constexpr (kPass == Pass::kGrad && V * sizeof(X) == kVectorBytes)
        store_whole<V>(raw, grads + i);
      else if (kPass == Pass::kGrad)
        store_vector<V>(raw, grads + i);
    }
  } else {
#pragma unroll 1
    for (int64_t i = first + threadIdx.x; i < end; i += kPointwiseThreads) single(i);
  }
  // The head with the first tile, the tail with the last.
  if (tile == 0 && threadIdx.x < head) single(threadIdx.x);
  if (tile + 1 == plan.tiles_of_run && threadIdx.x < plan.run - vectors_end)
    single(vectors_end + threadIdx.x);
}

template <class T>
__device__ __forceinline__ void leave_region(const ElementRegion<T>& region, ElementSums<T> sums,
                                             bool joined, BlockTotals* totals,
                                             const RegionPartials<T>& partials) {
  __shared__ T slots[kRegionNumbers + 1][kPointwiseThreads / kWarp];
  __shared__ int valid_slots[kPointwiseThreads / kWarp];
  sums.overlap = block_sum(sums.overlap, slots[kOverlap]);
  sums.mass = block_sum(sums.mass, slots[kMass]);
  sums.truth = block_sum(sums.truth, slots[kTruth]);
  T loss = T(0);
  int valid = 0;
  if (joined) {
    loss = block_sum(sums.joined.loss, slots[kRegionNumbers]);
    valid = block_sum(sums.joined.valid, valid_slots);
  }
  if (threadIdx.x != 0) return;
  partials.at(kOverlap, region.index)[region.part] = sums.overlap;
  partials.at(kMass, region.index)[region.part] = sums.mass;
  partials.at(kTruth, region.index)[region.part] = sums.truth;
  totals[region.index * partials.parts + region.part] = {static_cast<double>(loss), valid};
}

// V = 0: no runs, elements one by one.
template <Pass kPass, int V, class X, class Loss>
__global__ void __launch_bounds__(kPointwiseThreads, kBlocksPerMultiprocessor)
    region_elements_kernel(const __grid_constant__ PointwiseCall call,
                           const __grid_constant__ RegionCall regions,
                           const __grid_constant__ RegionElementPlan plan, const Loss loss,
                           const RegionPartials<typename Loss::value_type> partials) {
  using T = typename Loss::value_type;
  // Backward in reverse: the cache still has what forward read last.
  const int64_t block = kPass == Pass::kGrad ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const auto region = ElementRegion<T>::template of<kPass>(call, regions, plan, block);
  ElementSums<T> sums;
#pragma unroll 1
  for (int64_t step = region.part; step < plan.tiles; step += plan.parts) {
    int64_t tile = step;
    if (kPass == Pass::kGrad)
      tile = region.part + (plan.tiles - 1 - region.part) / plan.parts * plan.parts -
             (step - region.part);
    if constexpr (V > 0) {
      int64_t tile_of_run;
      const int64_t run = plan.by_run_tiles.divide(tile, tile_of_run);
      const ElementOffsets at = locate_in_region(call, plan, region.start, run * plan.run);
      region_run<kPass, V, X>(call, regions, plan, loss, region, at, tile_of_run, sums);
    } else {
      const int64_t first = tile * kSmallestTile;
#pragma unroll 1
      for (int64_t i = first + threadIdx.x; i < first + kSmallestTile && i < plan.elements.numel;
           i += kPointwiseThreads)
        region_element<kPass, X>(call, regions.squared, loss, region,
                                 locate_in_region(call, plan, region.start, i), sums);
    }
  }
  if constexpr (kPass != Pass::kGrad)
    leave_region(region, sums, regions.joined, static_cast<BlockTotals*>(call.workspace), partials);
}

}  // namespace fusedloss::cuda
