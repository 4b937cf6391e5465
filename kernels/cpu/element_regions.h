// Region losses over elements (a sigmoid, or the input itself) on the CPU: entry points for the
// binding.
#pragma once

#include "../core/pointwise.h"
#include "../loss/joined.h"
#include "threads.h"

namespace fusedloss {

inline int64_t element_regions_workspace_bytes(const PointwiseCall&, const RegionCall&,
                                               const cpu::Threads&) {
  return 0;
}

LabelReport launch_element_regions_fwd(const PointwiseCall& call, const RegionCall& regions,
                                       const ElementRegionOptions& options,
                                       const cpu::Threads& threads);
void launch_element_regions_bwd(const PointwiseCall& call, const RegionCall& regions,
                                const ElementRegionOptions& options, const cpu::Threads& threads);

}  // namespace fusedloss
