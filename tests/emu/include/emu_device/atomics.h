// Atomic read-modify-write functions. The runtime carries them out, counts them by kind (those on
// floating-point types apart) and takes them as atomic in its race checks.
#pragma once

#include "warp.h"

#define EMU_ATOMIC(name, op, type, tag)                                                   \
  EMU_DEVICE type name(type* address, type operand) {                                     \
    return emu::abi::from_bits<type>(emu::abi::atomic(emu::abi::AtomicOp::op,             \
                                                      emu::abi::AtomicType::tag, address, \
                                                      emu::abi::to_bits(operand), 0));    \
  }
#define EMU_ATOMIC_INTEGERS(name, op)      \
  EMU_ATOMIC(name, op, int, kS32)          \
  EMU_ATOMIC(name, op, unsigned int, kU32) \
  EMU_ATOMIC(name, op, unsigned long long, kU64)
EMU_ATOMIC_INTEGERS(atomicAdd, kAdd)
EMU_ATOMIC_INTEGERS(atomicMin, kMin)
EMU_ATOMIC_INTEGERS(atomicMax, kMax)
EMU_ATOMIC_INTEGERS(atomicAnd, kAnd)
EMU_ATOMIC_INTEGERS(atomicOr, kOr)
EMU_ATOMIC_INTEGERS(atomicXor, kXor)
EMU_ATOMIC_INTEGERS(atomicExch, kExch)
EMU_ATOMIC(atomicMin, kMin, long long, kS64)
EMU_ATOMIC(atomicMax, kMax, long long, kS64)
EMU_ATOMIC(atomicInc, kInc, unsigned int, kU32)
EMU_ATOMIC(atomicDec, kDec, unsigned int, kU32)
EMU_ATOMIC(atomicAdd, kAdd, float, kF32)
EMU_ATOMIC(atomicAdd, kAdd, double, kF64)
EMU_ATOMIC(atomicExch, kExch, float, kF32)
#undef EMU_ATOMIC_INTEGERS
#undef EMU_ATOMIC

EMU_DEVICE int atomicSub(int* address, int operand) { return atomicAdd(address, -operand); }
EMU_DEVICE unsigned int atomicSub(unsigned int* address, unsigned int operand) {
  return atomicAdd(address, 0u - operand);
}

#define EMU_ATOMIC_CAS(type, tag)                                                      \
  EMU_DEVICE type atomicCAS(type* address, type compare, type operand) {               \
    return emu::abi::from_bits<type>(                                                  \
        emu::abi::atomic(emu::abi::AtomicOp::kCas, emu::abi::AtomicType::tag, address, \
                         emu::abi::to_bits(operand), emu::abi::to_bits(compare)));     \
  }
EMU_ATOMIC_CAS(int, kS32)
EMU_ATOMIC_CAS(unsigned int, kU32)
EMU_ATOMIC_CAS(unsigned long long, kU64)
#undef EMU_ATOMIC_CAS
