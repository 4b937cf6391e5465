// Binary cross entropy of mined elements on the CPU: the functors' instantiations.
#include "mined_binary_cross_entropy.h"

#include "mined_elements.h"

namespace fusedloss {
namespace {

// Calls run(X, loss) for logits of type X.
template <class Run>
void with_loss(const PointwiseCall& call, const MinedElementOptions& options, const Run& run) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using T = Accumulator<decltype(zero)>;
    if (options.from_logits) return run(zero, logit_cross_entropy<T>());
    return run(zero, ProbabilityCrossEntropy<T>{});
  });
}

}  // namespace

void launch_mined_binary_cross_entropy_fwd(const PointwiseCall& call,
                                           const MinedElementOptions& options,
                                           const MiningCall& mining, const cpu::Threads& threads) {
  with_loss(call, options, [&](auto zero, const auto& loss) {
    cpu::mined_elements_forward<decltype(zero)>(call, loss, mining, threads);
  });
}

void launch_mined_binary_cross_entropy_bwd(const PointwiseCall& call,
                                           const MinedElementOptions& options,
                                           const MinedGradientCall& mined,
                                           const cpu::Threads& threads) {
  with_loss(call, options, [&](auto zero, const auto& loss) {
    cpu::mined_elements_backward<decltype(zero)>(call, loss, mined, threads);
  });
}

}  // namespace fusedloss
