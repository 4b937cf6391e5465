// Selection over the marks of several slices, or in double: a block does a slice's by itself, digit
// by digit over the slice's marks, and one block adds up the slices. For many slices of moderate
// size; one large slice in double, which is there for tests, is slow.
#pragma once

#include "select.cuh"

namespace fusedloss::cuda {

constexpr int kSliceThreads = 512;
constexpr int kDigitBits = 11;
constexpr int kDigitBins = 1 << kDigitBits;
constexpr int64_t kMostSliceBlocks = 65536;

// Counts one digit of a slice: the `bits` bits below `top`, of the marks whose bits above `top` are
// `prefix`. Returns how many marks are always selected, in thread 0.
template <class T>
__device__ __forceinline__ int count_digit(const Mark<T>* marks, int64_t size, int top, int bits,
                                           Mark<T> prefix, unsigned* bins) {
  for (int bin = threadIdx.x; bin < kDigitBins; bin += kSliceThreads) bins[bin] = 0;
  __syncthreads();
  int always = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < size; i += kSliceThreads) {
    const Mark<T> mark = marks[i];
    if (mark >> top == prefix)
      atomicAdd(bins + static_cast<int>(mark >> (top - bits) & ((Mark<T>(1) << bits) - 1)), 1u);
    always += !is_candidate<T>(mark) && mark != kLeftOut<T> ? 1 : 0;
  }
  __shared__ int slots[kWarp];
  return block_sum(always, slots);
}

// The selection in a slice, and how many are selected. All threads of a block come here.
template <class T>
__device__ __forceinline__ Selection<T> select_in_slice(const SelectionRule& rule,
                                                        const Mark<T>* marks, int64_t size,
                                                        unsigned* bins, long long& count) {
  __shared__ long long shared_always;
  int top = kMarkBits<T> - 1;
  Mark<T> prefix = 0;  // candidates have no sign bit
  long long wanted = 0, above = 0, tied = 0;
  while (top > 0) {
    const int bits = top < kDigitBits ? top : kDigitBits;
    const int always = count_digit<T>(marks, size, top, bits, prefix, bins);
    const bool first = top == kMarkBits<T> - 1;
    if (first && threadIdx.x == 0) shared_always = always;
    __syncthreads();
    const DigitScan<kSliceThreads, kDigitBins> scan(bins);
    if (first) {
      wanted = wanted_candidates(rule, shared_always, scan.total);
      count = shared_always + wanted;
      if (wanted == 0) return no_candidates<T>();
      if (wanted == scan.total) return {T(0), T(1)};
    }
    const FoundDigit found = scan.find(wanted - above);
    prefix = prefix << bits | static_cast<Mark<T>>(found.digit);
    above += found.above;
    tied = found.here;
    top -= bits;
  }
  if (rule.whole_ties) count += above + tied - wanted;
  return selection_at(rule, loss_of<T>(prefix), static_cast<int64_t>(wanted),
                      static_cast<int64_t>(above), static_cast<int64_t>(tied));
}

template <class T>
__global__ void __launch_bounds__(kSliceThreads)
    select_slices_kernel(const __grid_constant__ SelectCall call, SliceTotal* totals) {
  __shared__ unsigned bins[kDigitBins];
  __shared__ double slots[kWarp];
  for (int64_t slice = blockIdx.x; slice < call.num_slices; slice += gridDim.x) {
    const int64_t start = slice * call.slice_size;
    const Mark<T>* marks = static_cast<const Mark<T>*>(call.marks) + start;
    const T* values = static_cast<const T*>(call.values);
    long long count = 0;
    const Selection<T> selection =
        select_in_slice<T>(call.rule, marks, call.slice_size, bins, count);
    double sum = 0.0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < call.slice_size; i += kSliceThreads) {
      const T share = share_of(selection, marks[i]);
      T loss = T(0);
      if (share > T(0))
        loss = share * (values != nullptr ? values[start + i] : loss_of<T>(marks[i]));
      if (call.reduction == Reduction::kNone) static_cast<T*>(call.loss)[start + i] = loss;
      sum += static_cast<double>(loss);
    }
    __syncthreads();  // the slots may still be read
    sum = block_sum(sum, slots);
    if (threadIdx.x == 0) {
      static_cast<Selection<T>*>(call.selection)[slice] = selection;
      totals[slice] = {sum, count};
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kSelectFinishThreads)
    select_slices_finish_kernel(const __grid_constant__ SelectCall call, const SliceTotal* totals) {
  __shared__ double slots[kWarp];
  __shared__ long long count_slots[kWarp];
  double sum = 0.0;
  long long count = 0;
  for (int64_t slice = threadIdx.x; slice < call.num_slices; slice += kSelectFinishThreads) {
    sum += totals[slice].loss;
    count += totals[slice].count;
  }
  sum = block_sum(sum, slots);
  count = block_sum(count, count_slots);
  if (threadIdx.x == 0) write_selected<T>(call, sum, count);
}

}  // namespace fusedloss::cuda
