"""Margin softmax (ArcFace and its family) over cosines; the formulas of kernels/loss/margin_softmax.h."""

from __future__ import annotations

import math

import torch

import triton
import triton.language as tl

from ..math import INFINITY, PI, acos_over_pi, cos_sin_pi
from . import cross_entropy
from .cross_entropy import gradient as _gradient
from .cross_entropy import value

__all__ = ["gradient", "numbers", "target", "target_by_angle", "target_by_class", "value"]

# State as of cross_entropy.py. Numbers: cross entropy's four, then
#   4 scale   5 m1   6 m2 / pi   7 cos m2   8 sin m2   9 falls_below   10 drop   11 m3
#   12 closest to 1   13 applies_above   14 exact (0: straight through)   15 folds


@triton.jit
def gradient(state, numbers, scale_main, scale_by_row):
    """Cross entropy's, of logits that are `scale` times the cosines."""
    softmax, terms, own = _gradient(
        state, numbers, scale_main * numbers[4], scale_by_row * numbers[4]
    )
    return softmax, terms, own * state[8]


@triton.jit
def _within(x, bound):
    return tl.minimum(tl.where(x < -bound, -bound, x), bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sine(x):
    square = (1.0 - x) * (1.0 + x)
    return tl.sqrt(square) if x.dtype == tl.float64 else tl.sqrt_rn(square)


@triton.jit
def _by_angle(x, m1, m2, folds):
    """cos(m1 theta + m2), or its fold, and the slope."""
    angle = m1 * acos_over_pi(x) + m2
    k = tl.floor(angle)
    even = 0.5 * k == tl.floor(0.5 * k)
    sign = tl.where(even | (folds > 0.0), 1.0, -1.0)
    cos, sin = cos_sin_pi(angle - k)
    return sign * cos - tl.where(folds > 0.0, 2.0 * k, 0.0), sign * m1 * sin / _sine(x)


@triton.jit
def _by_sum(x, inside, cos_m2, sin_m2):
    """cos(theta + m2) and the slope."""
    return x * cos_m2 - _sine(x) * sin_m2, cos_m2 + inside * sin_m2 / _sine(inside)


@triton.jit
def _finish(x, bent, bent_slope, falls_below, drop, m3, numbers):
    straight = x < falls_below
    # x - x is NaN for an infinite x, which has no angle.
    value = tl.where(straight, x - drop, bent + (x - x))
    slope = tl.where(straight, 1.0, bent_slope)
    applies = x > numbers[13]  # false for NaN, which stays one
    return tl.where(applies, value - m3, x), tl.where(
        applies, 1.0 + numbers[14] * (slope - 1.0), 1.0
    )


@triton.jit
def target(x, label, numbers, margins):
    """The changed cosine and its slope where m1 is 1."""
    bent, slope = _by_sum(_within(x, 1.0), _within(x, numbers[12]), numbers[7], numbers[8])
    return _finish(x, bent, slope, numbers[9], numbers[10], numbers[11], numbers)


@triton.jit
def target_by_angle(x, label, numbers, margins):
    """The same for any m1."""
    bent, _ = _by_angle(_within(x, 1.0), numbers[5], numbers[6], numbers[15])
    _, slope = _by_angle(_within(x, numbers[12]), numbers[5], numbers[6], numbers[15])
    return _finish(x, bent, slope, numbers[9], numbers[10], numbers[11], numbers)


@triton.jit
def target_by_class(x, label, numbers, margins):
    """The same for margins of each class."""
    at = tl.where(label < 0, 0, label)
    m1, plus, m3 = tl.load(margins[0] + at), tl.load(margins[1] + at), tl.load(margins[2] + at)
    m2 = plus / PI
    cos_m2, sin_m2 = cos_sin_pi(m2)
    none = (m1 == 1.0) & (plus == 0.0)
    bends = (plus > 0.0) & (plus < PI)
    falls = tl.where(bends, -cos_m2, tl.where(plus <= 0.0, -INFINITY, INFINITY))
    falls = tl.where((numbers[15] > 0.0) & (m1 == 1.0), falls, -INFINITY)
    falls = tl.where(none, INFINITY, falls)
    drop = tl.where(none, 0.0, plus * sin_m2)
    inside = _within(x, numbers[12])
    sum_bent, sum_slope = _by_sum(_within(x, 1.0), inside, cos_m2, sin_m2)
    bent, _ = _by_angle(_within(x, 1.0), m1, m2, numbers[15])
    _, slope = _by_angle(inside, m1, m2, numbers[15])
    bent = tl.where(m1 == 1.0, sum_bent, bent)
    slope = tl.where(m1 == 1.0, sum_slope, slope)
    return _finish(x, bent, slope, falls, drop, m3, numbers)


SPACING_BELOW_ONE = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


def numbers(
    classes: int,
    dtype: torch.dtype,
    scale: float,
    m1: float,
    m2: float,
    m3: float,
    easy: bool,
    linear: bool,
    straight_through: bool,
    label_smoothing: float,
) -> tuple[float, ...]:
    """The functions' numbers."""
    folds = linear and not easy
    cos_m2, sin_m2 = math.cos(m2), math.sin(m2)
    drop = m2 * sin_m2
    falls_below = -cos_m2 if 0 < m2 < math.pi else -math.inf if m2 <= 0 else math.inf
    if not folds or m1 != 1:
        falls_below = -math.inf
    if m1 == 1 and m2 == 0:
        falls_below, drop = math.inf, 0.0
    return (
        *cross_entropy.numbers(classes, True, label_smoothing, False, 0.0),
        *(scale, m1, m2 / math.pi, cos_m2, sin_m2, falls_below, drop, m3),
        1.0 - SPACING_BELOW_ONE[dtype],
        0.0 if easy else -math.inf,
        0.0 if straight_through else 1.0,
        float(folds),
    )
