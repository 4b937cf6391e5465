// Losses of the pointwise engine on the CPU: entry points for the binding. A loss is its options,
// for which it instantiates them in a file of its own.
#pragma once

#include "../core/pointwise.h"
#include "threads.h"

namespace fusedloss {

inline int64_t pointwise_workspace_bytes(const PointwiseCall&, const cpu::Threads&) { return 0; }

template <class Options>
LabelReport launch_pointwise_fwd(const PointwiseCall& call, const Options& options,
                                 const cpu::Threads& threads);
template <class Options>
void launch_pointwise_bwd(const PointwiseCall& call, const Options& options,
                          const cpu::Threads& threads);

}  // namespace fusedloss
