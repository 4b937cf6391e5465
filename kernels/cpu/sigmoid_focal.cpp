// Sigmoid focal loss on the CPU.
#include "../loss/sigmoid_focal.h"

#include "pointwise.h"

namespace fusedloss {

// The small integer exponents are compiled in, so that they cost multiplications; every other one
// takes a logarithm and an exponential.
template <class T, class Run>
static auto with_functor(const FocalOptions& options, const Run& run) {
  const auto with = [&](auto power) {
    return run(SigmoidFocal<T, decltype(power)>(options, power));
  };
  if (options.gamma == 0.0) return with(IntegerPower<0>{});
  if (options.gamma == 1.0) return with(IntegerPower<1>{});
  if (options.gamma == 2.0) return with(IntegerPower<2>{});
  if (options.gamma == 3.0) return with(IntegerPower<3>{});
  return with(RealPower<T>{static_cast<T>(options.gamma)});
}

template LabelReport launch_pointwise_fwd(const PointwiseCall&, const FocalOptions&,
                                          const cpu::Threads&);
template void launch_pointwise_bwd(const PointwiseCall&, const FocalOptions&, const cpu::Threads&);

}  // namespace fusedloss
