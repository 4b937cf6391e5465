// Cross entropy on the CPU: the functor's instantiations.
#include "cross_entropy.h"

#include "row_softmax.h"

namespace fusedloss {
namespace {

auto functor(const RowSoftmaxCall& call, const CrossEntropyOptions& options) {
  return
      [&](auto zero, const auto& run) { return run(CrossEntropy<decltype(zero)>(options, call)); };
}

}  // namespace

LabelReport launch_cross_entropy_fwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                                     const cpu::Threads& threads) {
  return cpu::row_softmax_forward(call, functor(call, options), threads);
}

void launch_cross_entropy_bwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                              const cpu::Threads& threads) {
  cpu::row_softmax_backward(call, functor(call, options), threads);
}

}  // namespace fusedloss
