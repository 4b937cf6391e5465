// Smooth L1 loss on the CPU.
#include "../loss/smooth_l1.h"

#include "pointwise.h"

namespace fusedloss {

template LabelReport launch_pointwise_fwd(const PointwiseCall&, const SmoothL1Options&,
                                          const cpu::Threads&);
template void launch_pointwise_bwd(const PointwiseCall&, const SmoothL1Options&,
                                   const cpu::Threads&);

}  // namespace fusedloss
