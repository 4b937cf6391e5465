// Smooth L1 loss on CUDA.
#include "../loss/smooth_l1.h"

#include "pointwise_launch.cuh"

namespace fusedloss {

template LabelReport launch_pointwise_fwd(const PointwiseCall&, const SmoothL1Options&,
                                          cudaStream_t);
template void launch_pointwise_bwd(const PointwiseCall&, const SmoothL1Options&, cudaStream_t);

}  // namespace fusedloss
