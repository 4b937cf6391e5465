// Selection over marks (../core/mining.h) on the CPU: which losses of a slice count, their sum and
// their number.
//
// The walk over the logits counts the marks while it has them in the cache (count_block). Where
// candidates are wanted, but not all of them, the bits of the k-th largest are found a digit after
// the other, from counts of what still agrees with the digits found; then one pass adds up what is
// selected. Where none are wanted, which is how mining by a threshold mostly ends, the walk's sum
// is the answer and the marks are not read again.
//
// Counts are integers and sums are added by tasks of a fixed size, so that any number of threads
// gives the same bits.
#pragma once

#include "../core/mining.h"
#include "threads.h"

namespace fusedloss::cpu {

// What there is of marks, and the sum of the always selected.
struct MarkTotals {
  int64_t always = 0, candidates = 0;
  double sum = 0.0;

  MarkTotals& operator+=(const MarkTotals& other) {
    always += other.always;
    candidates += other.candidates;
    sum += other.sum;
    return *this;
  }
};

constexpr int64_t kMarkBlock = 1024;  // marks whose losses are added up in T; double beyond

// Counts at most kMarkBlock marks. Marks are handed around as T; `values` may be nullptr.
template <class T>
MarkTotals count_block(const T* marks, const T* values, int64_t count);

// Selects, and writes the outputs of the call. `counted`: the totals of the only slice, where the
// walk has them.
template <class T>
void select(const SelectCall& call, const MarkTotals* counted, const Threads& threads);

}  // namespace fusedloss::cpu

namespace fusedloss {

inline int64_t select_workspace_bytes(const SelectCall&, DType, const cpu::Threads&) { return 0; }

}  // namespace fusedloss
