"""Smooth L1 loss of one element; the formulas of kernels/loss/smooth_l1.h."""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers: beta.


@triton.jit
def element(x, target, side, weight, numbers):
    """The loss and its derivative."""
    beta = numbers[0]
    d = x - target
    size = tl.abs(d)
    inside = size < beta
    ratio = d / tl.where(inside, beta, 1.0)
    sign = tl.where(d < 0.0, -1.0, tl.where(d > 0.0, 1.0, d))
    loss = tl.where(inside, 0.5 * d * ratio, size - 0.5 * beta)
    return weight * loss, weight * tl.where(inside, ratio, sign)
