// Cross entropy of mined rows on CUDA.
#include "mined_cross_entropy.h"

#include "mined_rows.cuh"

namespace fusedloss {

LabelReport launch_mined_cross_entropy_fwd(const RowSoftmaxCall& call, const MiningCall& mining,
                                           cudaStream_t stream) {
  with_logit_type(call.logits.dtype, [&](auto zero) {
    cuda::mine_rows<decltype(zero)>(cuda::mined_call(call), mining, stream);
  });
  return {};  // a bad label makes its row NaN; finding it here would wait for the device
}

void launch_mined_cross_entropy_bwd(const RowSoftmaxCall& call, const MinedGradientCall& mined,
                                    cudaStream_t stream) {
  if (call.shape.numel() == 0) return;
  with_logit_type(call.logits.dtype, [&](auto zero) {
    cuda::mined_rows_gradient<decltype(zero)>(cuda::mined_call(call), mined, stream);
  });
}

}  // namespace fusedloss
