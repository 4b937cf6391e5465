// The hot loops of regions over elements: an input, a target and a weight that is 0 for what is
// ignored, each an array of one type. A loss for every element may be joined.
//
// As in region_loops.h, one formula serves sums of p and of p^2.
#pragma once

#include "../loss/joined.h"
#include "region_loops.h"

namespace fusedloss::cpu {

// Nothing joined, to a sigmoid or to the input itself.
template <class T, Activation kWith>
struct NoElementLoss {
  using value_type = T;
  static constexpr Activation kActivation = kWith;
  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>&) const { return {T(0), T(0)}; }
};

// The same interface for a joined functor of the pointwise engine, always of logits.
template <class T, class Loss>
struct JoinedElementLoss {
  using value_type = T;
  static constexpr Activation kActivation = Activation::kSigmoid;
  Loss loss;
  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>& in) const { return loss(in); }
};

// p of an input and its derivative.
template <Activation kActivation, class T>
FUSEDLOSS_HD ValueGrad<T> activate(T x) {
  if constexpr (kActivation == Activation::kNone) return {x, T(1)};
  const Logistic<T> s = logistic(x);
  const T small = s.small * s.large;
  return {s.positive ? s.large : small, s.large * small};
}

// An element's inputs, as arrays.
template <class T>
struct ElementArrays {
  const T *logit, *target, *side, *weight;
};

template <class T>
struct ElementSums {
  T overlap, mass, truth, loss;
};

// The sums of a stretch that lies in one region.
template <class Loss, class T>
FUSEDLOSS_CPU_LEVELS ElementSums<T> element_sums(const Loss loss, const ElementArrays<T> in,
                                                 const RegionPower<T> power, int64_t count) {
  const T* __restrict logit = in.logit;
  const T* __restrict target = in.target;
  const T* __restrict side = in.side;
  const T* __restrict weight = in.weight;
  T overlap = T(0), mass = T(0), truth = T(0), joined = T(0);
#pragma omp simd reduction(+ : overlap, mass, truth, joined)
  for (int64_t i = 0; i < count; ++i) {
    const T t = target[i], w = weight[i];
    const T p = activate<Loss::kActivation>(logit[i]).loss;
    overlap += w * (p * t);
    mass += w * power(p);
    truth += w * power(t);
    joined += loss(Element<T>{logit[i], t, side[i], w}).loss;
  }
  return {overlap, mass, truth, joined};
}

// The terms of a block whose regions alternate, for the caller to add up; returns what is joined.
template <class Loss, class T>
FUSEDLOSS_CPU_LEVELS T element_terms(const Loss loss, const ElementArrays<T> in,
                                     const RegionPower<T> power, int64_t count,
                                     T* __restrict overlap, T* __restrict mass,
                                     T* __restrict truth) {
  const T* __restrict logit = in.logit;
  const T* __restrict target = in.target;
  const T* __restrict side = in.side;
  const T* __restrict weight = in.weight;
  T joined = T(0);
#pragma omp simd reduction(+ : joined)
  for (int64_t i = 0; i < count; ++i) {
    const T t = target[i], w = weight[i];
    const T p = activate<Loss::kActivation>(logit[i]).loss;
    overlap[i] = w * (p * t);
    mass[i] = w * power(p);
    truth[i] = w * power(t);
    joined += loss(Element<T>{logit[i], t, side[i], w}).loss;
  }
  return joined;
}

// The gradient of a block. The slopes are one number each, or one for each element. `upstream`
// is the joined loss's.
template <bool kOneRegion, class Loss, class T>
FUSEDLOSS_CPU_LEVELS void element_gradient(const Loss loss, const ElementArrays<T> in,
                                           const RegionTable<T> slopes, T upstream, int64_t count,
                                           T* __restrict grad) {
  const T* __restrict logit = in.logit;
  const T* __restrict target = in.target;
  const T* __restrict side = in.side;
  const T* __restrict weight = in.weight;
  const T* __restrict overlap = slopes.overlap;
  const T* __restrict linear = slopes.linear;
  const T* __restrict quadratic = slopes.quadratic;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = kOneRegion ? 0 : i;
    const T t = target[i], w = weight[i];
    const ValueGrad<T> p = activate<Loss::kActivation>(logit[i]);
    const T h = overlap[at] * t + linear[at] + quadratic[at] * p.loss;
    const T joined = upstream * loss(Element<T>{logit[i], t, side[i], w}).grad;
    grad[i] = w * (h * p.grad) + joined;
  }
}

}  // namespace fusedloss::cpu
