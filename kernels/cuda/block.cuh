// Reductions over a thread block: fixed order, so the same bits every time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fusedloss::cuda {

constexpr int kWarp = 32;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// Sum over the block; the result is valid in thread 0. `slots` is shared memory of one T per warp
// and must not be in use: the caller puts a barrier between two sums that share it.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* slots) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) slots[warp] = value;
  __syncthreads();
  if (warp == 0) value = warp_sum(lane < warps ? slots[lane] : T(0));
  return value;
}

}  // namespace fusedloss::cuda
