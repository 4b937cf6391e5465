// Softmax focal loss on the CPU: the functor's instantiations.
#include "softmax_focal.h"

#include "row_softmax.h"

namespace fusedloss {
namespace {

auto functor(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options) {
  return [&](auto zero, const auto& run) {
    using T = decltype(zero);
    const auto with = [&](auto power) {
      return run(SoftmaxFocal<T, decltype(power)>(options, call, power));
    };
    if (is_small_integer(options.gamma)) return with(SmallIntegerPower<T>(options.gamma));
    return with(RealPower<T>{static_cast<T>(options.gamma)});
  };
}

}  // namespace

LabelReport launch_softmax_focal_fwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                                     const cpu::Threads& threads) {
  return cpu::row_softmax_forward(call, functor(call, options), threads);
}

void launch_softmax_focal_bwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                              const cpu::Threads& threads) {
  cpu::row_softmax_backward(call, functor(call, options), threads);
}

}  // namespace fusedloss
