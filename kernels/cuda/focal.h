// Sigmoid focal loss on CUDA: entry points for the binding.
#pragma once

#include "../loss/focal.h"
#include "pointwise.h"

namespace fusedloss {

LabelReport launch_sigmoid_focal_fwd(const PointwiseCall& call, const FocalOptions& options,
                                     cudaStream_t stream);
void launch_sigmoid_focal_bwd(const PointwiseCall& call, const FocalOptions& options,
                              cudaStream_t stream);

}  // namespace fusedloss
