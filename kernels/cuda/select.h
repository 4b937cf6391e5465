// Selection over marks on CUDA: sizes that the host needs before a launch.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../core/mining.h"

namespace fusedloss::cuda {

// A walk's blocks leave one MarkTotals each, and the kernels that narrow one number each, which a
// single block adds up.
constexpr int64_t kMaxWalkBlocks = 4096;
constexpr int64_t kMaxSelectBlocks = 1024;

// The 31 bits of a float candidate, most significant first.
constexpr int kFirstBits = 11, kSecondBits = 10, kThirdBits = 10;
constexpr int kFirstBins = 1 << kFirstBits;
constexpr int kSecondBins = 1 << kSecondBits;
constexpr int kThirdBins = 1 << kThirdBits;

// What a block of a walk has seen: losses of what is always selected, and of the candidates.
struct MarkTotals {
  double always, candidates;
};

// Cleared before a forward that counts. More than 2^32 of one digit are possible.
struct SelectCounts {
  unsigned long long first[kFirstBins], second[kSecondBins], third[kThirdBins];
  unsigned long long always;
  unsigned ticket, padding;
};

// How far the search for the cut has come: its leading bits, how many candidates are above them.
struct SelectState {
  long long always, candidates, wanted, above;
  unsigned prefix, padding;
};

// Several slices or double: what a slice's block leaves.
struct SliceTotal {
  double loss;
  long long count;
};

// The places of a workspace.
struct SelectPlaces {
  SelectCounts* counts;
  SelectState* states;  // after the first and the second digit
  MarkTotals* walk;     // by block
  double* above[2];     // by block: of candidates above the first, the second digit
  double* selected;     // by block, where a last walk over the marks adds them up
  SliceTotal* slices;
};

// Whether the walk counts the first digit: the candidates of one slice, in float.
inline bool counts_in_walk(const SelectCall& call, DType accumulator) {
  return call.num_slices == 1 && accumulator == DType::kFloat32;
}

// Where a walk leaves its counts; nullptrs: it does not count.
struct MarkCounts {
  unsigned long long *first, *always;
  MarkTotals* totals;
};

// Before the walk, for its kernel; and after it, when marks (and values) are written: the selection
// and the call's outputs. `blocks`: of the walk.
MarkCounts begin_select(const SelectCall& call, DType accumulator, cudaStream_t stream);
void finish_select(const SelectCall& call, DType accumulator, int64_t blocks, cudaStream_t stream);

// Lays the places out from `workspace` on; returns the bytes that they take.
inline int64_t lay_out(const SelectCall& call, DType accumulator, void* workspace,
                       SelectPlaces& places) {
  int64_t bytes = 0;
  const auto take = [&](auto*& place, int64_t count) {
    place = reinterpret_cast<std::remove_reference_t<decltype(place)>>(
        reinterpret_cast<uintptr_t>(workspace) + static_cast<uintptr_t>(bytes));
    bytes += count * static_cast<int64_t>(sizeof(*place));
  };
  places = {};
  if (!counts_in_walk(call, accumulator)) {
    take(places.slices, call.num_slices);
    return bytes;
  }
  const int64_t blocks = std::clamp<int64_t>(call.slice_size, 1, kMaxSelectBlocks);
  take(places.counts, 1);
  take(places.states, 2);
  take(places.walk, std::min(call.slice_size, kMaxWalkBlocks));
  take(places.above[0], blocks);
  take(places.above[1], blocks);
  take(places.selected, blocks);
  return bytes;
}

}  // namespace fusedloss::cuda

namespace fusedloss {

inline int64_t select_workspace_bytes(const SelectCall& call, DType accumulator, cudaStream_t) {
  cuda::SelectPlaces places;
  return cuda::lay_out(call, accumulator, nullptr, places);
}

}  // namespace fusedloss
