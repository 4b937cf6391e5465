// Atomic read-modify-write operations of kernels. One thread runs at a time, so plain code does;
// what matters is that they are checked, counted, and known as atomic.
#include <cstring>

#include "state.h"

namespace emu::internal {

Region* on_access(uintptr_t address, size_t size, bool is_write, bool is_atomic, void* pc);

namespace {

using abi::AtomicOp;
using abi::AtomicType;

template <class T>
T combine_integers(AtomicOp op, T old, T operand, T compare) {
  switch (op) {
    case AtomicOp::kMin:
      return operand < old ? operand : old;
    case AtomicOp::kMax:
      return operand > old ? operand : old;
    case AtomicOp::kAnd:
      return old & operand;
    case AtomicOp::kOr:
      return old | operand;
    case AtomicOp::kXor:
      return old ^ operand;
    case AtomicOp::kExch:
      return operand;
    case AtomicOp::kCas:
      return old == compare ? operand : old;
    case AtomicOp::kInc:
      return old >= operand ? 0 : old + 1;
    case AtomicOp::kDec:
      return old == 0 || old > operand ? operand : old - 1;
    default: {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(operand));
    }
  }
}

template <class T>
T combine(AtomicOp op, T old, T operand, T compare) {
  if constexpr (std::is_integral_v<T>) {
    return combine_integers(op, old, operand, compare);
  } else {
    return op == AtomicOp::kExch ? operand : old + operand;
  }
}

template <class T>
uint64_t apply(AtomicOp op, void* address, uint64_t operand_bits, uint64_t compare_bits) {
  T old, operand, compare;
  std::memcpy(&old, address, sizeof(T));
  std::memcpy(&operand, &operand_bits, sizeof(T));
  std::memcpy(&compare, &compare_bits, sizeof(T));
  const T now = combine(op, old, operand, compare);
  std::memcpy(address, &now, sizeof(T));
  uint64_t result = 0;
  std::memcpy(&result, &old, sizeof(T));
  return result;
}

}  // namespace
}  // namespace emu::internal

namespace emu::abi {

uint64_t atomic(AtomicOp op, AtomicType type, void* address, uint64_t operand, uint64_t compare) {
  using internal::apply;
  using internal::g;
  const auto place = reinterpret_cast<uintptr_t>(address);
  const bool wide =
      type == AtomicType::kU64 || type == AtomicType::kS64 || type == AtomicType::kF64;
  internal::Region* region =
      internal::on_access(place, wide ? 8 : 4, true, true, __builtin_return_address(0));
  ++g.totals->atomics[static_cast<int>(op)][static_cast<int>(type)];
  if (region != nullptr && region->space == internal::Space::kGlobal) internal::note_atomic(place);
  switch (type) {
    case AtomicType::kS32:
      return apply<int32_t>(op, address, operand, compare);
    case AtomicType::kU32:
      return apply<uint32_t>(op, address, operand, compare);
    case AtomicType::kU64:
      return apply<uint64_t>(op, address, operand, compare);
    case AtomicType::kS64:
      return apply<int64_t>(op, address, operand, compare);
    case AtomicType::kF32:
      return apply<float>(op, address, operand, compare);
    default:
      return apply<double>(op, address, operand, compare);
  }
}

}  // namespace emu::abi
