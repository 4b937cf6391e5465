"""Cross entropy with label smoothing and z-loss; the formulas of kernels/loss/cross_entropy.h."""

from __future__ import annotations

import triton
import triton.language as tl

# What the engine hands over: (nll, smooth, lse, p, q, sum_u, unit, weight, target_slope), as
# kernels/core/row_softmax.h names them. Numbers: label_share, own_share, terms_share, z_loss.


@triton.jit
def value(state, numbers):
    """What the divisor of a mean counts, and what is counted by rows."""
    own = numbers[0] * state[7] + numbers[1] * state[6]
    main = own * state[0] + numbers[2] * state[1]
    return main, numbers[3] * state[2] * state[2]


@triton.jit
def gradient(state, numbers, scale_main, scale_by_row):
    """The coefficients of the softmax, of the terms, and the target's own gradient."""
    others = scale_main * numbers[2] * (state[5] - state[6])
    slope = others + scale_by_row * 2.0 * numbers[3] * state[2]
    label = scale_main * (numbers[0] * state[7] + numbers[1] * state[6])
    return label + slope, -scale_main * numbers[2], slope * state[3] - label * state[4]


@triton.jit
def target(x, label, numbers, margins):
    """Logits are left as they are."""
    return x, tl.full(x.shape, 1.0, x.dtype)


def numbers(
    classes: int, indexed: bool, label_smoothing: float, smooth_others: bool, z_loss: float
) -> tuple[float, float, float, float]:
    """The functions' numbers."""
    uniform = uniform_share(classes, label_smoothing, smooth_others)
    return (
        label_share(classes, label_smoothing, smooth_others) if indexed else 0.0,
        0.0 if smooth_others else uniform,
        uniform if indexed else 1.0,
        z_loss,
    )


def uniform_share(classes: int, label_smoothing: float, smooth_others: bool) -> float:
    """What smoothing gives every class."""
    spread = classes - 1 if smooth_others else classes
    return label_smoothing / spread if spread > 0 else 0.0


def label_share(classes: int, label_smoothing: float, smooth_others: bool) -> float:
    """What is left to the label, but for its part of what every class gets."""
    return 1.0 if smooth_others and classes == 1 else 1.0 - label_smoothing


def target_share(classes: int, label_smoothing: float, smooth_others: bool) -> float:
    """A probability target y becomes target_share y + uniform_share."""
    spread = 0.0
    if smooth_others and classes > 1:
        spread = uniform_share(classes, label_smoothing, smooth_others)
    return label_share(classes, label_smoothing, smooth_others) - spread
