// Cross entropy on the CPU: the functor's instantiations.
#include "cross_entropy.h"

#include "row_softmax.h"

namespace fusedloss {

LabelReport launch_cross_entropy_fwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                                     const cpu::Threads& threads) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    const CrossEntropy<Accumulator<X>> loss(options, call);
    return cpu::row_softmax_forward<X>(call, loss, threads);
  });
}

void launch_cross_entropy_bwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                              const cpu::Threads& threads) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    const CrossEntropy<Accumulator<X>> loss(options, call);
    cpu::row_softmax_backward<X>(call, loss, threads);
  });
}

}  // namespace fusedloss
