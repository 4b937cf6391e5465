// Stand-in for CUDA's header of this name: __half and __half2, their conversions and their
// arithmetic. An operation computes in float and rounds once, which is the correctly rounded
// result.
#pragma once

#include "cuda_runtime.h"
#include "emu_device/small_floats.h"

struct __half_raw {
  unsigned short x;
};

struct __attribute__((aligned(2))) __half {
  __half() = default;
  __half(__half_raw raw) : __x(raw.x) {}
  __half(float v) : __x(emu::abi::float_to_half(v)) {}
  __half(double v) : __x(emu::abi::float_to_half(emu::abi::round_to_odd(v))) {}
  __half(int v) : __half(static_cast<double>(v)) {}
  __half(unsigned int v) : __half(static_cast<double>(v)) {}
  __half(long long v) : __half(static_cast<double>(v)) {}
  operator float() const { return emu::abi::half_to_float(__x); }
  operator __half_raw() const { return __half_raw{__x}; }

  unsigned short __x;
};
typedef __half half;

struct __attribute__((aligned(4))) __half2 {
  __half x, y;
};
typedef __half2 half2;

EMU_DEVICE float __half2float(__half v) { return emu::abi::half_to_float(v.__x); }
EMU_DEVICE __half __float2half(float v) { return __half(v); }
EMU_DEVICE __half __float2half_rn(float v) { return __half(v); }
EMU_DEVICE __half __double2half(double v) { return __half(v); }
EMU_DEVICE __half2 __float22half2_rn(float2 v) { return __half2{__half(v.x), __half(v.y)}; }
EMU_DEVICE __half2 __floats2half2_rn(float a, float b) { return __half2{__half(a), __half(b)}; }
EMU_DEVICE __half2 __float2half2_rn(float v) { return __half2{__half(v), __half(v)}; }
EMU_DEVICE float2 __half22float2(__half2 v) { return float2{__half2float(v.x), __half2float(v.y)}; }
EMU_DEVICE __half __low2half(__half2 v) { return v.x; }
EMU_DEVICE __half __high2half(__half2 v) { return v.y; }
EMU_DEVICE float __low2float(__half2 v) { return __half2float(v.x); }
EMU_DEVICE float __high2float(__half2 v) { return __half2float(v.y); }
EMU_DEVICE __half2 __halves2half2(__half x, __half y) { return __half2{x, y}; }
EMU_DEVICE __half2 make_half2(__half x, __half y) { return __half2{x, y}; }
EMU_DEVICE unsigned short __half_as_ushort(__half v) { return v.__x; }
EMU_DEVICE __half __ushort_as_half(unsigned short v) { return __half(__half_raw{v}); }

EMU_DEVICE __half operator+(__half a, __half b) { return __half(float(a) + float(b)); }
EMU_DEVICE __half operator-(__half a, __half b) { return __half(float(a) - float(b)); }
EMU_DEVICE __half operator*(__half a, __half b) { return __half(float(a) * float(b)); }
EMU_DEVICE __half operator/(__half a, __half b) { return __half(float(a) / float(b)); }
EMU_DEVICE __half operator-(__half a) {
  return __half(__half_raw{static_cast<unsigned short>(a.__x ^ 0x8000u)});
}
EMU_DEVICE bool operator==(__half a, __half b) { return float(a) == float(b); }
EMU_DEVICE bool operator!=(__half a, __half b) { return float(a) != float(b); }
EMU_DEVICE bool operator<(__half a, __half b) { return float(a) < float(b); }
EMU_DEVICE bool operator<=(__half a, __half b) { return float(a) <= float(b); }
EMU_DEVICE bool operator>(__half a, __half b) { return float(a) > float(b); }
EMU_DEVICE bool operator>=(__half a, __half b) { return float(a) >= float(b); }
EMU_DEVICE __half __hadd(__half a, __half b) { return a + b; }
EMU_DEVICE __half __hsub(__half a, __half b) { return a - b; }
EMU_DEVICE __half __hmul(__half a, __half b) { return a * b; }
EMU_DEVICE __half __hfma(__half a, __half b, __half c) {
  return __half(double(float(a)) * double(float(b)) + double(float(c)));
}
EMU_DEVICE bool __hisnan(__half a) { return float(a) != float(a); }
EMU_DEVICE __half2 __hadd2(__half2 a, __half2 b) { return __half2{a.x + b.x, a.y + b.y}; }
EMU_DEVICE __half2 __hmul2(__half2 a, __half2 b) { return __half2{a.x * b.x, a.y * b.y}; }
