// Softmax focal loss on the CPU: the functor's instantiations.
#include "softmax_focal.h"

#include "row_softmax.h"

namespace fusedloss {
namespace {

template <class T, class Run>
auto with_loss(const SoftmaxFocalOptions& options, const RowSoftmaxCall& call, const Run& run) {
  const double gamma = options.gamma;
  const auto with = [&](auto power) {
    return run(SoftmaxFocal<T, decltype(power)>(options, call, power));
  };
  if (gamma == 0.0 || gamma == 1.0 || gamma == 2.0 || gamma == 3.0)
    return with(SmallIntegerPower<T>(gamma));
  return with(RealPower<T>{static_cast<T>(gamma)});
}

}  // namespace

LabelReport launch_softmax_focal_fwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                                     const cpu::Threads& threads) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    return with_loss<Accumulator<X>>(options, call, [&](const auto& loss) {
      return cpu::row_softmax_forward<X>(call, loss, threads);
    });
  });
}

void launch_softmax_focal_bwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                              const cpu::Threads& threads) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    with_loss<Accumulator<X>>(options, call, [&](const auto& loss) {
      cpu::row_softmax_backward<X>(call, loss, threads);
    });
  });
}

}  // namespace fusedloss
