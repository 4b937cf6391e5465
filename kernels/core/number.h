// Element types of the tensors that cross the kernel boundary: a runtime tag, storage types for the
// 16-bit floats, and conversions to and from the type that arithmetic is done in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "macros.h"
#include "math.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace fusedloss {

enum class DType : int32_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kInt64,
  kInt32,
  kInt16,
  kUInt8,
  kInt8,
  kBool
};

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// fp32 arithmetic for half types, fp64 for double.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

FUSEDLOSS_HD float to_float(BFloat16 h) {
  return bit_cast<float>(static_cast<uint32_t>(h.bits) << 16);
}

FUSEDLOSS_HD BFloat16 to_bfloat16(float f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(f));
  return {rounded};
#else
  const uint32_t bits = bit_cast<uint32_t>(f);
  const uint32_t rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
#endif
}

// Bit arithmetic rather than a table or F16C, so that every compiler vectorises it.
FUSEDLOSS_HD float to_float(Float16 h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(h.bits & 0x7fffu) << 13;
  // Scaling by 2^112 moves the exponent and normalises subnormals; it leaves Inf and NaN finite, so
  // their exponent is set by hand.
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(body) * 5.192296858534828e33f);
  const uint32_t special = body | 0x7f800000u;
  return bit_cast<float>(sign | (body >= 0x0f800000u ? special : scaled));
#endif
}

FUSEDLOSS_HD Float16 to_float16(float f) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(f))};
#else
  const uint32_t bits = bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t body = bits & 0x7fffffffu;
  // Subnormal halves: adding 0.5 lets the float adder round at the half's last place.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(body) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (body - 0x38000000u + 0xfffu + ((body >> 13) & 1u)) >> 13;
  const uint32_t small = body < 0x38800000u ? subnormal : normal;
  const uint32_t special = body > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return {static_cast<uint16_t>(sign | (body >= 0x477ff000u ? special : small))};
#endif
}

// to<T>(x): any element as arithmetic type T; from<T>(x): an arithmetic value as element type T.
template <class T, class From>
FUSEDLOSS_HD T to(From x) {
  return static_cast<T>(x);
}
template <class T>
FUSEDLOSS_HD T to(Float16 x) {
  return static_cast<T>(to_float(x));
}
template <class T>
FUSEDLOSS_HD T to(BFloat16 x) {
  return static_cast<T>(to_float(x));
}

template <class T>
struct FromArithmetic {
  template <class A>
  FUSEDLOSS_HD static T convert(A x) {
    return static_cast<T>(x);
  }
};
template <>
struct FromArithmetic<Float16> {
  template <class A>
  FUSEDLOSS_HD static Float16 convert(A x) {
    return to_float16(static_cast<float>(x));
  }
};
template <>
struct FromArithmetic<BFloat16> {
  template <class A>
  FUSEDLOSS_HD static BFloat16 convert(A x) {
    return to_bfloat16(static_cast<float>(x));
  }
};
template <class T, class A>
FUSEDLOSS_HD T from(A x) {
  return FromArithmetic<T>::convert(x);
}

// One storage type as another.
template <class To, class From>
FUSEDLOSS_HD To cast(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<From, double>)
    return from<To>(x);
  else
    return from<To>(to<Accumulator<To>>(x));
}

// Calls f with a value of the type that logits of this dtype are stored in. A build whose programs
// use no others has the code of float and bfloat16 alone, which takes half the time to compile.
template <class F>
inline auto with_logit_type(DType dtype, const F& f) {
  switch (dtype) {
#if defined(FUSEDLOSS_TWO_LOGIT_TYPES)
    case DType::kFloat64:
    case DType::kFloat16:
      std::abort();
#else
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat16:
      return f(Float16{});
#endif
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
      return 2;
    default:
      return 1;
  }
}

}  // namespace fusedloss
