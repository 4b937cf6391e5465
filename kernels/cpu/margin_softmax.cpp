// Margin softmax on the CPU: the functor's instantiations.
#include "margin_softmax.h"

#include "row_softmax.h"

namespace fusedloss {
namespace {

auto functor(const RowSoftmaxCall& call, const MarginOptions& options) {
  return [&](auto zero, const auto& run) {
    using T = decltype(zero);
    if (options.m1.value == 1.0 && !options.by_class())
      return run(MarginSoftmax<T, false>(options, call));
    return run(MarginSoftmax<T, true>(options, call));
  };
}

}  // namespace

LabelReport launch_margin_softmax_fwd(const RowSoftmaxCall& call, const MarginOptions& options,
                                      const cpu::Threads& threads) {
  return cpu::row_softmax_forward(call, functor(call, options), threads);
}

void launch_margin_softmax_bwd(const RowSoftmaxCall& call, const MarginOptions& options,
                               const cpu::Threads& threads) {
  cpu::row_softmax_backward(call, functor(call, options), threads);
}

}  // namespace fusedloss
