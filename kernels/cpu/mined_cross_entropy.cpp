// Cross entropy of mined rows on the CPU.
#include "mined_cross_entropy.h"

#include "mined_rows.h"

namespace fusedloss {

LabelReport launch_mined_cross_entropy_fwd(const RowSoftmaxCall& call, const MiningCall& mining,
                                           const cpu::Threads& threads) {
  return with_logit_type(call.logits.dtype, [&](auto zero) {
    return cpu::mined_rows_forward<decltype(zero)>(call, mining, threads);
  });
}

void launch_mined_cross_entropy_bwd(const RowSoftmaxCall& call, const MinedGradientCall& mined,
                                    const cpu::Threads& threads) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    cpu::mined_rows_backward<decltype(zero)>(call, mined, threads);
  });
}

}  // namespace fusedloss
