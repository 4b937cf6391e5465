// Hard example mining over rows, as a loss of the row-softmax engine's walks. Forward: marks in the
// place of losses (`call.loss` is where they lie), and the counts that the selection begins with.
// Backward: marks in the place of saved numbers (`call.saved`), and what is selected of them.
#pragma once

#include "../loss/mined_cross_entropy.h"
#include "row_softmax_launch.cuh"
#include "select_count.cuh"

namespace fusedloss::cuda {

template <class T>
struct MinedRows : MinedCrossEntropy<T> {
  T threshold;
  T* values;  // as the marks, or nullptr
  MarkCounts counts;
  const Selection<T>* selection;

  __device__ __forceinline__ void begin() const { begin_counting<T>(counts); }

  template <int N>
  __device__ __forceinline__ void leave_marks(const RowSoftmaxCall& call, const int (&labels)[N],
                                              const RowState<T> (&states)[N], int64_t marks_at,
                                              RowTotals<T>& totals) const {
    const int64_t step = call.loss.strides[call.shape.ndim - 1];
    MarkSums<T> sums{totals.main, totals.by_row, totals.valid};
    Mark<T> marks[N];
    T weighted[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const T nan = std::numeric_limits<T>::quiet_NaN();
      const T nll = labels[k] == kBadLabel ? nan : states[k].nll;
      marks[k] = labels[k] == kIgnored ? kLeftOut<T> : mark_row(nll, threshold);
      weighted[k] = labels[k] == kIgnored    ? T(0)
                    : labels[k] == kBadLabel ? nan
                                             : states[k].weight * nll;
      count_mark<T>(counts, marks[k], sums);
    }
    store_apart(marks, static_cast<Mark<T>*>(call.loss.data) + marks_at, step);
    if (values != nullptr) store_apart(weighted, values + marks_at, step);
    totals.main = sums.always;
    totals.by_row = sums.candidates;
    totals.valid = sums.count;
  }

  __device__ __forceinline__ void end(const RowTotals<T>& totals, bool spread) const {
    end_counting<T>(counts, {totals.main, totals.by_row, totals.valid}, spread);
  }
};

template <class T>
constexpr bool kMines<MinedRows<T>> = true;

// Cross entropy has no sum over all classes, and its class weights are those of targets.
inline RowSoftmaxCall mined_call(RowSoftmaxCall call) {
  call.terms = Terms::kNone;
  call.weight_value = 1.0;
  return call;
}

template <class X>
void mine_rows(RowSoftmaxCall call, const MiningCall& mining, cudaStream_t stream) {
  using T = Accumulator<X>;
  const SelectCall& select = mining.select;
  const MarkCounts counts = begin_select(select, call.accumulator(), stream);
  int64_t blocks = 0;
  if (call.shape.numel() > 0) {
    call.loss = mining.marks;
    const RowPlan plan = take_classes_out(call);
    const MinedRows<T> loss{
        {}, static_cast<T>(mining.threshold), static_cast<T*>(select.values), counts, nullptr};
    blocks = walk_rows_of<Pass::kLoss, TermsKind::kNone, X>(call, plan, loss, stream);
  }
  finish_select(select, call.accumulator(), blocks, stream);
}

template <class X>
void mined_rows_gradient(RowSoftmaxCall call, const MinedGradientCall& mined, cudaStream_t stream) {
  using T = Accumulator<X>;
  call.saved = mined.marks;
  const RowPlan plan = take_classes_out(call);
  const MinedRows<T> loss{{}, T(0), nullptr, {}, static_cast<const Selection<T>*>(mined.selection)};
  walk_rows_of<Pass::kGrad, TermsKind::kNone, X>(call, plan, loss, stream);
}

}  // namespace fusedloss::cuda
