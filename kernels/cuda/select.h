// Selection over marks on CUDA: sizes that the host needs before a launch.
#pragma once

#include <cuda_runtime.h>

#include "../core/mining.h"

namespace fusedloss {

int64_t select_workspace_bytes(const SelectCall& call, DType accumulator, cudaStream_t);

}  // namespace fusedloss
