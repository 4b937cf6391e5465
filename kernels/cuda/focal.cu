// Sigmoid focal loss on CUDA: the functor's instantiations.
#include "focal.h"

#include "pointwise_launch.cuh"

namespace fusedloss {
namespace {

template <class T>
SigmoidFocal<T, SwitchedPower<T>> functor(const FocalOptions& options) {
  return {options, SwitchedPower<T>(options.gamma)};
}

}  // namespace

LabelReport launch_sigmoid_focal_fwd(const PointwiseCall& call, const FocalOptions& options,
                                     cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::pointwise_forward<X>(call, functor<Accumulator<X>>(options), stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

void launch_sigmoid_focal_bwd(const PointwiseCall& call, const FocalOptions& options,
                              cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::pointwise_backward<X>(call, functor<Accumulator<X>>(options), stream);
  });
}

}  // namespace fusedloss
