// Block barriers, warp shuffles, votes and reductions, fences.
#pragma once

#include <type_traits>

#include "abi.h"

#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// The runtime changes them as it switches threads; to a thread they are constants, and the
// instrumentation passes reads of constants over.
extern const uint3 threadIdx __asm__("emu_thread_idx") __attribute__((visibility("hidden")));
extern const uint3 blockIdx __asm__("emu_block_idx") __attribute__((visibility("hidden")));
extern const uint3 blockDim __asm__("emu_block_dim") __attribute__((visibility("hidden")));
extern const uint3 gridDim __asm__("emu_grid_dim") __attribute__((visibility("hidden")));
static constexpr int warpSize = 32;

EMU_DEVICE void __syncthreads(EMU_HERE) {
  emu::abi::barrier(emu::abi::Barrier::kPlain, 0, file, line);
}
EMU_DEVICE int __syncthreads_count(int predicate, EMU_HERE) {
  return emu::abi::barrier(emu::abi::Barrier::kCount, predicate, file, line);
}
EMU_DEVICE int __syncthreads_and(int predicate, EMU_HERE) {
  return emu::abi::barrier(emu::abi::Barrier::kAnd, predicate, file, line);
}
EMU_DEVICE int __syncthreads_or(int predicate, EMU_HERE) {
  return emu::abi::barrier(emu::abi::Barrier::kOr, predicate, file, line);
}

EMU_DEVICE void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
  emu::abi::collective(emu::abi::Collective::kSync, mask, 0, 0, 32, file, line);
}
EMU_DEVICE void __threadfence() { emu::abi::fence(); }
EMU_DEVICE void __threadfence_system() { emu::abi::fence(); }
EMU_DEVICE void __threadfence_block() {}
EMU_DEVICE unsigned __activemask() { return emu::abi::active_mask(); }

namespace emu::abi {

template <class T>
EMU_DEVICE uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
EMU_DEVICE T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emu::abi

#define EMU_SHUFFLE(name, op, argument_type)                                                    \
  template <class T>                                                                            \
  EMU_DEVICE T name(unsigned mask, T value, argument_type argument, int width = 32, EMU_HERE) { \
    return emu::abi::from_bits<T>(                                                              \
        emu::abi::collective(emu::abi::Collective::op, mask, emu::abi::to_bits(value),          \
                             static_cast<int>(argument), width, file, line));                   \
  }
EMU_SHUFFLE(__shfl_sync, kShuffle, int)
EMU_SHUFFLE(__shfl_up_sync, kShuffleUp, unsigned)
EMU_SHUFFLE(__shfl_down_sync, kShuffleDown, unsigned)
EMU_SHUFFLE(__shfl_xor_sync, kShuffleXor, int)
#undef EMU_SHUFFLE

EMU_DEVICE unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE) {
  return static_cast<unsigned>(
      emu::abi::collective(emu::abi::Collective::kBallot, mask, predicate != 0, 0, 32, file, line));
}
EMU_DEVICE int __any_sync(unsigned mask, int predicate, EMU_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
EMU_DEVICE int __all_sync(unsigned mask, int predicate, EMU_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
template <class T>
EMU_DEVICE unsigned __match_any_sync(unsigned mask, T value, EMU_HERE) {
  return static_cast<unsigned>(emu::abi::collective(emu::abi::Collective::kMatchAny, mask,
                                                    emu::abi::to_bits(value), 0, 32, file, line));
}

#define EMU_REDUCE(name, op, type)                                                               \
  EMU_DEVICE type name(unsigned mask, type value, EMU_HERE) {                                    \
    return static_cast<type>(emu::abi::collective(emu::abi::Collective::op, mask,                \
                                                  emu::abi::to_bits(value), 0, 32, file, line)); \
  }
EMU_REDUCE(__reduce_add_sync, kReduceAddU32, unsigned)
EMU_REDUCE(__reduce_add_sync, kReduceAddU32, int)
EMU_REDUCE(__reduce_min_sync, kReduceMinU32, unsigned)
EMU_REDUCE(__reduce_min_sync, kReduceMinS32, int)
EMU_REDUCE(__reduce_max_sync, kReduceMaxU32, unsigned)
EMU_REDUCE(__reduce_max_sync, kReduceMaxS32, int)
EMU_REDUCE(__reduce_and_sync, kReduceAnd, unsigned)
EMU_REDUCE(__reduce_or_sync, kReduceOr, unsigned)
EMU_REDUCE(__reduce_xor_sync, kReduceXor, unsigned)
#undef EMU_REDUCE

#define __trap() (::emu::abi::trap("__trap()", __FILE__, __LINE__))
