// Margin softmax on CUDA: entry points for the binding.
#pragma once

#include "../loss/margin_softmax.h"
#include "row_softmax.h"

namespace fusedloss {

LabelReport launch_margin_softmax_fwd(const RowSoftmaxCall& call, const MarginOptions& options,
                                      cudaStream_t stream);
void launch_margin_softmax_bwd(const RowSoftmaxCall& call, const MarginOptions& options,
                               cudaStream_t stream);

}  // namespace fusedloss
