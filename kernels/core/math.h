// Elementary functions for the losses, the same source on host and device.
//
// float: branch-free polynomials that a compiler vectorises (no libm call, no table), so the CPU
// engines need no SIMD type. Errors against fp64 are measured by tests/test_math.py over the whole
// domain and listed in docs/numerics.md. Coefficients are minimax fits in fp64 (Remez exchange),
// rounded to float. double: the C library, for tests and double-precision users.
//
// On a GPU exp and log are CUDA's own (1 to 2 ulp). What runs for every logit is one instruction of
// the special-function unit: exp_bounded and exp_nonpositive are 2^(x log2 e), the reciprocal
// rcp.approx.
//
// NaN propagates through every function. Selections are written `condition ? a : b` on plain
// values, which compilers turn into blends.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "macros.h"

namespace fusedloss {

template <class T>
FUSEDLOSS_HD T select(bool condition, T if_true, T if_false) {
  return condition ? if_true : if_false;
}

template <class To, class From>
FUSEDLOSS_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// The smaller of the two; NaN where x is NaN. In this order it is one instruction on x86.
template <class T>
FUSEDLOSS_HD T at_most(T bound, T x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) == sizeof(float)) {
    float smaller;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(bound), "f"(x));
    return smaller;
  }
#endif
  return bound < x ? bound : x;
}

#if defined(__CUDA_ARCH__)
// 2^x, 1 / x and log2(x) as the special-function unit has them: 2 ulp, 1 ulp, and 2^-22 (absolute
// between 1/2 and 2, else relative); subnormal numbers are 0. CUDA's own intrinsics for them spend
// twice to four times the instructions on subnormal numbers.
__device__ __forceinline__ float exp2_approximately(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approximately(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_approximately(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

constexpr float kLog2E = 1.44269504f;

// e^x for x in [-86.98, 89] or NaN; +inf where the true value overflows.
FUSEDLOSS_HD float exp_bounded(float x) {
#if defined(__CUDA_ARCH__)
  return exp2_approximately(x * kLog2E);
#else
  constexpr float kLn2Hi = 0.693145752f, kLn2Lo = 1.42860677e-6f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in low bits
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2Hi) - n * kLn2Lo;
  // 2 e^r, so that the power of two below never needs an exponent beyond the largest.
  float p = 0.00276291973f;
  p = p * r + 0.0167374338f;
  p = p * r + 0.0833367761f;
  p = p * r + 0.333330413f;
  p = p * r + 0.999999869f;
  p = (p * r) * r + (2.0f * r + 2.0f);
  const uint32_t exponent = (bit_cast<uint32_t>(shifted) << 23) + (126u << 23);  // 2^(n-1)
  return p * bit_cast<float>(exponent);
#endif
}

// e^x. Overflows to +inf where the true value does; results below 1.7e-38 (x < -86.98) are 0.
FUSEDLOSS_HD float exp(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  return x < -86.98f ? 0.0f : exp_bounded(at_most(89.0f, x));
#endif
}

constexpr float kSmallestExponent = -86.98f;

// 2^(x to_log2) for x to_log2 <= 0 (or NaN), and 0 where x < smallest.
FUSEDLOSS_HD float exp2_nonpositive(float x, float to_log2, float smallest) {
  constexpr float kRound = 12582912.0f;  // as in exp_bounded
  const float shifted = x * to_log2 + kRound;
  const float r = x * to_log2 - (shifted - kRound);
  float p = 0.00132647273f;  // 2^r for r in [-1/2, 1/2]
  p = p * r + 0.00967151299f;
  p = p * r + 0.0555073359f;
  p = p * r + 0.240222424f;
  p = p * r + 0.693147004f;
  p = p * r + 1.0f;
  const uint32_t exponent = (bit_cast<uint32_t>(shifted) << 23) + (127u << 23);
  return x < smallest ? 0.0f : p * bit_cast<float>(exponent);
}

// e^x for x <= 0 (or NaN), the terms of a log-sum-exp: as 2^(x log2 e), which takes two thirds of
// the steps of exp. Without a fused multiply-add the error grows by 0.75 ulp for each unit of x, in
// terms that become as much smaller; a GPU's special-function unit errs by about as much. Results
// below 1.7e-38 (x < -86.98) are 0.
FUSEDLOSS_HD float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return exp2_approximately(x * kLog2E);
#else
  return exp2_nonpositive(x, kLog2E, kSmallestExponent);
#endif
}

FUSEDLOSS_HD double exp_nonpositive(double x) { return ::exp(x); }

// e^(scale x) for scale x <= 0 (or NaN), at the price of exp_nonpositive: the scale is in its
// constants.
template <class T>
struct ScaledExp {
  T scale;
  FUSEDLOSS_HD explicit ScaledExp(T by) : scale(by) {}
  FUSEDLOSS_HD T operator()(T x) const { return exp_nonpositive(scale * x); }
};

#if !defined(__CUDACC__)
template <>
struct ScaledExp<float> {
  float to_log2, smallest;
  explicit ScaledExp(float by) : to_log2(by * kLog2E), smallest(kSmallestExponent / by) {}
  float operator()(float x) const { return exp2_nonpositive(x, to_log2, smallest); }
};
#endif

// log(1 + x) for x in [0, 1]: what softplus and log-sum-exp of two terms need.
FUSEDLOSS_HD float log1p_unit(float x) {
  float p = -0.0032440246083f;
  p = p * x + 0.0198514598155f;
  p = p * x - 0.0569595295249f;
  p = p * x + 0.106036544123f;
  p = p * x - 0.153055923012f;
  p = p * x + 0.196759391696f;
  p = p * x - 0.249541336413f;
  p = p * x + 0.333299624158f;
  p = p * x - 0.499999024228f;
  p = p * x + 0.999999995287f;
  return p * x;
}

// log(x). Subnormal x included; log(0) = -inf, log(negative) = NaN, log(+inf) = +inf.
FUSEDLOSS_HD float log(float x) {
#if defined(__CUDA_ARCH__)
  return ::logf(x);
#else
  constexpr float kLn2Hi = 0.693145752f, kLn2Lo = 1.42860677e-6f;
  const bool subnormal = x < std::numeric_limits<float>::min();
  const float normal = subnormal ? x * 8388608.0f : x;
  // Split at sqrt(1/2) so that the mantissa lies in [0.707, 1.414) and log(1 + f) loses nothing.
  const uint32_t bits = bit_cast<uint32_t>(normal) - 0x3f3504f3u;
  const float mantissa = bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u);
  const float n = static_cast<float>(static_cast<int32_t>(bits) >> 23) - (subnormal ? 23.0f : 0.0f);
  const float f = mantissa - 1.0f;
  float p = -0.076343848131f;
  p = p * f + 0.127654251832f;
  p = p * f - 0.131620039763f;
  p = p * f + 0.142013690417f;
  p = p * f - 0.16623144529f;
  p = p * f + 0.200012358607f;
  p = p * f - 0.250008267662f;
  p = p * f + 0.333333316822f;
  const float f2 = f * f;
  const float tail = (p * f) * f2 + n * kLn2Lo;
  const float value = n * kLn2Hi + (f + (tail - 0.5f * f2));
  const float infinity = std::numeric_limits<float>::infinity();
  const float positive = x < infinity ? value : x;  // +inf and NaN return themselves
  const float zero = x == 0.0f ? -infinity : positive;
  return x < 0.0f ? std::numeric_limits<float>::quiet_NaN() : zero;
#endif
}

// log(x) for x > 2.
FUSEDLOSS_HD float log_above_two(float x) {
#if defined(__CUDA_ARCH__)
  return log2_approximately(x) * 0.693147181f;
#else
  return log(x);
#endif
}

// log(1 + x) for x >= 0, given the rounded 1 + x and its reciprocal: the logarithm of the rounded
// sum, and to first order what the rounding lost.
FUSEDLOSS_HD float log_of_total(float x, float total, [[maybe_unused]] float inverse) {
#if defined(__CUDA_ARCH__)
  return x <= 1.0f ? log1p_unit(x) : log_above_two(total);
#else
  constexpr float kLn2Hi = 0.693145752f, kLn2Lo = 1.42860677e-6f;
  const uint32_t bits = bit_cast<uint32_t>(total) - 0x3f3504f3u;  // as in log
  const float f = bit_cast<float>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float n = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  float p = -0.076343848131f;
  p = p * f + 0.127654251832f;
  p = p * f - 0.131620039763f;
  p = p * f + 0.142013690417f;
  p = p * f - 0.16623144529f;
  p = p * f + 0.200012358607f;
  p = p * f - 0.250008267662f;
  p = p * f + 0.333333316822f;
  const float f2 = f * f;
  const float lost = (x - (total - 1.0f)) * inverse;
  const float tail = (p * f) * f2 + (n * kLn2Lo + lost);
  const float value = n * kLn2Hi + (f + (tail - 0.5f * f2));
  return total < std::numeric_limits<float>::infinity() ? value : total;
#endif
}
FUSEDLOSS_HD double log_of_total(double x, double, double) { return ::log1p(x); }

// q^gamma for normal q in (0, 1].
FUSEDLOSS_HD float positive_power(float q, float gamma) {
#if defined(__CUDA_ARCH__)
  return exp2_approximately(gamma * log2_approximately(q));
#else
  return exp(gamma * log(q));
#endif
}

// 1 / x for x in [2^-126, 2^126].
FUSEDLOSS_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return reciprocal_approximately(x);
#else
  return 1.0f / x;
#endif
}
FUSEDLOSS_HD double reciprocal(double x) { return 1.0 / x; }

FUSEDLOSS_HD double exp(double x) { return ::exp(x); }
FUSEDLOSS_HD double exp_bounded(double x) { return ::exp(x); }
FUSEDLOSS_HD double log1p_unit(double x) { return ::log1p(x); }
FUSEDLOSS_HD double log(double x) { return ::log(x); }
FUSEDLOSS_HD double log_above_two(double x) { return ::log(x); }
FUSEDLOSS_HD double positive_power(double q, double gamma) { return ::exp(gamma * ::log(q)); }

constexpr double kPi = 3.14159265358979323846, kOneOverPi = 0.318309886183790671538;

// Of cosines and angles, once a row: the C library's and CUDA's own. The angles of cos_pi and
// sin_pi are in units of pi, so that a GPU needs no slow path for large ones.
FUSEDLOSS_HD float sqrt(float x) { return ::sqrtf(x); }
FUSEDLOSS_HD double sqrt(double x) { return ::sqrt(x); }
FUSEDLOSS_HD float floor(float x) { return ::floorf(x); }
FUSEDLOSS_HD double floor(double x) { return ::floor(x); }
FUSEDLOSS_HD float acos(float x) { return ::acosf(x); }
FUSEDLOSS_HD double acos(double x) { return ::acos(x); }
#if defined(__CUDA_ARCH__)
FUSEDLOSS_HD float cos_pi(float x) { return ::cospif(x); }
FUSEDLOSS_HD double cos_pi(double x) { return ::cospi(x); }
FUSEDLOSS_HD float sin_pi(float x) { return ::sinpif(x); }
FUSEDLOSS_HD double sin_pi(double x) { return ::sinpi(x); }
#else
template <class T>
FUSEDLOSS_HD T cos_pi(T x) {
  return static_cast<T>(::cos(kPi * static_cast<double>(x)));
}
template <class T>
FUSEDLOSS_HD T sin_pi(T x) {
  return static_cast<T>(::sin(kPi * static_cast<double>(x)));
}
#endif

FUSEDLOSS_HD float abs(float x) {
#if defined(__CUDA_ARCH__)
  return ::fabsf(x);  // which an instruction takes in with its operand
#else
  return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
#endif
}
FUSEDLOSS_HD double abs(double x) { return ::fabs(x); }

// The largest |x| at which e^-|x| and its products with numbers in [1/2, 1] stay normal.
template <class T>
struct Saturation;
template <>
struct Saturation<float> {
  static constexpr float kLogit = 86.0f;
};
template <>
struct Saturation<double> {
  static constexpr double kLogit = 700.0;
};

// Both tails of the logistic function from one exponential:
//   small = e^-|x| in (0, 1], large = 1 / (1 + small), log_large = log(1 + small) = -log(large).
// sigmoid(|x|) = large and sigmoid(-|x|) = large * small, each with full relative precision. |x| is
// cut at Saturation::kLogit, so `small` never vanishes and ratios of tails stay finite.
template <class T>
struct Logistic {
  T magnitude, small, large, log_large;
  bool positive;
};

template <class T>
FUSEDLOSS_HD Logistic<T> logistic(T x) {
  Logistic<T> out;
  out.positive = x >= T(0);
  out.magnitude = abs(x);
  out.small = exp_bounded(-at_most(Saturation<T>::kLogit, out.magnitude));
  out.large = reciprocal(T(1) + out.small);
  out.log_large = log1p_unit(out.small);
  return out;
}

template <class T>
FUSEDLOSS_HD T sigmoid(T x) {
  const Logistic<T> s = logistic(x);
  return s.positive ? s.large : s.small * s.large;
}

// log(1 + e^x)
template <class T>
FUSEDLOSS_HD T softplus(T x) {
  const Logistic<T> s = logistic(x);
  return (s.positive ? s.magnitude : T(0)) + s.log_large;
}

// q^gamma and its derivative gamma q^(gamma-1) for q in (0, 1].
template <class T>
struct PowerDerivative {
  T value, derivative;
};

// An exponent known at compile time: multiplications only.
template <int kGamma>
struct IntegerPower {
  static constexpr FUSEDLOSS_HD int exponent() { return kGamma; }
  template <class T>
  FUSEDLOSS_HD PowerDerivative<T> operator()(T q) const {
    if constexpr (kGamma == 0) {
      return {T(1), T(0)};
    } else {
      T lower = T(1);
      for (int i = 1; i < kGamma; ++i) lower *= q;
      return {lower * q, T(kGamma) * lower};
    }
  }
};

// Whether multiplications serve as the power.
inline bool is_small_integer(double exponent) {
  return exponent == 0.0 || exponent == 1.0 || exponent == 2.0 || exponent == 3.0;
}

// 0, 1, 2 or 3 known at run time, without a branch: for losses that raise one number a row to a
// power, where a version for each exponent would be code without use.
template <class T>
struct SmallIntegerPower {
  T gamma, above0, above1, above2;  // whether gamma exceeds 0, 1, 2, as numbers

  explicit SmallIntegerPower(double exponent)
      : gamma(static_cast<T>(exponent)),
        above0(exponent > 0.0),
        above1(exponent > 1.0),
        above2(exponent > 2.0) {}

  FUSEDLOSS_HD PowerDerivative<T> operator()(T q) const {
    const T lower = (T(1) - above1 + above1 * q) * (T(1) - above2 + above2 * q);
    return {T(1) - above0 + above0 * (lower * q), gamma * lower};
  }
};

// Any exponent >= 0. q must be at least the smallest normal number, which keeps both results
// finite.
template <class T>
struct RealPower {
  T gamma;
  FUSEDLOSS_HD PowerDerivative<T> operator()(T q) const {
    const T value = positive_power(q, gamma);
    return {value, gamma * value * reciprocal(q)};
  }
};

// Any exponent, the integers up to 3 by multiplication. The choice is the same for all elements, so
// on a GPU the branch costs next to nothing and one kernel serves every exponent.
template <class T>
struct SwitchedPower {
  T gamma;
  bool small_integer;

  explicit SwitchedPower(double exponent)
      : gamma(static_cast<T>(exponent)), small_integer(is_small_integer(exponent)) {}

  FUSEDLOSS_HD T exponent() const { return gamma; }

  FUSEDLOSS_HD PowerDerivative<T> operator()(T q) const {
    if (!small_integer) return RealPower<T>{gamma}(q);
    const T lower = (gamma > T(1) ? q : T(1)) * (gamma > T(2) ? q : T(1));
    return {gamma > T(0) ? lower * q : T(1), gamma * lower};
  }
};

}  // namespace fusedloss
