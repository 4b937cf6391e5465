// The calls that training makes, in few instructions an element: dense logits, constant side
// operands, no weights, one sum or mean. What linear_kernel asks for each element is asked once a
// vector here: which row it lies in, whether a target is ignored or bad. A vector with such a
// target, the head and the tail go through linear_kernel's code one by one.
#pragma once

#include "pointwise.cuh"

namespace fusedloss::cuda {

constexpr int64_t kMostClasses = int64_t{1} << 30;  // whose sums with a vector are 32-bit numbers

// Targets are class indices along rows of at least V classes, so that a vector meets at most two
// rows.
template <int V, class X>
class LabelTargets {
 public:
  // The labels of a vector: of the row it begins in, and of the next where it reaches that.
  struct Loaded {
    int64_t label, next;
    int this_class;
  };

  template <class T>
  __device__ __forceinline__ LabelTargets(const PointwiseCall&, const LinearPlan<T>& plan,
                                          int64_t element) {
    int64_t at;
    row_ = plan.by_classes.divide(element, at);
    this_class_ = static_cast<int>(at);
  }

  template <class T>
  __device__ __forceinline__ void load(const PointwiseCall& call, const LinearPlan<T>& plan,
                                       Loaded& out) {
    const int classes = static_cast<int>(plan.classes);
    out.this_class = this_class_;
    out.label = load_label(call.target.data, call.target.dtype, row_);
    out.next = out.label;
    if (this_class_ + V > classes)
      out.next = load_label(call.target.data, call.target.dtype, row_ + 1);
    row_ += plan.step_rows;
    this_class_ += plan.step_classes;
    if (this_class_ < classes) return;
    this_class_ -= classes;
    ++row_;
  }

  // Whether no target is ignored or bad; `hits` has a bit for each element that is its row's class.
  template <class T>
  static __device__ __forceinline__ bool is_plain(const PointwiseCall& call,
                                                  const LinearPlan<T>& plan, const Loaded& in,
                                                  unsigned& hits) {
    const int classes = static_cast<int>(plan.classes);
    const auto plain = [&](int64_t label) {
      return label != call.ignore_index && !is_bad_label(label, plan.classes);
    };
    const auto hit = [&](int64_t label, int from) {
      const int at = static_cast<int>(label) - from;
      const bool here = at >= 0 && at < V && static_cast<int>(label) < classes;
      return here ? 1u << at : 0u;
    };
    hits = hit(in.label, in.this_class);
    if (in.this_class + V <= classes) return plain(in.label);
    if (in.next >= 0) hits |= hit(in.next, in.this_class - classes);
    return plain(in.label) && plain(in.next);
  }

  template <class T>
  static __device__ __forceinline__ T target(const Loaded&, unsigned hits, int j) {
    return (hits >> j & 1u) != 0 ? T(1) : T(0);
  }

 private:
  int64_t row_;
  int this_class_;
};

// Targets lie as the logits do, in the same type.
template <int V, class X>
class DenseTargets {
 public:
  struct Loaded {
    alignas(sizeof(X) * V) X raw[V];
  };

  template <class T>
  __device__ __forceinline__ DenseTargets(const PointwiseCall& call, const LinearPlan<T>&,
                                          int64_t element)
      : from_(static_cast<const X*>(call.target.data) + element) {}

  template <class T>
  __device__ __forceinline__ void load(const PointwiseCall&, const LinearPlan<T>&, Loaded& out) {
    load_vector<V>(from_, out.raw);
    from_ += kPointwiseThreads * V;
  }

  template <class T>
  static __device__ __forceinline__ bool is_plain(const PointwiseCall& call, const LinearPlan<T>&,
                                                  const Loaded& in, unsigned&) {
    const T ignored = static_cast<T>(call.ignored_target);
    bool any = false;
#pragma unroll
    for (int j = 0; j < V; ++j) any |= to<T>(in.raw[j]) == ignored;
    return !any;
  }

  template <class T>
  static __device__ __forceinline__ T target(const Loaded& in, unsigned, int j) {
    return to<T>(in.raw[j]);
  }

 private:
  const X* from_;
};

template <int V, class X, class Targets>
struct PlainVector {
  alignas(sizeof(X) * V) X logits[V];
  typename Targets::Loaded targets;
};

// One vector without ignored or bad targets.
template <Pass kPass, int V, class X, class Targets, class Loss>
__device__ __forceinline__ void process_plain(const PlainVector<V, X, Targets>& in, unsigned hits,
                                              typename Loss::value_type side, const Loss& loss,
                                              typename Loss::value_type factor, X* grads,
                                              ThreadTotals<typename Loss::value_type>& totals) {
  using T = typename Loss::value_type;
  alignas(sizeof(X) * V) X out[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const T target = Targets::template target<T>(in.targets, hits, j);
    const ValueGrad<T> v = loss({to<T>(in.logits[j]), target, side, T(1)});
    totals.loss += v.loss;
    out[j] = from<X>(v.grad * factor);
  }
  totals.valid += V;
  if constexpr (kPass != Pass::kLoss) store_whole<V>(out, grads);
}

template <Pass kPass, int V, class X, class Loss, class Targets>
__global__ void __launch_bounds__(kPointwiseThreads, kBlocksPerMultiprocessor)
    plain_kernel(const __grid_constant__ PointwiseCall call,
                 const __grid_constant__ LinearPlan<typename Loss::value_type> plan,
                 const Loss loss) {
  using T = typename Loss::value_type;
  const X* logits = static_cast<const X*>(call.logits.data);
  X* grads = static_cast<X*>(call.grad.data);
  const T factor = gradient_factor<kPass, T>(call);
  T whole_factor = factor;
  if (kPass == Pass::kGrad)
    whole_factor *= plan.upstream.data != nullptr ? *plan.upstream.data : plan.upstream.constant;
  ThreadTotals<T> totals;

  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPointwiseThreads * plan.rounds +
                        static_cast<int64_t>(threadIdx.x);
  int64_t element = plan.head + first * V;
  const int64_t left = (plan.vectors - first + kPointwiseThreads - 1) / kPointwiseThreads;
  int rounds = left < plan.rounds ? static_cast<int>(left) : plan.rounds;
  const auto one = [&](int64_t i) {
    const X logit[1] = {logits[i]};
    process<kPass, 1>(call, plan, loss, i, logit, factor, totals);
  };

  // The next vector is on its way while this one is worked on.
  Targets targets(call, plan, element);
  PlainVector<V, X, Targets> now, next;
  if (rounds > 0) {
    load_vector<V>(logits + element, now.logits);
    targets.load(call, plan, now.targets);
  }
#pragma unroll 1
  for (; rounds > 0; --rounds, element += kPointwiseThreads * V) {
    if (rounds > 1) {
      load_vector<V>(logits + element + kPointwiseThreads * V, next.logits);
      targets.load(call, plan, next.targets);
    }
    unsigned hits = 0;
    if (Targets::is_plain(call, plan, now.targets, hits)) {
      process_plain<kPass>(now, hits, plan.side.constant, loss, whole_factor, grads + element,
                           totals);
    } else {
#pragma unroll 1
      for (int j = 0; j < V; ++j) one(element + j);
    }
    now = next;
  }

  const int64_t tail = plan.head + plan.vectors * V;
  const int64_t peeled = plan.head + plan.numel - tail;
  if (blockIdx.x == 0 && threadIdx.x < peeled)
    one(threadIdx.x < plan.head ? threadIdx.x : tail + threadIdx.x - plan.head);
  if (kPass != Pass::kGrad) leave_totals(call, totals);
}

}  // namespace fusedloss::cuda
