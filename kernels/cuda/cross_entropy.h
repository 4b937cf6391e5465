// Cross entropy on CUDA: entry points for the binding.
#pragma once

#include "../loss/cross_entropy.h"
#include "row_softmax.h"

namespace fusedloss {

LabelReport launch_cross_entropy_fwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                                     cudaStream_t stream);
void launch_cross_entropy_bwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                              cudaStream_t stream);

}  // namespace fusedloss
