// Shuffles, votes, warp reductions and warp barriers, each lane writing what it got.
#include "selftest.h"

namespace fusedloss::selftest {
namespace {

// out[mode * 32 + lane] for the four shuffles of the lane number, of the width k
template <class T>
__global__ void shuffle_kernel(const __grid_constant__ Arguments a) {
  const int lane = threadIdx.x;
  const int width = static_cast<int>(a.k);
  const T value = static_cast<T>(lane) * 3 + 1;
  T* out = static_cast<T*>(a.out);
  out[lane] = __shfl_sync(0xffffffffu, value, lane * 7 + 5, width);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, value, 3, width);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, value, 5, width);
  out[96 + lane] = __shfl_xor_sync(0xffffffffu, value, 6, width);
}

// n: which lanes vote yes. The halves of the warp vote apart.
__global__ void vote_kernel(const __grid_constant__ Arguments a) {
  const unsigned lane = threadIdx.x;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const bool yes = (a.n >> lane & 1) != 0;
  auto* out = static_cast<unsigned*>(a.out);
  out[lane] = __ballot_sync(half, yes);
  out[32 + lane] = static_cast<unsigned>(__any_sync(half, yes));
  out[64 + lane] = static_cast<unsigned>(__all_sync(half, yes));
  out[96 + lane] = __match_any_sync(0xffffffffu, lane / 5);
  out[128 + lane] = __reduce_add_sync(half, lane);
  out[160 + lane] = static_cast<unsigned>(__reduce_min_sync(half, 3 - static_cast<int>(lane)));
  out[192 + lane] = __reduce_max_sync(half, lane);
  out[224 + lane] = __activemask();
}

// A tree over shared memory that relies on warp barriers alone.
__global__ void warp_tree_kernel(const __grid_constant__ Arguments a) {
  __shared__ float values[128];
  const int lane = threadIdx.x % 32;
  float* mine = values + threadIdx.x - lane;
  mine[lane] = static_cast<const float*>(a.in)[threadIdx.x];
  __syncwarp();
  for (int half = 16; half > 0; half /= 2) {
    const float sum = mine[lane] + mine[(lane + half) % 32];
    __syncwarp();
    mine[lane] = sum;
    __syncwarp();
  }
  static_cast<float*>(a.out)[threadIdx.x] = mine[31 - lane];
}

// out[i]: scalar intrinsics of i, as integers
__global__ void scalar_kernel(const __grid_constant__ Arguments a) {
  auto* out = static_cast<int64_t*>(a.out);
  out[0] = __popc(0xf0f0u);
  out[1] = __clz(1);
  out[2] = __ffs(8);
  out[3] = static_cast<int64_t>(__brev(1u));
  out[4] = static_cast<int64_t>(__umulhi(0x80000000u, 6u));
  out[5] = __mulhi(-1, 1);
  out[6] = static_cast<int64_t>(__umul64hi(1ull << 63, 6ull));
  out[7] = __float_as_int(1.0f);
  out[8] = __double_as_longlong(2.0);
  out[9] = static_cast<int64_t>(__int_as_float(0x40400000));
  out[10] = static_cast<int64_t>(__fmaf_rn(2.0f, 3.0f, 4.0f));
  out[11] = min(3, 5) * 10 + max(3, 5);
  out[12] = static_cast<int64_t>(__expf(0.0f) + __logf(1.0f) + rsqrtf(0.25f) + exp2f(3.0f));
  auto* words = static_cast<unsigned*>(a.scratch);
  out[13] = atomicMin(&words[0], 5u) + atomicMax(&words[0], 9u);
  out[14] = atomicAnd(&words[0], 8u) + atomicOr(&words[0], 3u) + atomicXor(&words[0], 1u);
  out[15] = atomicExch(&words[0], 77u) + atomicCAS(&words[0], 77u, 78u);
  out[16] = atomicCAS(&words[0], 77u, 79u);
  auto* wide = static_cast<unsigned long long*>(a.scratch) + 1;
  out[17] = static_cast<int64_t>(atomicAdd(wide, 1ull << 40));
  out[18] = static_cast<int64_t>(*wide);
}

}  // namespace

Entries warp_kernels() {
  static const Entry entries[] = {
      {"shuffle_s32", shuffle_kernel<int>},      {"shuffle_s64", shuffle_kernel<long long>},
      {"shuffle_f32", shuffle_kernel<float>},    {"shuffle_f64", shuffle_kernel<double>},
      {"shuffle_u32", shuffle_kernel<unsigned>}, {"vote", vote_kernel},
      {"warp_tree", warp_tree_kernel},           {"scalar", scalar_kernel},
  };
  return {std::begin(entries), std::end(entries)};
}

}  // namespace fusedloss::selftest
