// Correct kernels that use what loss kernels use; the tests check their results and counters.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "selftest.h"

namespace fusedloss::selftest {
namespace {

__device__ __forceinline__ int64_t global_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ const float* input(const Arguments& a) {
  return static_cast<const float*>(a.in);
}

__device__ __forceinline__ float* output(const Arguments& a) { return static_cast<float*>(a.out); }

// out[i] = 2 in[i * k], grid-stride
__global__ void __launch_bounds__(1024) stride_kernel(const __grid_constant__ Arguments a) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = global_index(); i < a.n; i += step) {
    output(a)[i] = 2.0f * __ldg(&input(a)[i * a.k]);
  }
}

__device__ float warp_sum(float value) {
  for (int offset = warpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  return value;
}

// The sum over the block, in its first thread.
__device__ float block_sum(float value) {
  __shared__ float sums[32];
  const int lane = threadIdx.x % warpSize;
  const int warp = threadIdx.x / warpSize;
  value = warp_sum(value);
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  if (warp > 0) return 0.0f;
  return warp_sum(lane < blockDim.x / warpSize ? sums[lane] : 0.0f);
}

__global__ void block_sum_kernel(const __grid_constant__ Arguments a) {
  const int64_t i = global_index();
  const float sum = block_sum(i < a.n ? input(a)[i] : 0.0f);
  if (threadIdx.x == 0) output(a)[blockIdx.x] = sum;
}

// scratch: an unsigned ticket, 16 bytes apart from one partial sum per block.
__global__ void last_block_sum_kernel(const __grid_constant__ Arguments a) {
  auto* ticket = static_cast<unsigned*>(a.scratch);
  float* partials = static_cast<float*>(a.scratch) + 4;
  __shared__ bool is_last;
  const int64_t i = global_index();
  const float sum = block_sum(i < a.n ? input(a)[i] : 0.0f);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  float total = 0.0f;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) total += __ldcg(&partials[b]);
  __syncthreads();
  total = block_sum(total);
  if (threadIdx.x == 0) output(a)[0] = total;
}

// The same, but every thread writes, fences on its own, and a barrier precedes the atomic.
__global__ void last_block_copy_kernel(const __grid_constant__ Arguments a) {
  auto* ticket = static_cast<unsigned*>(a.scratch);
  float* partials = static_cast<float*>(a.scratch) + 4;
  __shared__ bool is_last;
  const int64_t i = global_index();
  if (i < a.n) {
    partials[i] = input(a)[i];
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  for (int64_t j = threadIdx.x; j < a.n; j += blockDim.x) output(a)[j] = partials[a.n - 1 - j];
  if (threadIdx.x == 0) *ticket = 0;
}

// out[n, k] = transpose of in[k, n], tiles of 32 x 32 by blocks of 32 x 8
template <class T>
__global__ void transpose_kernel(const __grid_constant__ Arguments a) {
  __shared__ T tile[32][33];
  const T* in = static_cast<const T*>(a.in);
  T* out = static_cast<T*>(a.out);
  const int64_t x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += blockDim.y)
    tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * a.n + x];
  __syncthreads();
  const int64_t tx = blockIdx.y * 32 + threadIdx.x, ty = blockIdx.x * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += blockDim.y) {
    out[(ty + j) * a.k + tx] = tile[threadIdx.x][threadIdx.y + j];
  }
}

// Each block reverses its part, through dynamic shared memory.
__global__ void reverse_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ float reversed[];
  reversed[blockDim.x - 1 - threadIdx.x] = input(a)[global_index()];
  __syncthreads();
  output(a)[global_index()] = reversed[threadIdx.x];
}

// The same under another name and type: doubles in the middle of bytes.
__global__ void reverse_bytes_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) unsigned char storage[];
  auto* values = reinterpret_cast<double*>(storage + 16);
  values[blockDim.x - 1 - threadIdx.x] = input(a)[global_index()];
  __syncthreads();
  output(a)[global_index()] = static_cast<float>(values[threadIdx.x]);
}

template <class T>
struct alignas(16) Pack {
  T values[16 / sizeof(T)];
};

// out = 2 in in a 16-bit type, eight at a time
template <class T>
__global__ void scale_pack_kernel(const __grid_constant__ Arguments a) {
  const int64_t i = global_index();
  if (i >= a.n / 8) return;
  Pack<T> pack = __ldg(&static_cast<const Pack<T>*>(a.in)[i]);
  for (T& value : pack.values) value = T(2.0f * static_cast<float>(value));
  static_cast<Pack<T>*>(a.out)[i] = pack;
}

__global__ void scale_half2_kernel(const __grid_constant__ Arguments a) {
  const int64_t i = global_index();
  if (i >= a.n / 2) return;
  const float2 v = __half22float2(static_cast<const __half2*>(a.in)[i]);
  static_cast<__half2*>(a.out)[i] = __float22half2_rn(make_float2(2.0f * v.x, 2.0f * v.y));
}

__global__ void copy_float4_kernel(const __grid_constant__ Arguments a) {
  const int64_t i = global_index();
  if (i < a.n / 4) __stcs(&static_cast<float4*>(a.out)[i], static_cast<const float4*>(a.in)[i]);
}

struct MaxAt {
  float value;
  int64_t at;
};

// A user's struct in shared memory of a function template, reduced by a tree.
template <int kThreads>
__global__ void arg_max_kernel(const __grid_constant__ Arguments a) {
  __shared__ MaxAt best[kThreads];
  best[threadIdx.x] = MaxAt{input(a)[threadIdx.x], threadIdx.x};
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    const MaxAt other = best[threadIdx.x + half];
    if (other.value > best[threadIdx.x].value) best[threadIdx.x] = other;
  }
  if (threadIdx.x == 0) output(a)[0] = static_cast<float>(best[0].at);
}

__constant__ float coefficients[4] = {1.0f, 10.0f, 100.0f, 1000.0f};
constexpr float kOffsets[4] = {0.5f, 0.25f, 0.125f, 0.0625f};

__global__ void constants_kernel(const __grid_constant__ Arguments a) {
  const int64_t i = global_index();
  const float* offset = a.k != 0 ? kOffsets : coefficients;
  if (i < a.n) output(a)[i] = coefficients[i % 4] + offset[i % 4];
}

// out[i]: how many threads of the block have input above zero; then all; then any
__global__ void counted_barrier_kernel(const __grid_constant__ Arguments a) {
  const int64_t i = global_index();
  const bool positive = input(a)[i] > 0.0f;
  const int count = __syncthreads_count(positive);
  const int all = __syncthreads_and(positive);
  const int any = __syncthreads_or(positive);
  output(a)[i] = static_cast<float>(count * 4 + (all != 0) * 2 + (any != 0));
}

// A histogram with integer atomics in shared and global memory.
__global__ void histogram_kernel(const __grid_constant__ Arguments a) {
  __shared__ unsigned bins[16];
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  const int64_t i = global_index();
  if (i < a.n) atomicAdd(&bins[static_cast<unsigned>(input(a)[i]) % 16], 1u);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&static_cast<unsigned*>(a.out)[threadIdx.x], bins[threadIdx.x]);
}

}  // namespace

Entries correct_kernels() {
  static const Entry entries[] = {
      {"stride", stride_kernel},
      {"block_sum", block_sum_kernel},
      {"last_block_sum", last_block_sum_kernel},
      {"last_block_copy", last_block_copy_kernel},
      {"transpose_f32", transpose_kernel<float>},
      {"transpose_u8", transpose_kernel<unsigned char>},
      {"reverse", reverse_kernel},
      {"reverse_bytes", reverse_bytes_kernel},
      {"scale_half8", scale_pack_kernel<__half>},
      {"scale_bfloat8", scale_pack_kernel<__nv_bfloat16>},
      {"scale_half2", scale_half2_kernel},
      {"copy_float4", copy_float4_kernel},
      {"arg_max", arg_max_kernel<128>},
      {"constants", constants_kernel},
      {"counted_barrier", counted_barrier_kernel},
      {"histogram", histogram_kernel},
  };
  return {std::begin(entries), std::end(entries)};
}

cudaError_t launch(Kernel kernel, dim3 grid, dim3 block, size_t dynamic_bytes,
                   const Arguments& arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_bytes;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

cudaError_t allow_dynamic_bytes(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace fusedloss::selftest
