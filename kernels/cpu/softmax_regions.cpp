// Region losses over a softmax on the CPU: the instantiations, one for each thing joined.
#include "softmax_regions.h"

#include "row_regions.h"

namespace fusedloss {
namespace {

// Calls run(zero, functor) with a zero of the logits' type.
template <class Run>
auto with_joined(const RowSoftmaxCall& call, const SoftmaxRegionOptions& options, const Run& run) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    using T = Accumulator<decltype(zero)>;
    const auto with_focal = [&](auto power) {
      return run(zero, SoftmaxFocal<T, decltype(power)>(options.focal, call, power));
    };
    if (options.joined == Joined::kNothing) return run(zero, NoRowLoss<T>{});
    if (options.joined == Joined::kCrossEntropy)
      return run(zero, CrossEntropy<T, false>(options.cross_entropy, call));
    if (is_small_integer(options.focal.gamma))
      return with_focal(SmallIntegerPower<T>(options.focal.gamma));
    return with_focal(RealPower<T>{static_cast<T>(options.focal.gamma)});
  });
}

}  // namespace

LabelReport launch_softmax_regions_fwd(const RowSoftmaxCall& call, const RegionCall& regions,
                                       const SoftmaxRegionOptions& options,
                                       const cpu::Threads& threads) {
  return with_joined(call, options, [&](auto zero, const auto& loss) {
    return cpu::forward_regions<decltype(zero)>(call, regions, loss, threads);
  });
}

void launch_softmax_regions_bwd(const RowSoftmaxCall& call, const RegionCall& regions,
                                const SoftmaxRegionOptions& options, const cpu::Threads& threads) {
  with_joined(call, options, [&](auto zero, const auto& loss) {
    cpu::backward_regions<decltype(zero)>(call, regions, loss, threads);
  });
}

}  // namespace fusedloss
