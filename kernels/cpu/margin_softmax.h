// Margin softmax on the CPU: entry points for the binding.
#pragma once

#include "../loss/margin_softmax.h"
#include "threads.h"

namespace fusedloss {

LabelReport launch_margin_softmax_fwd(const RowSoftmaxCall& call, const MarginOptions& options,
                                      const cpu::Threads& threads);
void launch_margin_softmax_bwd(const RowSoftmaxCall& call, const MarginOptions& options,
                               const cpu::Threads& threads);

}  // namespace fusedloss
