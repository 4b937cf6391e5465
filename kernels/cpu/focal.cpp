// Sigmoid focal loss on the CPU: the functor's instantiations.
#include "focal.h"

#include "pointwise.h"

namespace fusedloss {
namespace {

// Calls run(functor) with the functor for this exponent: the small integers are compiled in, so
// that they cost multiplications; every other exponent takes a logarithm and an exponential.
template <class T, class Run>
auto with_power(const FocalOptions& options, const Run& run) {
  const auto with = [&](auto power) {
    return run(SigmoidFocal<T, decltype(power)>(options, power));
  };
  if (options.gamma == 0.0) return with(IntegerPower<0>{});
  if (options.gamma == 1.0) return with(IntegerPower<1>{});
  if (options.gamma == 2.0) return with(IntegerPower<2>{});
  if (options.gamma == 3.0) return with(IntegerPower<3>{});
  return with(RealPower<T>{static_cast<T>(options.gamma)});
}

}  // namespace

LabelReport launch_sigmoid_focal_fwd(const PointwiseCall& call, const FocalOptions& options,
                                     const cpu::Threads& threads) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    return with_power<Accumulator<X>>(
        options, [&](const auto& loss) { return cpu::pointwise_forward<X>(call, loss, threads); });
  });
}

void launch_sigmoid_focal_bwd(const PointwiseCall& call, const FocalOptions& options,
                              const cpu::Threads& threads) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    with_power<Accumulator<X>>(
        options, [&](const auto& loss) { cpu::pointwise_backward<X>(call, loss, threads); });
  });
}

}  // namespace fusedloss
