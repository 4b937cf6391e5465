// Softmax focal loss on CUDA: the functor's instantiations.
#include "softmax_focal.h"

#include "row_softmax_launch.cuh"

namespace fusedloss {
namespace {

auto functor(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options) {
  return [&](auto zero) {
    using Power = SwitchedPower<decltype(zero)>;
    return SoftmaxFocal<decltype(zero), Power>(options, call, Power(options.gamma));
  };
}

}  // namespace

LabelReport launch_softmax_focal_fwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                                     cudaStream_t stream) {
  return cuda::row_softmax_forward(call, functor(call, options), stream);
}

void launch_softmax_focal_bwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                              cudaStream_t stream) {
  cuda::row_softmax_backward(call, functor(call, options), stream);
}

}  // namespace fusedloss
