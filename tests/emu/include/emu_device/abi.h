// What the device headers call in the emulator's runtime. Everything here is defined out of line,
// in code that is not instrumented, so none of it shows up in the counters.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vector_types.h"

struct cudaLaunchConfig_st;

namespace emu::abi {

enum class Barrier : int { kPlain, kCount, kAnd, kOr };
enum class Collective : int {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kMatchAny,
  kReduceAddU32,
  kReduceMinS32,
  kReduceMaxS32,
  kReduceMinU32,
  kReduceMaxU32,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};
enum class AtomicOp : int { kAdd, kMin, kMax, kAnd, kOr, kXor, kExch, kCas, kInc, kDec };
enum class AtomicType : int { kS32, kU32, kU64, kS64, kF32, kF64 };

// `file` and `line` name the call in the source: a compiler may duplicate a call, so that a return
// address does not tell two barriers apart.
int barrier(Barrier kind, int predicate, const char* file, int line);
uint64_t collective(Collective op, unsigned mask, uint64_t value, int argument, int width,
                    const char* file, int line);
unsigned active_mask();
void fence();
uint64_t atomic(AtomicOp op, AtomicType type, void* address, uint64_t operand, uint64_t compare);
[[noreturn]] void trap(const char* what, const char* file, int line);

int launch(const cudaLaunchConfig_st& config, const void* kernel, void (*run_thread)(void*),
           void* arguments, size_t argument_bytes);

}  // namespace emu::abi
