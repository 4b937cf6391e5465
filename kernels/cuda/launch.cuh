// The one way kernels are launched, and the check of every CUDA call's status.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace fusedloss::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("fusedloss: ") + what +
                           " failed: " + cudaGetErrorString(status));
}

struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes = 0;  // dynamic; more than 48 KB would need the kernel's attribute raised
};

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), Grid grid, cudaStream_t stream,
            Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name);
}

}  // namespace fusedloss::cuda
