// Sigmoid focal loss on CUDA: the functor's instantiations.
#include "focal.h"

#include "pointwise_launch.cuh"

namespace fusedloss {
namespace {

template <class T>
SigmoidFocal<T, SwitchedPower<T>> functor(const FocalOptions& options) {
  return {options, SwitchedPower<T>(options.gamma)};
}

// The forms that training uses. gamma = 2 is everyone's, and three instructions less than any.
template <class T>
struct Special {
  const FocalOptions& options;

  template <class Run>
  bool labels(const Run& run) const {
    if (options.label_smoothing != 0.0) return false;
    if (options.gamma == 2.0)
      run(SigmoidFocalOfLabels<T, IntegerPower<2>>{});
    else
      run(SigmoidFocalOfLabels<T, SwitchedPower<T>>{SwitchedPower<T>(options.gamma)});
    return true;
  }

  template <class Run>
  bool dense(const Run& run) const {
    if (options.gamma != 2.0) return false;
    run(SigmoidFocal<T, IntegerPower<2>>(options, {}));
    return true;
  }
};

}  // namespace

LabelReport launch_sigmoid_focal_fwd(const PointwiseCall& call, const FocalOptions& options,
                                     cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::pointwise_forward<X>(call, functor<Accumulator<X>>(options),
                               Special<Accumulator<X>>{options}, stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

void launch_sigmoid_focal_bwd(const PointwiseCall& call, const FocalOptions& options,
                              cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::pointwise_backward<X>(call, functor<Accumulator<X>>(options),
                                Special<Accumulator<X>>{options}, stream);
  });
}

}  // namespace fusedloss
