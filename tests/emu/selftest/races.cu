// Kernels with one planted data race each.
#include "selftest.h"

namespace fusedloss::selftest {
namespace {

__device__ __forceinline__ int64_t global_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Reads what the neighbour writes, with no barrier between.
__global__ void shared_race_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[256];
  values[threadIdx.x] = static_cast<const float*>(a.in)[threadIdx.x];
  static_cast<float*>(a.out)[threadIdx.x] = values[(threadIdx.x + a.k) % blockDim.x];
}

// A tree that lacks the barrier between its levels.
__global__ void missing_barrier_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[256];
  values[threadIdx.x] = static_cast<const float*>(a.in)[threadIdx.x];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
  }
  if (threadIdx.x == 0) static_cast<float*>(a.out)[0] = values[0];
}

// Two uses of one buffer: the second may overwrite what slow threads have yet to read.
__global__ void missing_second_barrier_kernel(const __grid_constant__ Arguments a) {
  __shared__ float value;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) value = static_cast<const float*>(a.in)[round];
    __syncthreads();
    static_cast<float*>(a.out)[round * blockDim.x + threadIdx.x] = value;
  }
}

// Right for whole warps only with __syncwarp().
__global__ void missing_warp_barrier_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[32];
  values[threadIdx.x] = static_cast<const float*>(a.in)[threadIdx.x];
  if (a.k != 0) __syncwarp();
  static_cast<float*>(a.out)[threadIdx.x] = values[31 - threadIdx.x];
}

// Threads of one block write one place.
__global__ void global_race_kernel(const __grid_constant__ Arguments a) {
  static_cast<float*>(a.out)[threadIdx.x / 2] = 1.0f;
}

// Bytes next to each other are no race, the same byte is (k = 0).
__global__ void byte_race_kernel(const __grid_constant__ Arguments a) {
  static_cast<unsigned char*>(a.out)[a.k != 0 ? threadIdx.x : threadIdx.x / 2] = 1;
}

// Blocks accumulate into one place without atomics.
__global__ void block_race_kernel(const __grid_constant__ Arguments a) {
  if (threadIdx.x == 0) static_cast<float*>(a.out)[0] += 1.0f;
}

// In place, while the next block reads its neighbour's first element.
__global__ void in_place_stencil_kernel(const __grid_constant__ Arguments a) {
  float* values = static_cast<float*>(a.out);
  const int64_t i = global_index();
  const float next = i + 1 < a.n ? values[i + 1] : 0.0f;
  const float own = values[i];
  __syncthreads();
  values[i] = own + next;
}

// The last-block pattern with the fence forgotten (k = 0) or the barrier before it (k = 1).
__global__ void last_block_bug_kernel(const __grid_constant__ Arguments a) {
  auto* ticket = static_cast<unsigned*>(a.scratch);
  float* partials = static_cast<float*>(a.scratch) + 4;
  __shared__ bool is_last;
  partials[global_index()] = 1.0f;
  if (a.k == 0) __syncthreads();
  if (threadIdx.x == 0) {
    if (a.k != 0) __threadfence();
    is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last) {
    float total = 0.0f;
    for (unsigned i = threadIdx.x; i < gridDim.x * blockDim.x; i += blockDim.x)
      total += partials[i];
    static_cast<float*>(a.out)[threadIdx.x] = total;
  }
}

// A plain read beside atomic updates.
__global__ void atomic_and_plain_kernel(const __grid_constant__ Arguments a) {
  auto* counter = static_cast<unsigned*>(a.scratch);
  atomicAdd(counter, 1u);
  static_cast<float*>(a.out)[threadIdx.x] = static_cast<float>(*counter);
}

}  // namespace

Entries planted_races() {
  static const Entry entries[] = {
      {"shared_race", shared_race_kernel},
      {"missing_barrier", missing_barrier_kernel},
      {"missing_second_barrier", missing_second_barrier_kernel},
      {"missing_warp_barrier", missing_warp_barrier_kernel},
      {"global_race", global_race_kernel},
      {"byte_race", byte_race_kernel},
      {"block_race", block_race_kernel},
      {"in_place_stencil", in_place_stencil_kernel},
      {"last_block_bug", last_block_bug_kernel},
      {"atomic_and_plain", atomic_and_plain_kernel},
  };
  return {std::begin(entries), std::end(entries)};
}

}  // namespace fusedloss::selftest
