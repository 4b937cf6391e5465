// Cross entropy of mined rows on CUDA.
#pragma once

#include <cuda_runtime.h>

#include "../loss/mined_cross_entropy.h"
#include "select.h"

namespace fusedloss {

// Marks every row and selects. The call has logits, target, class_weight and ignore_index.
LabelReport launch_mined_cross_entropy_fwd(const RowSoftmaxCall& call, const MiningCall& mining,
                                           cudaStream_t stream);
void launch_mined_cross_entropy_bwd(const RowSoftmaxCall& call, const MinedGradientCall& mined,
                                    cudaStream_t stream);

}  // namespace fusedloss
