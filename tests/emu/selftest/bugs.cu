// Kernels with one planted mistake each in memory use, barriers or warp masks.
#include "selftest.h"

namespace fusedloss::selftest {
namespace {

__device__ __forceinline__ int64_t global_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// No test against n; k shifts the access.
__global__ void write_past_end_kernel(const __grid_constant__ Arguments a) {
  static_cast<float*>(a.out)[global_index() + a.k] = 1.0f;
}

__global__ void read_past_end_kernel(const __grid_constant__ Arguments a) {
  const float value = static_cast<const float*>(a.in)[global_index() + a.k];
  if (global_index() < a.n) static_cast<float*>(a.out)[global_index()] = value;
}

// k: in floats, so that not every element is 16-byte aligned
__global__ void misaligned_float4_kernel(const __grid_constant__ Arguments a) {
  const auto* in = reinterpret_cast<const float4*>(static_cast<const float*>(a.in) + a.k);
  static_cast<float4*>(a.out)[threadIdx.x] = in[threadIdx.x];
}

struct alignas(16) Four {
  float values[4];
};
struct Pair {  // aligned to 8 bytes only: two accesses on a device, legal at every multiple of 8
  double first, second;
};

template <class T>
__global__ void copy_struct_kernel(const __grid_constant__ Arguments a) {
  const auto* in = reinterpret_cast<const T*>(static_cast<const float*>(a.in) + a.k);
  static_cast<T*>(a.out)[threadIdx.x] = in[threadIdx.x];
}

__global__ void dynamic_shared_past_end_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ float past_end[];
  past_end[threadIdx.x + a.k] = 1.0f;
  __syncthreads();
  static_cast<float*>(a.out)[threadIdx.x] = past_end[threadIdx.x];
}

__global__ void static_shared_past_end_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[64];
  values[threadIdx.x + a.k] = 1.0f;
  __syncthreads();
  static_cast<float*>(a.out)[threadIdx.x] = values[threadIdx.x];
}

// Where n is the largest int.
__global__ void signed_overflow_kernel(const __grid_constant__ Arguments a) {
  static_cast<int*>(a.out)[threadIdx.x] = static_cast<int>(a.n) + static_cast<int>(a.k);
}

__global__ void uninitialized_shared_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[64];
  if (threadIdx.x < a.k) values[threadIdx.x] = 1.0f;
  __syncthreads();
  static_cast<float*>(a.out)[threadIdx.x] = values[threadIdx.x];
}

__global__ void accumulate_kernel(const __grid_constant__ Arguments a) {
  static_cast<float*>(a.out)[global_index()] += 1.0f;
}

__global__ void exit_before_barrier_kernel(const __grid_constant__ Arguments a) {
  if (threadIdx.x >= a.k) return;
  __syncthreads();
  static_cast<float*>(a.out)[threadIdx.x] = 1.0f;
}

__global__ void two_barriers_kernel(const __grid_constant__ Arguments a) {
  if (threadIdx.x < a.k) {
    static_cast<float*>(a.out)[threadIdx.x] = 1.0f;
    __syncthreads();
  } else {
    static_cast<float*>(a.out)[threadIdx.x] = 2.0f;
    __syncthreads();
  }
}

// The full mask in a branch that lanes have left.
__global__ void mask_of_exited_lanes_kernel(const __grid_constant__ Arguments a) {
  if (threadIdx.x >= a.k) return;
  static_cast<int*>(a.out)[threadIdx.x] =
      __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 1);
}

__global__ void mask_without_caller_kernel(const __grid_constant__ Arguments a) {
  static_cast<int*>(a.out)[threadIdx.x] = __any_sync(0x0000ffffu, 1);
}

// Some lanes shuffle, the others wait at a barrier for them.
__global__ void shuffle_against_barrier_kernel(const __grid_constant__ Arguments a) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x < a.k) value = __shfl_xor_sync(0xffffffffu, value, 1);
  __syncthreads();
  static_cast<int*>(a.out)[threadIdx.x] = value;
}

__global__ void float_atomic_kernel(const __grid_constant__ Arguments a) {
  atomicAdd(static_cast<float*>(a.out), 1.0f);
}

__global__ void too_much_static_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[13 * 1024];
  values[threadIdx.x] = 1.0f;
  __syncthreads();
  static_cast<float*>(a.out)[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void trap_kernel(const __grid_constant__ Arguments a) {
  if (threadIdx.x == a.k) __trap();
}

// Hands a pointer to its own local variable to another lane.
__global__ void other_stack_kernel(const __grid_constant__ Arguments a) {
  float local = static_cast<float>(threadIdx.x);
  auto* pointers = static_cast<float**>(a.scratch);
  pointers[threadIdx.x] = &local;
  __syncthreads();
  static_cast<float*>(a.out)[threadIdx.x] = *pointers[(threadIdx.x + 1) % blockDim.x];
  __syncthreads();
}

}  // namespace

Entries planted_bugs() {
  static const Entry entries[] = {
      {"write_past_end", write_past_end_kernel},
      {"read_past_end", read_past_end_kernel},
      {"misaligned_float4", misaligned_float4_kernel},
      {"copy_four", copy_struct_kernel<Four>},
      {"copy_pair", copy_struct_kernel<Pair>},
      {"dynamic_shared_past_end", dynamic_shared_past_end_kernel},
      {"static_shared_past_end", static_shared_past_end_kernel},
      {"signed_overflow", signed_overflow_kernel},
      {"uninitialized_shared", uninitialized_shared_kernel},
      {"accumulate", accumulate_kernel},
      {"exit_before_barrier", exit_before_barrier_kernel},
      {"two_barriers", two_barriers_kernel},
      {"mask_of_exited_lanes", mask_of_exited_lanes_kernel},
      {"mask_without_caller", mask_without_caller_kernel},
      {"shuffle_against_barrier", shuffle_against_barrier_kernel},
      {"float_atomic", float_atomic_kernel},
      {"too_much_static", too_much_static_kernel},
      {"trap", trap_kernel},
      {"other_stack", other_stack_kernel},
  };
  return {std::begin(entries), std::end(entries)};
}

}  // namespace fusedloss::selftest
