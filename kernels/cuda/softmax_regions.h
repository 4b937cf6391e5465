// Regions over a softmax on CUDA: entry points for the binding.
#pragma once

#include "../loss/joined.h"
#include "region.h"

namespace fusedloss {

LabelReport launch_softmax_regions_fwd(const RowSoftmaxCall& call, const RegionCall& region,
                                       const SoftmaxRegionOptions& options, cudaStream_t stream);
void launch_softmax_regions_bwd(const RowSoftmaxCall& call, const RegionCall& region,
                                const SoftmaxRegionOptions& options, cudaStream_t stream);

}  // namespace fusedloss
