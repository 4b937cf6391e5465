// Cross entropy on CUDA: the functor's instantiations.
#include "cross_entropy.h"

#include "row_softmax_launch.cuh"

namespace fusedloss {
namespace {

auto functor(const RowSoftmaxCall& call, const CrossEntropyOptions& options) {
  return [&](auto zero) { return CrossEntropy<decltype(zero)>(options, call); };
}

}  // namespace

LabelReport launch_cross_entropy_fwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                                     cudaStream_t stream) {
  return cuda::row_softmax_forward(call, functor(call, options), stream);
}

void launch_cross_entropy_bwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                              cudaStream_t stream) {
  cuda::row_softmax_backward(call, functor(call, options), stream);
}

}  // namespace fusedloss
