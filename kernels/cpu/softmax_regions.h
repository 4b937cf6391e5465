// Region losses over a softmax on the CPU: entry points for the binding.
#pragma once

#include "../loss/joined.h"
#include "threads.h"

namespace fusedloss {

inline int64_t softmax_regions_workspace_bytes(const RowSoftmaxCall&, const RegionCall&,
                                               const cpu::Threads&) {
  return 0;
}

LabelReport launch_softmax_regions_fwd(const RowSoftmaxCall& call, const RegionCall& regions,
                                       const SoftmaxRegionOptions& options,
                                       const cpu::Threads& threads);
void launch_softmax_regions_bwd(const RowSoftmaxCall& call, const RegionCall& regions,
                                const SoftmaxRegionOptions& options, const cpu::Threads& threads);

}  // namespace fusedloss
