// Softmax focal loss on the CPU: entry points for the binding.
#pragma once

#include "../loss/softmax_focal.h"
#include "threads.h"

namespace fusedloss {

LabelReport launch_softmax_focal_fwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                                     const cpu::Threads& threads);
void launch_softmax_focal_bwd(const RowSoftmaxCall& call, const SoftmaxFocalOptions& options,
                              const cpu::Threads& threads);

}  // namespace fusedloss
