// Softmax focal loss on CUDA: entry points for the binding.
#pragma once

#include "../loss/softmax_focal.h"
#include "row_softmax.h"

namespace fusedloss {

LabelReport launch_softmax_focal_fwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                                     cudaStream_t stream);
void launch_softmax_focal_bwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                              cudaStream_t stream);

}  // namespace fusedloss
