"""Softmax focal loss; the formulas of kernels/loss/softmax_focal.h."""

from __future__ import annotations

import triton
import triton.language as tl

from ..math import power
from .cross_entropy import target

__all__ = ["gradient", "numbers", "target", "value"]

# State as of cross_entropy.py. Numbers: own_share, terms_share, others_share, gamma.


@triton.jit
def _focus(q, gamma):
    smallest: tl.constexpr = 2.2250738585072014e-308 if q.dtype == tl.float64 else 1.1754944e-38
    value, derivative = power(tl.where(q < smallest, smallest, q), gamma)
    return tl.where(q < smallest, tl.where(gamma == 0.0, 1.0, 0.0), value), derivative


@triton.jit
def value(state, numbers):
    """The loss of a row; nothing is counted apart."""
    focus, _ = _focus(state[4], numbers[3])
    return state[7] * focus * (numbers[0] * state[0] + numbers[1] * state[1]), 0.0 * state[0]


@triton.jit
def gradient(state, numbers, scale_main, scale_by_row):
    """The coefficients of the softmax, of the terms, and the target's own gradient."""
    focus, derivative = _focus(state[4], numbers[3])
    factor = scale_main * state[7]
    f = factor * focus
    slope = derivative * (numbers[0] * state[0] + numbers[1] * state[1]) * state[3]
    d = factor * tl.minimum(slope, 1e30, propagate_nan=tl.PropagateNan.ALL)
    own = f * (numbers[2] * state[3] - numbers[0] * state[4]) - d * state[4]
    return f + d, -f * numbers[1], own


def numbers(
    classes: int, gamma: float, label_smoothing: float
) -> tuple[float, float, float, float]:
    """The functions' numbers."""
    each = label_smoothing / classes
    return 1.0 - label_smoothing + each, each, each * (classes - 1), gamma
