"""Binary cross entropy of one element, as mining selects by it; the formulas of
kernels/loss/binary_cross_entropy.h.
"""

import triton
import triton.language as tl

from ..math import logistic


@triton.jit
def of_logits(x, target):
    """The loss and its derivative."""
    magnitude, small, large, log_large = logistic(x)
    positive = x >= 0.0
    a = tl.where(positive, 1.0 - target, target)
    slope = large * (a - (1.0 - a) * small)
    return magnitude * a + log_large, tl.where(positive, slope, -slope)


@triton.jit
def of_probabilities(p, target):
    """The same as torch's of probabilities: logarithms are at least -100."""
    q = 1.0 - p
    # log(1 - p) with what the rounding of 1 - p lost: p itself, where p is small.
    safe = tl.where(q > 0.0, q, 1.0)
    log_q = tl.where(q == 0.0, -100.0, tl.log(q) + ((1.0 - q) - p) / safe)
    log_p = tl.where(p == 0.0, -100.0, tl.log(p))
    log_p = tl.where(log_p < -100.0, -100.0, log_p)
    log_q = tl.where(log_q < -100.0, -100.0, log_q)
    variance = p * q
    slope = (p - target) / tl.where(variance > 1e-12, variance, 1e-12)
    return -(target * log_p + (1.0 - target) * log_q), slope
