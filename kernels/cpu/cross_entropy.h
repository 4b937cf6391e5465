// Cross entropy on the CPU: entry points for the binding.
#pragma once

#include "../loss/cross_entropy.h"
#include "threads.h"

namespace fusedloss {

LabelReport launch_cross_entropy_fwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                                     const cpu::Threads& threads);
void launch_cross_entropy_bwd(const RowSoftmaxCall& call, const CrossEntropyOptions& options,
                              const cpu::Threads& threads);

}  // namespace fusedloss
