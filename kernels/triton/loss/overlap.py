"""From regions' sums to losses and slopes, the dice family; the formulas of kernels/loss/overlap.h."""

import triton
import triton.language as tl

from ..math import INFINITY

# Options: gain, by_overlap, by_mass, by_truth, smooth_numerator, smooth_denominator, gamma.
UNIFORM = tl.constexpr(1)
SIMPLE = tl.constexpr(2)


@triton.jit
def loss_of_ratio(numerator, denominator, gain, by_overlap, by_mass, gamma, LOG: tl.constexpr):
    """(loss, its derivative by I, by P)."""
    ratio = numerator / denominator
    ratio_by_overlap = (gain - ratio * by_overlap) / denominator
    ratio_by_mass = -ratio * by_mass / denominator
    if LOG:
        value = -tl.log(ratio)
        slope = -1.0 / ratio
    else:
        off = 1.0 - ratio
        # Rounding can make `off` negative, which has no power; there, as at 0, the slope is 0.
        usable = ~(off <= 0.0)
        base = tl.where(usable, off, 1.0)
        power = tl.where(gamma == 1.0, base, tl.exp(gamma * tl.log(base)))
        value = tl.where(usable, power, tl.where(gamma == 1.0, off, 0.0))
        slope = tl.where(usable, -gamma * power / base, 0.0)
        slope = tl.where(gamma == 1.0, -1.0, slope)
    return value, slope * ratio_by_overlap, slope * ratio_by_mass


@triton.jit
def of_region(overlap, mass, truth, options, LOG: tl.constexpr):
    """The same of a region with a ratio of its own."""
    numerator = options[0] * overlap + options[4]
    denominator = options[1] * overlap + options[2] * mass + options[3] * truth + options[5]
    return loss_of_ratio(
        numerator, denominator, options[0], options[1], options[2], options[6], LOG
    )


@triton.jit
def generalized_weight(truth, WEIGHTING: tl.constexpr):
    """w_c of a class; infinite for an absent one, but for uniform weights."""
    weight = 1.0 / (truth * truth)
    if WEIGHTING == UNIFORM:
        weight = 1.0 + 0.0 * truth
    elif WEIGHTING == SIMPLE:
        weight = 1.0 / truth
    return tl.where(truth == 0.0, 1.0 + 0.0 * truth if WEIGHTING == UNIFORM else INFINITY, weight)
