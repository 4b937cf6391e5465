// Where a call runs: torch's thread pool, or the current CUDA stream of the tensors' device.
// Launchers are overloaded on the executor, so that one binding serves both.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../kernels/cpu/threads.h"

#if FUSEDLOSS_WITH_CUDA
#include <cuda_runtime.h>
#endif

namespace fusedloss {

class CpuContext {
 public:
  explicit CpuContext(const torch::stable::Tensor&) {}
  cpu::Threads executor() const {
    return {[](int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
      if (count <= grain) {
        if (count > 0) body(0, count, context);
        return;
      }
      STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
    }};
  }
};

#if FUSEDLOSS_WITH_CUDA
class CudaContext {
 public:
  explicit CudaContext(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), device_(tensor.get_device_index()) {}
  cudaStream_t executor() const {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
};
#endif

}  // namespace fusedloss
