// Sigmoid focal loss on the CPU: entry points for the binding.
#pragma once

#include "../core/pointwise.h"
#include "../loss/focal.h"
#include "threads.h"

namespace fusedloss {

inline int64_t pointwise_workspace_bytes(const PointwiseCall&, const cpu::Threads&) { return 0; }

LabelReport launch_sigmoid_focal_fwd(const PointwiseCall& call, const FocalOptions& options,
                                     const cpu::Threads& threads);
void launch_sigmoid_focal_bwd(const PointwiseCall& call, const FocalOptions& options,
                              const cpu::Threads& threads);

}  // namespace fusedloss
