// Softmax focal loss on CUDA: the functor's instantiations.
#include "softmax_focal.h"

#include "row_softmax_launch.cuh"

namespace fusedloss {
namespace {

template <class T>
SoftmaxFocal<T, SwitchedPower<T>> functor(const RowSoftmaxCall& call,
                                          const SoftmaxFocalOptions& options) {
  return {options, call, SwitchedPower<T>(options.gamma)};
}

}  // namespace

LabelReport launch_softmax_focal_fwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                                     cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::row_softmax_forward<X>(call, functor<Accumulator<X>>(call, options), stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

void launch_softmax_focal_bwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                              cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::row_softmax_backward<X>(call, functor<Accumulator<X>>(call, options), stream);
  });
}

}  // namespace fusedloss
