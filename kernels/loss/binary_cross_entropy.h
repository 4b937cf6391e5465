// Binary cross entropy of one element, as hard negative mining selects by it: value and gradient.
//
//   L = -t log p - (1 - t) log(1 - p)
//
// Of logits, with u = e^-|x|, r = 1/(1+u), and the target's weight a on the tail that the logit
// speaks against (a = 1-t for x >= 0, else t), as in sigmoid_focal.h:
//
//   L = |x| a + log(1 + u)      dL/dx = sign(x) r (a - (1 - a) u)
//
// Of probabilities it is what torch.nn.functional.binary_cross_entropy computes: logarithms are at
// least -100, and
//
//   dL/dp = (p - t) / max(p (1 - p), 1e-12)
#pragma once

#include "../core/math.h"
#include "../core/mining.h"
#include "../core/pointwise.h"

namespace fusedloss {

template <class T>
struct LogitCrossEntropy {
  using value_type = T;

  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>& in) const {
    const Logistic<T> s = logistic(in.logit);
    const T a = s.positive ? T(1) - in.target : in.target;
    const T slope = s.large * (a - (T(1) - a) * s.small);
    return {in.weight * (s.magnitude * a + s.log_large), in.weight * (s.positive ? slope : -slope)};
  }
};

template <class T>
LogitCrossEntropy<T> logit_cross_entropy() {
  return {};
}

template <class T>
struct ProbabilityCrossEntropy {
  using value_type = T;

  FUSEDLOSS_HD ValueGrad<T> operator()(const Element<T>& in) const {
    const T p = in.logit, t = in.target, q = T(1) - p;
    // log(1 - p) with what the rounding of 1 - p lost: p itself, where p is small.
    const T lost = (T(1) - q) - p;
    const T log_q = q > T(0) ? log(q) + lost / q : log(q);
    const T own = t * above_floor(log(p)), others = (T(1) - t) * above_floor(log_q);
    const T variance = p * q;
    return {in.weight * -(own + others),
            in.weight * (p - t) / (variance > T(1e-12) ? variance : T(1e-12))};
  }

 private:
  static FUSEDLOSS_HD T above_floor(T logarithm) {
    return logarithm < T(-100) ? T(-100) : logarithm;
  }
};

// An element with a target above 1/2 is a positive, always selected; the others are candidates.
template <class T>
FUSEDLOSS_HD Mark<T> mark_element(T loss, T target, bool masked) {
  const Mark<T> mark = candidate(loss);
  const Mark<T> kept = target > T(0.5) ? mark | kAlwaysSelected<T> : mark;
  return masked ? kLeftOut<T> : kept;
}

// Over logits, or over probabilities.
struct MinedElementOptions {
  bool from_logits;
};

}  // namespace fusedloss
