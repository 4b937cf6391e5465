// The row-softmax engine on CUDA: any functor of ../core/row_softmax.h. What its kernels share: a
// row's side inputs, its statistics, and their end in a loss, saved numbers and a gradient.
//
// Three kernels walk the logits (their files say how): row_tile_kernel many short rows a block,
// row_block_kernel one long row a block, row_pixels_kernel rows whose classes are not neighbours in
// memory. row_softmax_launch.cuh chooses. A forward with a sum or mean writes one RowBlockTotals a
// block, and row_finish_kernel adds them in order: two launches, no atomics, no host
// synchronisation. A backward is one launch.
#pragma once

#include "../core/row_softmax.h"
#include "block.cuh"
#include "divide.cuh"
#include "launch.cuh"
#include "mean.cuh"
#include "row_softmax.h"
#include "vec_io.cuh"

namespace fusedloss::cuda {

constexpr int kRowThreads = 256;
// Half occupancy, 64 registers a thread; a quarter for double, whose exponentials and logarithms
// need more.
template <class T>
constexpr int kRowBlocksPerMultiprocessor = sizeof(T) == 8 ? 2 : 4;

// The rows of a call: `call.shape` has the row dimensions only, class strides are here.
struct RowPlan {
  int64_t rows;
  int64_t logits_step, target_step, grad_step;  // elements from class to class
  Divider by_size[kMaxDims];
};

struct RowOffsets {
  int64_t logits = 0, target = 0, upstream = 0, loss = 0, saved = 0, grad = 0;
};

__device__ __forceinline__ RowOffsets locate_row(const RowSoftmaxCall& call, const RowPlan& plan,
                                                 int64_t row) {
  RowOffsets at;
  const auto move = [&](int d, int64_t index) {
    at.logits += index * call.logits.strides[d];
    at.target += index * call.target.strides[d];
    at.upstream += index * call.grad_output.strides[d];
    at.loss += index * call.loss.strides[d];
    at.saved += index * call.saved.strides[d];
    at.grad += index * call.grad.strides[d];
  };
  // Straight code for the usual cases, of which the compiler leaves out what nobody asks for.
  if (call.shape.ndim == 1) {
    move(0, row);
  } else if (call.shape.ndim == 2) {
    int64_t inner;
    move(0, plan.by_size[1].divide(row, inner));
    move(1, inner);
  } else {
    for_each_index(call.shape.ndim, plan.by_size, row, move);
  }
  return at;
}

// Losses that mine (mined_rows.cuh) leave marks in forward and save nothing: their backward
// collects the statistics again, of the selected rows alone (row_softmax_selected.cuh).
template <class Loss>
constexpr bool kMines = false;
template <Pass kPass, class Loss>
constexpr bool kCollects = kPass != Pass::kGrad || kMines<Loss>;
template <Pass kPass, class Loss>
constexpr bool kSelects = kPass == Pass::kGrad && kMines<Loss>;

// What the walks know of the terms at compile time. kAny looks at call.terms.
enum class TermsKind { kNone, kUniform, kAny };

// --- A row's side inputs

// What stands for a row's class where it has none.
enum : int { kIgnored = -1, kBadLabel = -2, kNoLabel = -3 };

// The row's class, or one of those.
__device__ __forceinline__ int class_of_label(const RowSoftmaxCall& call, int64_t label) {
  if (label == call.ignore_index) return kIgnored;
  return is_class(label, call.num_classes) ? static_cast<int>(label) : kBadLabel;
}

// The labels of N rows as they lie in memory, the first at `target_at`. Apart from what they mean,
// so that other loads can be issued while these are under way.
template <int N>
struct RawLabels {
  int64_t labels[N] = {};

  __device__ __forceinline__ void load(const RowSoftmaxCall& call, int64_t target_at) {
    if (call.indexed())
      load_labels(call.target.data, call.target.dtype, target_at,
                  call.target.strides[call.shape.ndim - 1], labels);
  }

  __device__ __forceinline__ void to_classes(const RowSoftmaxCall& call, int (&out)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k)
      out[k] = call.indexed() ? class_of_label(call, labels[k]) : kNoLabel;
  }
};

template <class T>
__device__ __forceinline__ T class_weight(const RowSoftmaxCall& call, int j) {
  return call.class_weight != nullptr ? __ldg(static_cast<const T*>(call.class_weight) + j)
                                      : static_cast<T>(call.weight_value);
}

template <class T>
struct RowInput {
  int label;  // a class, or one of the above
  T weight, unit;

  __device__ __forceinline__ RowInput(const RowSoftmaxCall& call, int row_class)
      : label(row_class),
        weight(row_class >= 0 ? class_weight<T>(call, row_class) : T(0)),
        unit(call.terms == Terms::kUniform ? T(1)
                                           : (call.terms == Terms::kWeights ? weight : T(0))) {}
};

// N values of u: of neighbouring classes of a row from class j on, or of class j in neighbouring
// rows. Probabilities are read from `target_at` on.
enum class Along { kClasses, kRows };

template <Along kAlong, int N, class T>
__device__ __forceinline__ void term_units(const RowSoftmaxCall& call, int64_t target_at,
                                           int64_t target_step, int j, T (&out)[N]) {
  if (call.terms == Terms::kProbabilities)
    load_floats<N>(call.target.data, call.target.dtype, target_at, target_step, out);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (call.terms == Terms::kUniform) {
      out[k] = T(1);
    } else {
      const T weight = class_weight<T>(call, kAlong == Along::kClasses ? j + k : j);
      out[k] = call.terms == Terms::kWeights
                   ? weight
                   : weight * (static_cast<T>(call.target_share) * out[k] +
                               static_cast<T>(call.uniform_share));
    }
  }
}

// --- Statistics

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// How the walks read a logit: the factor of all logits, and the ceiling above which those of other
// classes than the target's are left out.
template <class T>
struct LogitRule {
  T scale, ceiling;

  template <class Loss>
  static __device__ __forceinline__ LogitRule of(const RowSoftmaxCall& call, const Loss& loss) {
    // Constants where no loss has them, so that the compiler leaves the arithmetic out.
    if constexpr (!Loss::kChangesTarget)
      return {T(1), kInfinity<T>};
    else
      return {loss.logit_scale(), call.has_ceiling ? static_cast<T>(call.ceiling) : kInfinity<T>};
  }

  __device__ __forceinline__ T exp_of(T below) const { return exp_nonpositive(scale * below); }
  __device__ __forceinline__ bool drops(T x) const { return x > ceiling; }
};

// What a thread has seen of a row without its target, relative to the maximum so far: to any logit
// of the row instead, one with u = 0 (a masked class) may be so far off that the terms cancel.
template <class T>
struct RowStats {
  T max = -kInfinity<T>;
  T others = T(0);  // sum of e^(s (x - max))
  T terms = T(0);   // sum of u (x - max)
  T sum_u = T(0);

  // A maximum over nothing but -inf is kept out of exponents, where it would make NaN.
  __device__ __forceinline__ T shift() const { return max == -kInfinity<T> ? T(0) : max; }

  // What `terms` grows by where the maximum has risen. While it was -inf they were relative to 0,
  // and stay: only logits of -inf were among them. No u, no terms, however far it has risen.
  __device__ __forceinline__ T rise(T before) const {
    return sum_u == T(0) || before == -kInfinity<T> ? T(0) : sum_u * (before - max);
  }

  // Takes in N logits, one rescaling for all. -inf adds nothing: it stands for the target and for
  // classes beyond the last. NaN and +inf make `others` NaN. Their terms are added afterwards.
  template <int N>
  __device__ __forceinline__ void add(const LogitRule<T>& rule, const T (&x)[N]) {
    const T before = max;
#pragma unroll
    for (int k = 0; k < N; ++k) max = larger(max, rule.drops(x[k]) ? -kInfinity<T> : x[k]);
    const T at = shift();
    others *= rule.exp_of(before - at);
    terms += rise(before);
#pragma unroll
    for (int k = 0; k < N; ++k) others += rule.drops(x[k]) ? T(0) : rule.exp_of(x[k] - at);
  }

  // The terms of N logits where all u are 1; `counted` says which belong to it.
  template <int N>
  __device__ __forceinline__ void add_uniform_terms(const T (&x)[N]) {
    const T at = shift();
#pragma unroll
    for (int k = 0; k < N; ++k) terms += x[k] - at;
    sum_u += T(N);
  }
  template <int N>
  __device__ __forceinline__ void add_uniform_terms(const T (&x)[N], const bool (&counted)[N]) {
    const T at = shift();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      terms += counted[k] ? x[k] - at : T(0);
      sum_u += counted[k] ? T(1) : T(0);
    }
  }

  __device__ __forceinline__ void add_term(T x, T u) {
    terms += u * (x - shift());
    sum_u += u;
  }

  // Joins with the lanes' of a group of `lanes` (a power of two) neighbours: all get the result.
  __device__ __forceinline__ void join(const LogitRule<T>& rule, int lanes, bool has_terms) {
    const T before = max;
    for (int d = lanes / 2; d > 0; d /= 2) max = larger(max, __shfl_xor_sync(0xffffffffu, max, d));
    others *= rule.exp_of(before - shift());
    for (int d = lanes / 2; d > 0; d /= 2) others += __shfl_xor_sync(0xffffffffu, others, d);
    if (!has_terms) return;
    terms += rise(before);
    for (int d = lanes / 2; d > 0; d /= 2) {
      terms += __shfl_xor_sync(0xffffffffu, terms, d);
      sum_u += __shfl_xor_sync(0xffffffffu, sum_u, d);
    }
  }

  __device__ __forceinline__ void join(const LogitRule<T>& rule, const RowStats& with) {
    RowStats other = with;
    const T a = max, b = with.max;
    max = other.max = larger(a, b);
    others = others * rule.exp_of(a - shift()) + other.others * rule.exp_of(b - shift());
    terms = (terms + rise(a)) + (other.terms + other.rise(b));
    sum_u += other.sum_u;
  }
};

// --- The end of a row

template <class T>
__device__ __forceinline__ T uniform_sum(const RowSoftmaxCall& call) {
  return call.terms == Terms::kUniform ? static_cast<T>(call.num_classes) : T(0);
}

template <class T, class Loss>
__device__ __forceinline__ RowState<T> finish_row(const RowSoftmaxCall& call, const Loss& loss,
                                                  const RowInput<T>& in, const RowStats<T>& stats,
                                                  T logit) {
  const RowSums<T> sums{stats.max, stats.others, stats.terms};
  if (!call.indexed()) return make_state_without_target(loss, sums, stats.sum_u);
  const T sum_u = has_weighted_terms(call.terms) ? stats.sum_u + in.unit : uniform_sum<T>(call);
  return make_state(loss, sums, logit, in.label, sum_u, in.unit, in.weight);
}

// What N neighbouring rows leave for backward.
template <int N, class T, class Loss>
__device__ __forceinline__ void save_rows(const RowSoftmaxCall& call, const Loss&,
                                          const RowState<T> (&states)[N], int64_t saved_at) {
  if (call.saved.data == nullptr) return;
  T* saved = static_cast<T*>(call.saved.data) + saved_at;
  const int64_t step = call.saved.strides[call.shape.ndim - 1];
  const ThirdSaved kind = third_saved<Loss>(call.terms);
  T max[N], rest[N], third[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    max[k] = states[k].max;
    rest[k] = states[k].rest;
    third[k] = kind == ThirdSaved::kChanged ? states[k].changed
               : kind == ThirdSaved::kSumU  ? states[k].sum_u
                                            : states[k].smooth;
  }
  store_apart(max, saved, step);
  store_apart(rest, saved + call.saved_stride, step);
  if (kind != ThirdSaved::kNothing) store_apart(third, saved + 2 * call.saved_stride, step);
}

// Their states in backward.
template <int N, class T, class Loss>
__device__ __forceinline__ void restore_rows(const RowSoftmaxCall& call, const Loss& loss,
                                             const int (&labels)[N], const T (&logits)[N],
                                             int64_t saved_at, RowState<T> (&states)[N]) {
  const T* saved = static_cast<const T*>(call.saved.data) + saved_at;
  const int64_t step = call.saved.strides[call.shape.ndim - 1];
  const ThirdSaved kind = third_saved<Loss>(call.terms);
  T max[N], rest[N], third[N] = {};
  load_apart(saved, step, max);
  load_apart(saved + call.saved_stride, step, rest);
  if (kind != ThirdSaved::kNothing) load_apart(saved + 2 * call.saved_stride, step, third);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const RowInput<T> in(call, labels[k]);
    const T logit = labels[k] >= 0 ? logits[k] : max[k];
    TargetLogit<T> target = loss.changed_target(logit, labels[k]);
    if (kind == ThirdSaved::kChanged) target.logit = third[k];
    const T smooth = kind == ThirdSaved::kSmooth ? third[k] : T(0);
    const T sum_u = kind == ThirdSaved::kSumU ? third[k] : uniform_sum<T>(call);
    states[k] =
        restore_state(loss, max[k], rest[k], logit, target, smooth, sum_u, in.unit, in.weight);
  }
}

// What a thread has seen of the losses.
template <class T>
struct RowTotals {
  T main = T(0), by_row = T(0), weight = T(0);
  int valid = 0;
};

// Leaves the losses and saved numbers of N neighbouring rows: one thread for each.
template <int N, class T, class Loss>
__device__ __forceinline__ void leave_rows(const RowSoftmaxCall& call, const Loss& loss,
                                           const int (&labels)[N], const RowState<T> (&states)[N],
                                           const RowOffsets& at, RowTotals<T>& totals) {
  if constexpr (kMines<Loss>) return loss.leave_marks(call, labels, states, at.loss, totals);
  save_rows(call, loss, states, at.saved);
  T losses[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    RowLoss<T> value = loss.value(states[k]);
    if (labels[k] == kIgnored) value = {T(0), T(0)};
    if (labels[k] == kBadLabel) value.main = std::numeric_limits<T>::quiet_NaN();
    losses[k] = value.main + value.by_row;
    totals.main += value.main;
    totals.by_row += value.by_row;
    totals.valid += labels[k] == kIgnored ? 0 : 1;
    totals.weight += labels[k] >= 0 ? states[k].weight : T(0);
  }
  if (call.reduction == Reduction::kNone)
    store_apart(losses, static_cast<T*>(call.loss.data) + at.loss,
                call.loss.strides[call.shape.ndim - 1]);
}

// --- Gradients

// The row's gradient as the walk applies it. Ignored rows get zeros whatever their logits.
template <class T>
struct RowSlope {
  T softmax, terms, target;  // the first times e^(s (x - max))
  T max;
  int label;
  LogitRule<T> rule;

  RowSlope() = default;
  template <class Loss>
  __device__ __forceinline__ RowSlope(const Loss& loss, const LogitRule<T>& how, int row_class,
                                      const RowState<T>& state, RowScale<T> scale)
      : max(state.max), label(row_class), rule(how) {
    const RowGradient<T> gradient = loss.gradient(state, scale);
    softmax = gradient.softmax * state.inverse;
    terms = gradient.terms;
    target = gradient.target;
    if (row_class == kBadLabel) softmax = std::numeric_limits<T>::quiet_NaN();
  }

  __device__ __forceinline__ bool ignored() const { return label == kIgnored; }

  // Of a class other than the label's, in a row that is not ignored.
  __device__ __forceinline__ T others(T x, T u) const {
    const T kept = softmax * rule.exp_of(x - max) + terms * u;
    return rule.drops(x) ? T(0) : kept;
  }
};

// What a row's gradient is multiplied by: in forward all that is known there, in backward the
// incoming gradient and the rest.
template <Pass kPass, class T>
__device__ __forceinline__ RowScale<T> row_scale(const RowSoftmaxCall& call, const RowPlan& plan,
                                                 T upstream) {
  if (kPass == Pass::kGrad) {
    const T* scale = static_cast<const T*>(call.scale);
    return {upstream * scale[0], upstream * scale[1]};
  }
  const T factor = reciprocal(expected_divisor<T>(call, plan.rows));
  return {factor, factor};
}

}  // namespace fusedloss::cuda
