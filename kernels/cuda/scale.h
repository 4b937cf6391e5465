// Scaling of a finished gradient on CUDA: entry point for the binding.
#pragma once

#include <cuda_runtime.h>

#include "../core/scale.h"

namespace fusedloss {

void launch_scale_gradient(const ScaleCall& call, cudaStream_t stream);

}  // namespace fusedloss
