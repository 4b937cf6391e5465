// Smooth L1 loss, and L1 loss as its case beta = 0: the operators.
#include "../kernels/loss/smooth_l1.h"

#include "pointwise.h"

namespace fusedloss {

using SmoothL1Loss = DenseLoss<SmoothL1Options, double>;

STABLE_TORCH_LIBRARY_FRAGMENT(fusedloss, m) { SmoothL1Loss::define(m, "smooth_l1", "float beta"); }
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CPU, m) {
  SmoothL1Loss::implement<CpuContext>(m, "smooth_l1");
}
#if FUSEDLOSS_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fusedloss, CUDA, m) {
  SmoothL1Loss::implement<CudaContext>(m, "smooth_l1");
}
#endif

}  // namespace fusedloss
