// Cross entropy on CUDA: the functor's instantiations.
#include "cross_entropy.h"

#include "row_softmax_launch.cuh"

namespace fusedloss {
namespace {

template <class T>
CrossEntropy<T> functor(const RowSoftmaxCall& call, const CrossEntropyOptions& options) {
  return {options, call};
}

}  // namespace

LabelReport launch_cross_entropy_fwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                                     cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::row_softmax_forward<X>(call, functor<Accumulator<X>>(call, options), stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

void launch_cross_entropy_bwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                              cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    using X = decltype(zero);
    cuda::row_softmax_backward<X>(call, functor<Accumulator<X>>(call, options), stream);
  });
}

}  // namespace fusedloss
