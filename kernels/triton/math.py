"""Functions that Triton's language lacks, or has without the last digits."""

from __future__ import annotations

import triton
import triton.language as tl

PI = tl.constexpr(3.141592653589793)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def number(value, dtype: tl.constexpr):
    """A kernel's number argument in the arithmetic's type."""
    return tl.full((1,), value, dtype)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, by its relative error: what 1 + x lost is put back as a factor."""
    u = 1.0 + x
    exact = (u == 1.0) | (u == INFINITY)
    safe = tl.where(exact, 2.0, u)
    return tl.where(u == 1.0, x, tl.where(exact, u, tl.log(safe) * (x / (safe - 1.0))))


@triton.jit
def positive_power(q, gamma):
    """q^gamma for normal q > 0."""
    return tl.exp(gamma * tl.log(q))


@triton.jit
def power(q, gamma):
    """(q^gamma, its derivative) for q in (0, 1]; the exponents 0, 1, 2 and 3 by multiplication."""
    small = (gamma == 0.0) | (gamma == 1.0) | (gamma == 2.0) | (gamma == 3.0)
    lower = tl.where(gamma > 1.0, q, 1.0) * tl.where(gamma > 2.0, q, 1.0)
    value = tl.where(gamma > 0.0, lower * q, 1.0)
    real = positive_power(q, gamma)
    return tl.where(small, value, real), gamma * tl.where(small, lower, real / q)


@triton.jit
def cos_sin_pi(x):
    """(cos, sin) of pi x, exact where x is a multiple of 1/2."""
    # |r| <= 1/4 away from the nearest multiple of 1/2, where both series have full precision.
    k = tl.floor(2.0 * x + 0.5)
    angle = (x - 0.5 * k) * PI
    c, s = tl.cos(angle), tl.sin(angle)
    turn = k - 4.0 * tl.floor(0.25 * k)
    cos = tl.where(turn == 0.0, c, tl.where(turn == 1.0, -s, tl.where(turn == 2.0, -c, s)))
    sin = tl.where(turn == 0.0, s, tl.where(turn == 1.0, c, tl.where(turn == 2.0, -s, -c)))
    return cos, sin


@triton.jit
def acos_over_pi(x):
    """acos(x) / pi for x in [-1, 1], from half the angle, whose sine is known exactly near +-1."""
    # acos(x) = 2 asin(sqrt((1 - |x|) / 2)), mirrored; of the series for asin up to sin(pi/6).
    size = tl.abs(x)
    near = size > 0.5
    z = tl.where(near, 0.5 * (1.0 - size), size * size)
    s = tl.where(near, tl.sqrt(z), size)
    arc = s * asin_ratio(z)
    from_near = tl.where(x > 0.0, 2.0 * arc, PI - 2.0 * arc)
    from_far = 0.5 * PI - tl.where(x < 0.0, -arc, arc)
    return tl.where(near, from_near, from_far) / PI


@triton.jit
def asin_ratio(z):
    """asin(s) / s as a series in z = s^2 <= 1/4."""
    # Coefficients (2n)! / (4^n (n!)^2 (2n + 1)), by their recurrence; the 27th is below 1e-17.
    total = 1.0 + 0.0 * z
    term = 1.0 + 0.0 * z
    for n in tl.static_range(1, 27):
        term = term * z * ((2.0 * n - 1.0) / (2.0 * n))
        total += term / (2.0 * n + 1.0)
    return total


@triton.jit
def logistic(x):
    """(|x|, e^-|x|, 1 / (1 + e^-|x|), log(1 + e^-|x|)): both tails of the sigmoid, neither of which
    vanishes.
    """
    magnitude = tl.abs(x)
    cut: tl.constexpr = 700.0 if x.dtype == tl.float64 else 86.0
    small = tl.exp(-tl.minimum(magnitude, cut, propagate_nan=tl.PropagateNan.ALL))
    return magnitude, small, 1.0 / (1.0 + small), log1p(small)
