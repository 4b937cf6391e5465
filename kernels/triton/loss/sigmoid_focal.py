"""Sigmoid focal loss of one element; the formulas of kernels/loss/sigmoid_focal.h."""

from __future__ import annotations

import triton
import triton.language as tl

from ..math import logistic, power

# Numbers: smoothing_scale, smoothing_shift, gamma.


@triton.jit
def element(x, target, side, weight, numbers):
    """The loss and its derivative. `side` is alpha, below 0 for none."""
    t = target * numbers[0] + numbers[1]
    magnitude, small, large, log_large = logistic(x)
    positive = x >= 0.0
    a = tl.where(positive, 1.0 - t, t)
    b = 1.0 - a
    focus, derivative = power(large * (a + b * small), numbers[2])
    ce = magnitude * a + log_large
    balance = side * t + (1.0 - side) * (1.0 - t)
    factor = weight * tl.where(side < 0.0, 1.0, balance)
    slope = focus * (a - b * small) + derivative * (large * small) * (a - b) * ce
    return factor * focus * ce, factor * tl.where(positive, large, -large) * slope


def numbers(gamma: float, label_smoothing: float) -> tuple[float, float, float]:
    """The function's numbers."""
    return 1.0 - label_smoothing, 0.5 * label_smoothing, gamma
