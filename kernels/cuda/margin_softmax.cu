// Margin softmax on CUDA: the functor's instantiations.
#include "margin_softmax.h"

#include "row_softmax_launch.cuh"

namespace fusedloss {
namespace {

auto functor(const RowSoftmaxCall& call, const MarginOptions& options) {
  return [&](auto zero) { return MarginSoftmax<decltype(zero), true>(options, call); };
}

}  // namespace

LabelReport launch_margin_softmax_fwd(const RowSoftmaxCall& call, const MarginOptions& options,
                                      cudaStream_t stream) {
  return cuda::row_softmax_forward(call, functor(call, options), stream);
}

void launch_margin_softmax_bwd(const RowSoftmaxCall& call, const MarginOptions& options,
                               cudaStream_t stream) {
  cuda::row_softmax_backward(call, functor(call, options), stream);
}

}  // namespace fusedloss
