// What a walk over the logits leaves for the selection beside its marks: it counts the candidates'
// first digit in shared memory, and a block adds its counts to those of the call. Integers, so
// their order has no effect.
#pragma once

#include "block.cuh"
#include "select.h"

namespace fusedloss::cuda {

constexpr int kFirstShift = kSecondBits + kThirdBits;

__device__ __forceinline__ unsigned* first_digit_bins() {
  __shared__ unsigned bins[kFirstBins];
  return bins;
}

// What a thread has seen.
template <class T>
struct MarkSums {
  T always = T(0), candidates = T(0);
  int count = 0;  // of the always selected
};

// All threads of a block, before any of them counts.
template <class T>
__device__ __forceinline__ void begin_counting(const MarkCounts& counts) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (counts.first == nullptr) return;
    for (int bin = threadIdx.x; bin < kFirstBins; bin += blockDim.x) first_digit_bins()[bin] = 0;
    __syncthreads();
  }
}

template <class T>
__device__ __forceinline__ void count_mark(const MarkCounts& counts, Mark<T> mark,
                                           MarkSums<T>& sums) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (counts.first == nullptr || mark == kLeftOut<T>) return;
    if (is_candidate<T>(mark)) {
      atomicAdd(first_digit_bins() + (mark >> kFirstShift), 1u);
      sums.candidates += loss_of<T>(mark);
    } else {
      sums.always += loss_of<T>(mark);
      ++sums.count;
    }
  }
}

// All threads of a block, after the last mark. `spread`: every thread has counted; else thread 0
// alone.
template <class T>
__device__ __forceinline__ void end_counting(const MarkCounts& counts, const MarkSums<T>& sums,
                                             bool spread) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (counts.first == nullptr) return;
    __shared__ T slots[2][kWarp];
    __shared__ int count_slots[kWarp];
    MarkSums<T> all = sums;
    if (spread) {
      all.always = block_sum(sums.always, slots[0]);
      all.candidates = block_sum(sums.candidates, slots[1]);
      all.count = block_sum(sums.count, count_slots);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < kFirstBins; bin += blockDim.x) {
      const unsigned counted = first_digit_bins()[bin];
      if (counted > 0) atomicAdd(counts.first + bin, static_cast<unsigned long long>(counted));
    }
    if (threadIdx.x != 0) return;
    if (all.count > 0) atomicAdd(counts.always, static_cast<unsigned long long>(all.count));
    counts.totals[blockIdx.x] = {static_cast<double>(all.always),
                                 static_cast<double>(all.candidates)};
  }
}

}  // namespace fusedloss::cuda
