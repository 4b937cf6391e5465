// Regions over single elements on CUDA: entry points for the binding.
#pragma once

#include "../loss/joined.h"
#include "region.h"

namespace fusedloss {

LabelReport launch_element_regions_fwd(const PointwiseCall& call, const RegionCall& region,
                                       const ElementRegionOptions& options, cudaStream_t stream);
void launch_element_regions_bwd(const PointwiseCall& call, const RegionCall& region,
                                const ElementRegionOptions& options, cudaStream_t stream);

}  // namespace fusedloss
