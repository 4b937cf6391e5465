// Stand-in for CUDA's header of this name: __nv_bfloat16 and __nv_bfloat162, their conversions and
// their arithmetic. An operation computes in float and rounds once, which is the correctly rounded
// result.
#pragma once

#include "cuda_runtime.h"
#include "emu_device/small_floats.h"

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct __attribute__((aligned(2))) __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw raw) : __x(raw.x) {}
  __nv_bfloat16(float v) : __x(emu::abi::float_to_bfloat16(v)) {}
  __nv_bfloat16(double v) : __x(emu::abi::float_to_bfloat16(emu::abi::round_to_odd(v))) {}
  __nv_bfloat16(int v) : __nv_bfloat16(static_cast<double>(v)) {}
  __nv_bfloat16(unsigned int v) : __nv_bfloat16(static_cast<double>(v)) {}
  __nv_bfloat16(long long v) : __nv_bfloat16(static_cast<double>(v)) {}
  operator float() const { return emu::abi::bfloat16_to_float(__x); }
  operator __nv_bfloat16_raw() const { return __nv_bfloat16_raw{__x}; }

  unsigned short __x;
};
typedef __nv_bfloat16 nv_bfloat16;

struct __attribute__((aligned(4))) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
typedef __nv_bfloat162 nv_bfloat162;

EMU_DEVICE float __bfloat162float(__nv_bfloat16 v) { return emu::abi::bfloat16_to_float(v.__x); }
EMU_DEVICE __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }
EMU_DEVICE __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
EMU_DEVICE __nv_bfloat16 __double2bfloat16(double v) { return __nv_bfloat16(v); }
EMU_DEVICE __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return __nv_bfloat162{__nv_bfloat16(v.x), __nv_bfloat16(v.y)};
}
EMU_DEVICE __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return __nv_bfloat162{__nv_bfloat16(a), __nv_bfloat16(b)};
}
EMU_DEVICE __nv_bfloat162 __float2bfloat162_rn(float v) {
  return __nv_bfloat162{__nv_bfloat16(v), __nv_bfloat16(v)};
}
EMU_DEVICE float2 __bfloat1622float2(__nv_bfloat162 v) {
  return float2{__bfloat162float(v.x), __bfloat162float(v.y)};
}
EMU_DEVICE __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
EMU_DEVICE __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
EMU_DEVICE float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
EMU_DEVICE float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
EMU_DEVICE __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return __nv_bfloat162{x, y};
}
EMU_DEVICE __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return __nv_bfloat162{x, y};
}
EMU_DEVICE unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.__x; }
EMU_DEVICE __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
  return __nv_bfloat16(__nv_bfloat16_raw{v});
}

EMU_DEVICE __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __nv_bfloat16(float(a) + float(b));
}
EMU_DEVICE __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __nv_bfloat16(float(a) - float(b));
}
EMU_DEVICE __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __nv_bfloat16(float(a) * float(b));
}
EMU_DEVICE __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) {
  return __nv_bfloat16(float(a) / float(b));
}
EMU_DEVICE __nv_bfloat16 operator-(__nv_bfloat16 a) {
  return __nv_bfloat16(__nv_bfloat16_raw{static_cast<unsigned short>(a.__x ^ 0x8000u)});
}
EMU_DEVICE bool operator==(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) == float(b); }
EMU_DEVICE bool operator!=(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) != float(b); }
EMU_DEVICE bool operator<(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) < float(b); }
EMU_DEVICE bool operator<=(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) <= float(b); }
EMU_DEVICE bool operator>(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) > float(b); }
EMU_DEVICE bool operator>=(__nv_bfloat16 a, __nv_bfloat16 b) { return float(a) >= float(b); }
EMU_DEVICE __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) { return a + b; }
EMU_DEVICE __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) { return a - b; }
EMU_DEVICE __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) { return a * b; }
EMU_DEVICE __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __nv_bfloat16(double(float(a)) * double(float(b)) + double(float(c)));
}
EMU_DEVICE bool __hisnan(__nv_bfloat16 a) { return float(a) != float(a); }
EMU_DEVICE __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __nv_bfloat162{a.x + b.x, a.y + b.y};
}
EMU_DEVICE __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __nv_bfloat162{a.x * b.x, a.y * b.y};
}
