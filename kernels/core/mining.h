// Hard example mining: which losses of a call count, without sorting them.
//
// A walk over the logits leaves one mark for every row or element (below): left out, always
// selected, or a candidate with its loss. Then a selection over the marks of each slice (the whole
// call, an image) takes the always selected and the k largest candidates. k depends on how many
// there are of each, which only the marks tell, so it never leaves the device. Candidates are
// compared by their bits, exactly and in any order; those tied with the k-th largest are taken
// whole or share what is left of k, so the result does not depend on the order of elements.
//
// Backward gives every row or element its share of the gradient: 1, 0, or that of the tied ones.
#pragma once

#include <limits>

#include "layout.h"
#include "loss_call.h"
#include "math.h"

namespace fusedloss {

// --- Marks. A mark is a number of the accumulator's type T, read as an integer:
//
//   all bits set      left out: ignored rows, masked elements
//   sign bit set      always selected, with the loss that is left without that bit
//   else              a candidate: its loss, in the order of losses; NaN is the largest
//
// A NaN is canonical, so no loss is taken for a mark.

template <class T>
struct MarkOf;
template <>
struct MarkOf<float> {
  using type = uint32_t;
};
template <>
struct MarkOf<double> {
  using type = uint64_t;
};
template <class T>
using Mark = typename MarkOf<T>::type;

template <class T>
constexpr int kMarkBits = static_cast<int>(8 * sizeof(T));
template <class T>
constexpr Mark<T> kLeftOut = ~Mark<T>(0);
template <class T>
constexpr Mark<T> kAlwaysSelected = Mark<T>(1) << (kMarkBits<T> - 1);

// Losses are not negative, but for the sign of a 0.
template <class T>
FUSEDLOSS_HD Mark<T> candidate(T loss) {
  const T positive = loss > T(0) ? loss : T(0);
  return bit_cast<Mark<T>>(loss == loss ? positive : std::numeric_limits<T>::quiet_NaN());
}
template <class T>
FUSEDLOSS_HD Mark<T> always_selected(T loss) {
  return candidate(loss) | kAlwaysSelected<T>;
}

template <class T>
FUSEDLOSS_HD bool is_candidate(Mark<T> mark) {
  return mark < kAlwaysSelected<T>;
}
// Not of what is left out.
template <class T>
FUSEDLOSS_HD T loss_of(Mark<T> mark) {
  return bit_cast<T>(mark & ~kAlwaysSelected<T>);
}

// --- What is selected of a slice: candidates above the cut whole, those at the cut with a share.

template <class T>
struct Selection {
  T cut, share;
};

// Nothing is above a NaN.
template <class T>
FUSEDLOSS_HD Selection<T> no_candidates() {
  return {std::numeric_limits<T>::quiet_NaN(), T(0)};
}
template <class T>
FUSEDLOSS_HD bool has_candidates(Selection<T> selection) {
  return selection.cut == selection.cut || selection.share != T(0);
}

// Which part of a row's or element's loss and gradient counts.
template <class T>
FUSEDLOSS_HD T share_of(Selection<T> selection, Mark<T> mark) {
  const Mark<T> cut = candidate(selection.cut);
  const T of_candidate = mark > cut ? T(1) : (mark == cut ? selection.share : T(0));
  const T of_others = mark == kLeftOut<T> ? T(0) : T(1);
  return is_candidate<T>(mark) ? of_candidate : of_others;
}

// --- How many candidates are selected.

enum class Wanted : int32_t {
  kTogether,  // `number` together with the always selected
  kNumber,    // `number`
  kFraction,  // floor(factor * candidates), at least 1
  kRatio      // floor(factor * always selected), `number` where there are none
};

struct SelectionRule {
  Wanted wanted;
  int64_t number;
  double factor;
  bool whole_ties;  // ties at the cut are kept whole; else they share, and exactly k count
  double epsilon;   // added to the mean's divisor
};

// At most the candidates that there are.
FUSEDLOSS_HD int64_t wanted_candidates(const SelectionRule& rule, int64_t always,
                                       int64_t candidates) {
  int64_t wanted = rule.number;
  if (rule.wanted == Wanted::kTogether) {
    wanted = rule.number - always;
  } else if (rule.wanted == Wanted::kFraction || (rule.wanted == Wanted::kRatio && always > 0)) {
    const bool fraction = rule.wanted == Wanted::kFraction;
    const double product = rule.factor * static_cast<double>(fraction ? candidates : always);
    // A product beyond the integers is more than there are.
    const double most = static_cast<double>(candidates);
    wanted = product < most ? static_cast<int64_t>(product) : candidates;
    if (fraction && wanted < 1) wanted = 1;
  }
  if (wanted < 0) wanted = 0;
  return wanted < candidates ? wanted : candidates;
}

// What a slice's selection amounts to. `above` candidates are larger than the cut, `tied` equal it.
template <class T>
FUSEDLOSS_HD Selection<T> selection_at(const SelectionRule& rule, T cut, int64_t wanted,
                                       int64_t above, int64_t tied) {
  if (wanted == 0) return no_candidates<T>();
  const double left = static_cast<double>(wanted - above);
  return {cut, rule.whole_ties ? T(1) : static_cast<T>(left / static_cast<double>(tied))};
}

// --- A call: the walk's outputs, and the selection over them.

// The marks of all slices lie one after the other: mark i of slice s at s * slice_size + i.
struct SelectCall {
  void* marks;   // Mark<T>[num_slices * slice_size]
  void* values;  // T[...] as the marks: what is summed in the place of the marks' losses (class
                 // weights applied), or nullptr
  int64_t num_slices, slice_size;
  SelectionRule rule;
  Reduction reduction;
  void* loss;       // Reduction::kNone: T[...] as the marks; else one number
  void* scale;      // one number: 1 / divisor, what backward multiplies by; 0 where nothing is
                    // selected, 1 where nothing is averaged
  void* selection;  // Selection<T>[num_slices]
  void* workspace;  // select_workspace_bytes() bytes where the marks live
};

// What mining adds to a forward call of the row-softmax or the pointwise engine. The loss's own
// outputs (call.loss, scale, saved, grad) stay empty there: `select` has them.
struct MiningCall {
  TensorView marks;  // by row or element, in the iteration space of the call
  SelectCall select;
  double threshold;  // rows: with a loss above this one are always selected
};

// What it adds to a backward call. The call has grad_output, scale (SelectCall's) and grad.
struct MinedGradientCall {
  TensorView marks;
  TensorView slice;       // strides alone: an element's slice is their sum over its place
  const void* selection;  // Selection<T>[num_slices]
  // Rows on the CPU: call.grad holds what forward wrote there, the gradient of the always selected
  // for an incoming gradient and a scale of 1.
  bool begun;
};

}  // namespace fusedloss
