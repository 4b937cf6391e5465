// Binary cross entropy of mined elements on the CPU.
#pragma once

#include "../loss/binary_cross_entropy.h"
#include "threads.h"

namespace fusedloss {

// Marks every element and selects. The call has logits (or probabilities), target, and the mask as
// its weight: elements where that is 0 are left out.
void launch_mined_binary_cross_entropy_fwd(const PointwiseCall& call,
                                           const MinedElementOptions& options,
                                           const MiningCall& mining, const cpu::Threads& threads);
void launch_mined_binary_cross_entropy_bwd(const PointwiseCall& call,
                                           const MinedElementOptions& options,
                                           const MinedGradientCall& mined,
                                           const cpu::Threads& threads);

}  // namespace fusedloss
