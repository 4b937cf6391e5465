// Cross entropy of mined rows on the CPU.
#pragma once

#include "../loss/mined_cross_entropy.h"
#include "threads.h"

namespace fusedloss {

// Marks every row and selects. The call has logits, target, class_weight and ignore_index.
LabelReport launch_mined_cross_entropy_fwd(const RowSoftmaxCall& call, const MiningCall& mining,
                                           const cpu::Threads& threads);
void launch_mined_cross_entropy_bwd(const RowSoftmaxCall& call, const MinedGradientCall& mined,
                                    const cpu::Threads& threads);

}  // namespace fusedloss
