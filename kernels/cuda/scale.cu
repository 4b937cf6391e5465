// Scaling of a finished gradient on CUDA: one launch; where the factor is 1 and the result goes
// where the gradient lies, the blocks leave at once and no memory moves. The decision is the
// device's. So blocks are few and take several pieces each: a block for every 4 KiB would cost a
// gradient of 1 GiB 0.2 ms to do nothing (on an H200).
#include "scale.h"

#include "launch.cuh"
#include "vec_io.cuh"

namespace fusedloss {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;

// Dense gradient and result, one factor for all.
template <int V, class X>
__global__ void __launch_bounds__(kThreads)
    scale_linear_kernel(const __grid_constant__ ScaleCall call, int64_t numel) {
  using T = Accumulator<X>;
  const T factor =
      *static_cast<const T*>(call.grad_output.data) * *static_cast<const T*>(call.scale);
  if (call.out.data == call.grad.data && factor == T(1)) return;
  const X* grad = static_cast<const X*>(call.grad.data);
  X* out = static_cast<X*>(call.out.data);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * V;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  for (; first + V <= numel; first += step) {
    X values[V];
    load_vector_coherent<V>(grad + first, values);  // out may be the same memory
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = from<X>(to<T>(values[j]) * factor);
    store_vector<V>(values, out + first);
  }
  for (int64_t i = first; i < numel && i < first + V; ++i)
    out[i] = from<X>(to<T>(grad[i]) * factor);
}

template <class X>
__global__ void __launch_bounds__(kThreads)
    scale_strided_kernel(const __grid_constant__ ScaleCall call, int64_t numel) {
  using T = Accumulator<X>;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t rest = i, from_at = 0, factor_at = 0, to_at = 0;
    for (int d = call.shape.ndim - 1; d >= 0; --d) {
      const int64_t above = rest / call.shape.sizes[d];
      const int64_t index = rest - above * call.shape.sizes[d];
      rest = above;
      from_at += index * call.grad.strides[d];
      factor_at += index * call.grad_output.strides[d];
      to_at += index * call.out.strides[d];
    }
    const T factor = static_cast<const T*>(call.grad_output.data)[factor_at] *
                     *static_cast<const T*>(call.scale);
    const T grad = to<T>(static_cast<const X*>(call.grad.data)[from_at]);
    static_cast<X*>(call.out.data)[to_at] = from<X>(grad * factor);
  }
}

template <class X>
void scale_gradient(ScaleCall call, cudaStream_t stream) {
  TensorView* views[] = {&call.out, &call.grad, &call.grad_output};
  simplify(call.shape, views, 3);
  const int64_t numel = call.shape.numel();
  if (numel == 0) return;
  constexpr int V = kVectorBytes / static_cast<int>(sizeof(X));
  const auto aligned = [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
  };
  const bool linear = is_linear(call.shape, call.grad) && is_linear(call.shape, call.out) &&
                      is_constant(call.shape, call.grad_output) && aligned(call.grad.data) &&
                      aligned(call.out.data);
  const int64_t per_block = linear ? int64_t{kThreads} * V : kThreads;
  const int64_t blocks = std::min((numel + per_block - 1) / per_block, kMaxBlocks);
  launch("scale kernel", linear ? scale_linear_kernel<V, X> : scale_strided_kernel<X>,
         {blocks, kThreads}, stream, call, numel);
}

}  // namespace
}  // namespace cuda

void launch_scale_gradient(const ScaleCall& call, cudaStream_t stream) {
  with_logit_type(call.grad.dtype,
                  [&](auto zero) { cuda::scale_gradient<decltype(zero)>(call, stream); });
}

}  // namespace fusedloss
