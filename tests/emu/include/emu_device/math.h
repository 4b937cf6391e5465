// Scalar device intrinsics: cached loads and stores, bit operations, bit casts, rounding
// conversions, approximate math (exact here), min and max.
#pragma once

#include <cmath>
#include <cstdlib>

#include "warp.h"

// A cached load or store is a plain copy of the type, so the instrumentation sees one access as
// wide as the type.
#define EMU_LOAD(name)                  \
  template <class T>                    \
  EMU_DEVICE T name(const T* address) { \
    return *address;                    \
  }
#define EMU_STORE(name)                       \
  template <class T>                          \
  EMU_DEVICE void name(T* address, T value) { \
    *address = value;                         \
  }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldcv)
EMU_LOAD(__ldlu)
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_LOAD
#undef EMU_STORE

EMU_DEVICE int __popc(unsigned v) { return __builtin_popcount(v); }
EMU_DEVICE int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
EMU_DEVICE int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
EMU_DEVICE int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
EMU_DEVICE int __ffs(int v) { return __builtin_ffs(v); }
EMU_DEVICE int __ffsll(long long v) { return __builtin_ffsll(v); }
EMU_DEVICE unsigned __brev(unsigned v) {
  v = ((v >> 1) & 0x55555555u) | ((v & 0x55555555u) << 1);
  v = ((v >> 2) & 0x33333333u) | ((v & 0x33333333u) << 2);
  v = ((v >> 4) & 0x0f0f0f0fu) | ((v & 0x0f0f0f0fu) << 4);
  return __builtin_bswap32(v);
}
EMU_DEVICE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
EMU_DEVICE int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<int64_t>(a) * b) >> 32);
}
EMU_DEVICE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
EMU_DEVICE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (static_cast<uint64_t>(b) << 32) | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = (selector >> (4 * i)) & 0xfu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7u))) & 0xffu;
    if ((pick & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}

EMU_DEVICE int __float_as_int(float v) { return __builtin_bit_cast(int, v); }
EMU_DEVICE unsigned __float_as_uint(float v) { return __builtin_bit_cast(unsigned, v); }
EMU_DEVICE float __int_as_float(int v) { return __builtin_bit_cast(float, v); }
EMU_DEVICE float __uint_as_float(unsigned v) { return __builtin_bit_cast(float, v); }
EMU_DEVICE long long __double_as_longlong(double v) { return __builtin_bit_cast(long long, v); }
EMU_DEVICE double __longlong_as_double(long long v) { return __builtin_bit_cast(double, v); }

EMU_DEVICE int __float2int_rn(float v) { return static_cast<int>(nearbyintf(v)); }
EMU_DEVICE int __float2int_rz(float v) { return static_cast<int>(v); }
EMU_DEVICE int __float2int_rd(float v) { return static_cast<int>(floorf(v)); }
EMU_DEVICE int __float2int_ru(float v) { return static_cast<int>(ceilf(v)); }
EMU_DEVICE float __int2float_rn(int v) { return static_cast<float>(v); }
EMU_DEVICE float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
EMU_DEVICE float __double2float_rn(double v) { return static_cast<float>(v); }

EMU_DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_DEVICE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
EMU_DEVICE float __fadd_rn(float a, float b) { return a + b; }
EMU_DEVICE float __fsub_rn(float a, float b) { return a - b; }
EMU_DEVICE float __fmul_rn(float a, float b) { return a * b; }
EMU_DEVICE float __fdiv_rn(float a, float b) { return a / b; }
EMU_DEVICE float __frcp_rn(float a) { return 1.0f / a; }
EMU_DEVICE float __fsqrt_rn(float a) { return sqrtf(a); }
EMU_DEVICE double __dadd_rn(double a, double b) { return a + b; }
EMU_DEVICE double __dmul_rn(double a, double b) { return a * b; }
// The C library keeps these names for itself, so they can not be functions of ours.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
EMU_DEVICE float __fdividef(float a, float b) { return a / b; }
EMU_DEVICE float fdividef(float a, float b) { return a / b; }
EMU_DEVICE float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
EMU_DEVICE float rsqrtf(float a) { return 1.0f / sqrtf(a); }
EMU_DEVICE double rsqrt(double a) { return 1.0 / sqrt(a); }

// CUDA puts these in the global namespace; a NaN loses against a number, as in fmin and fmax.
#define EMU_MIN_MAX(type)                                                 \
  EMU_DEVICE constexpr type min(type a, type b) { return b < a ? b : a; } \
  EMU_DEVICE constexpr type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned int)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
EMU_DEVICE float min(float a, float b) { return fminf(a, b); }
EMU_DEVICE float max(float a, float b) { return fmaxf(a, b); }
EMU_DEVICE double min(double a, double b) { return fmin(a, b); }
EMU_DEVICE double max(double a, double b) { return fmax(a, b); }
