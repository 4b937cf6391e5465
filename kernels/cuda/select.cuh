// Selection over the marks of one slice, in float: a radix select whose first digit the walk over
// the logits has counted (select_count.cuh). Two kernels narrow the cut by a digit each, and add up
// the losses that this shows to be above it; the last one knows the cut and every candidate in its
// last digit's bins. So marks are read twice, and not at all where none or all candidates are
// wanted. Where other values are summed, or every loss is written, the last one reads them too.
//
// What is counted are integers, in any order; every sum of losses has a fixed one.
#pragma once

#include "launch.cuh"
#include "select_count.cuh"
#include "vec_io.cuh"

namespace fusedloss::cuda {

constexpr int kSelectThreads = 256;
constexpr int kSelectFinishThreads = 1024;
constexpr int kVectorsOfSelect = 2;  // under way in a thread

// --- The digit in which the cut lies

struct FoundDigit {
  int digit;
  long long above, here;  // candidates with a larger digit, with this one
};

// The counts of a digit as a block reads them: each thread has neighbouring ones, the first thread
// those of the largest digits.
template <int kThreads, int kBins>
struct DigitScan {
  static_assert(kBins % kThreads == 0, "all threads have as many");
  static constexpr int kOwn = kBins / kThreads;
  long long own[kOwn];
  long long before, total;  // candidates with larger digits than this thread's; all

  template <class Count>
  __device__ __forceinline__ explicit DigitScan(const Count* bins) {
    __shared__ long long slots[kWarp];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    long long mine = 0;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) mine += own[k] = static_cast<long long>(bins[digit_of(k)]);
    long long up_to = mine;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const long long other = __shfl_up_sync(0xffffffffu, up_to, d);
      if (lane >= d) up_to += other;
    }
    __syncthreads();  // the slots may still be read
    if (lane == kWarp - 1) slots[warp] = up_to;
    __syncthreads();
    before = up_to - mine;
    total = 0;
#pragma unroll 1
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) before += slots[w];
      total += slots[w];
    }
  }

  static __device__ __forceinline__ int digit_of(int k) {
    return kBins - 1 - (static_cast<int>(threadIdx.x) * kOwn + k);
  }

  // That of the `wanted`-th largest, 1 <= wanted <= total. All threads come here.
  __device__ __forceinline__ FoundDigit find(long long wanted) const {
    __shared__ FoundDigit found;
    long long above = before;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      if (above < wanted && wanted <= above + own[k]) found = {digit_of(k), above, own[k]};
      above += own[k];
    }
    __syncthreads();
    return found;
  }
};

__device__ __forceinline__ bool is_partial(const SelectState& state) {
  return state.wanted > 0 && state.wanted < state.candidates;
}

__device__ __forceinline__ void take_digit(SelectState& state, const FoundDigit& found, int bits) {
  state.prefix = state.prefix << bits | static_cast<unsigned>(found.digit);
  state.above += found.above;
}

// The state after the first or the second digit. All threads of a block come here, and find it by
// themselves.
template <int kDigit>
__device__ __forceinline__ SelectState narrow_down(const SelectPlaces& places,
                                                   const SelectionRule& rule) {
  if constexpr (kDigit == 0) {
    const DigitScan<kSelectThreads, kFirstBins> scan(places.counts->first);
    SelectState state{};
    state.always = static_cast<long long>(places.counts->always);
    state.candidates = scan.total;
    state.wanted = wanted_candidates(rule, state.always, state.candidates);
    if (is_partial(state)) take_digit(state, scan.find(state.wanted), kFirstBits);
    return state;
  } else {
    SelectState state = places.states[0];
    if (!is_partial(state)) return state;
    const DigitScan<kSelectThreads, kSecondBins> scan(places.counts->second);
    take_digit(state, scan.find(state.wanted - state.above), kSecondBits);
    return state;
  }
}

// --- Marks

// Calls visit(i, mark) for this thread's share of `count` marks.
template <class Visit>
__device__ __forceinline__ void for_each_mark(const void* data, int64_t count, const Visit& visit) {
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(Mark<float>));
  const auto* marks = static_cast<const Mark<float>*>(data);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0;
  const int64_t vectors = aligned ? count / V : 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kSelectThreads;
#pragma unroll 1
  for (int64_t v = first; v < vectors; v += kVectorsOfSelect * stride) {
    Mark<float> loaded[kVectorsOfSelect][V];
#pragma unroll
    for (int b = 0; b < kVectorsOfSelect; ++b)
      if (v + b * stride < vectors) load_vector<V>(marks + (v + b * stride) * V, loaded[b]);
#pragma unroll
    for (int b = 0; b < kVectorsOfSelect; ++b) {
      if (v + b * stride >= vectors) break;
#pragma unroll
      for (int k = 0; k < V; ++k) visit((v + b * stride) * V + k, loaded[b][k]);
    }
  }
#pragma unroll 1
  for (int64_t i = vectors * V + first; i < count; i += stride) visit(i, marks[i]);
}

// Counts the second (kDigit 0) or the third digit of the candidates that share all digits before
// with the cut, and adds up those that the digit just found shows to be above it.
template <int kDigit>
__global__ void __launch_bounds__(kSelectThreads)
    select_narrow_kernel(const __grid_constant__ SelectCall call,
                         const __grid_constant__ SelectPlaces places, bool sums) {
  constexpr int kBins = kDigit == 0 ? kSecondBins : kThirdBins;
  constexpr int kBits = kDigit == 0 ? kSecondBits : kThirdBits;
  constexpr int kShift = kDigit == 0 ? kFirstShift : kThirdBits;
  __shared__ unsigned bins[kBins];
  __shared__ float slots[kWarp];
  for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads) bins[bin] = 0;
  const SelectState state = narrow_down<kDigit>(places, call.rule);
  if (blockIdx.x == 0 && threadIdx.x == 0) places.states[kDigit] = state;
  if (!is_partial(state)) return;
  __syncthreads();
  float above = 0.0f;
  for_each_mark(call.marks, call.slice_size, [&](int64_t, Mark<float> mark) {
    if (!is_candidate<float>(mark)) return;
    const unsigned prefix = mark >> kShift;
    if (prefix == state.prefix) {
      atomicAdd(bins + (mark >> (kShift - kBits)) % kBins, 1u);
    } else if (prefix > state.prefix &&
               (kDigit == 0 || prefix >> kSecondBits == state.prefix >> kSecondBits)) {
      above += loss_of<float>(mark);
    }
  });
  if (sums) above = block_sum(above, slots);
  if (sums && threadIdx.x == 0) places.above[kDigit][blockIdx.x] = static_cast<double>(above);
  __syncthreads();
  unsigned long long* counts = kDigit == 0 ? places.counts->second : places.counts->third;
  for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads)
    if (bins[bin] > 0) atomicAdd(counts + bin, static_cast<unsigned long long>(bins[bin]));
}

// --- The end

// The whole cut. Where all candidates are wanted, every one is at or above it.
struct SelectEnd {
  SelectState state;
  FoundDigit last;
  Selection<float> selection;

  template <int kThreads>
  static __device__ __forceinline__ SelectEnd of(const SelectPlaces& places,
                                                 const SelectionRule& rule,
                                                 const DigitScan<kThreads, kThirdBins>& scan) {
    SelectEnd end{places.states[1], {}, no_candidates<float>()};
    if (is_partial(end.state)) {
      end.last = scan.find(end.state.wanted - end.state.above);
      take_digit(end.state, end.last, kThirdBits);
      end.selection = selection_at(rule, loss_of<float>(end.state.prefix), end.state.wanted,
                                   end.state.above, end.last.here);
    } else if (end.state.wanted > 0) {
      end.selection = {0.0f, 1.0f};
    }
    return end;
  }

  // How many of those at the cut are selected.
  __device__ __forceinline__ long long at_cut(const SelectionRule& rule) const {
    return rule.whole_ties ? last.here : state.wanted - state.above;
  }

  // How many are selected in all.
  __device__ __forceinline__ long long count(const SelectionRule& rule) const {
    return state.always + (is_partial(state) ? state.above + at_cut(rule) : state.wanted);
  }
};

// The loss, and the scale for backward, of what is selected in the whole call. One thread.
template <class T>
__device__ __forceinline__ void write_selected(const SelectCall& call, double sum,
                                               long long count) {
  const bool mean = call.reduction == Reduction::kMean;
  const double divisor = mean ? static_cast<double>(count) + call.rule.epsilon : 1.0;
  const bool nothing = mean && count == 0;
  *static_cast<T*>(call.scale) = static_cast<T>(nothing ? 0.0 : 1.0 / divisor);
  if (call.reduction != Reduction::kNone)
    *static_cast<T*>(call.loss) = static_cast<T>(nothing ? 0.0 : sum / divisor);
}

// Adds up what blocks have left, after `walked` blocks of the walk and `narrowed` of each kernel
// that narrows. One block.
__global__ void __launch_bounds__(kSelectFinishThreads)
    select_finish_kernel(const __grid_constant__ SelectCall call,
                         const __grid_constant__ SelectPlaces places, int64_t walked,
                         int64_t narrowed) {
  __shared__ double slots[kWarp];
  const DigitScan<kSelectFinishThreads, kThirdBins> scan(places.counts->third);
  const SelectEnd end = SelectEnd::of(places, call.rule, scan);
  const bool partial = is_partial(end.state), any = end.state.wanted > 0;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < walked; b += kSelectFinishThreads)
    sum += places.walk[b].always + (any && !partial ? places.walk[b].candidates : 0.0);
  if (partial) {
    for (int64_t b = threadIdx.x; b < narrowed; b += kSelectFinishThreads)
      sum += places.above[0][b] + places.above[1][b];
    const int digit = scan.digit_of(0);
    const Mark<float> mark = end.state.prefix - end.last.digit + digit;
    const long long here = digit == end.last.digit  ? end.at_cut(call.rule)
                           : digit > end.last.digit ? scan.own[0]
                                                    : 0;
    if (here > 0) sum += static_cast<double>(here) * static_cast<double>(loss_of<float>(mark));
  }
  sum = block_sum(sum, slots);
  if (threadIdx.x != 0) return;
  *static_cast<Selection<float>*>(call.selection) = end.selection;
  write_selected<float>(call, sum, end.count(call.rule));
}

// Where not the marks' own losses are summed, or each is written: reads the marks again. The last
// block to come adds up what all have left.
__global__ void __launch_bounds__(kSelectThreads)
    select_settle_kernel(const __grid_constant__ SelectCall call,
                         const __grid_constant__ SelectPlaces places) {
  __shared__ float slots[kWarp];
  __shared__ double total_slots[kWarp];
  __shared__ bool is_last;
  const DigitScan<kSelectThreads, kThirdBins> scan(places.counts->third);
  const SelectEnd end = SelectEnd::of(places, call.rule, scan);
  const bool first = blockIdx.x == 0 && threadIdx.x == 0;
  if (first) *static_cast<Selection<float>*>(call.selection) = end.selection;
  const bool none = call.reduction == Reduction::kNone;
  const float* values = static_cast<const float*>(call.values);
  float sum = 0.0f;
  for_each_mark(call.marks, call.slice_size, [&](int64_t i, Mark<float> mark) {
    const float share = share_of(end.selection, mark);
    float loss = 0.0f;
    if (share > 0.0f) loss = share * (values != nullptr ? values[i] : loss_of<float>(mark));
    if (none) static_cast<float*>(call.loss)[i] = loss;
    sum += loss;
  });
  if (none) {
    if (first) write_selected<float>(call, 0.0, end.count(call.rule));
    return;
  }
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) {
    places.selected[blockIdx.x] = static_cast<double>(sum);
    __threadfence();
    is_last = atomicAdd(&places.counts->ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  double total = 0.0;
  for (int64_t b = threadIdx.x; b < gridDim.x; b += kSelectThreads)
    total += __ldcg(places.selected + b);
  total = block_sum(total, total_slots);
  if (threadIdx.x == 0) write_selected<float>(call, total, end.count(call.rule));
}

}  // namespace fusedloss::cuda
