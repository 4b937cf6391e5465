"""A row of softmax without a loss of its own, where regions are all there is."""

import triton
import triton.language as tl

from .cross_entropy import target

__all__ = ["gradient", "target", "value"]


@triton.jit
def value(state, numbers):
    """No loss."""
    zero = tl.zeros(state[0].shape, state[0].dtype)
    return zero, zero


@triton.jit
def gradient(state, numbers, scale_main, scale_by_row):
    """No gradient."""
    zero = tl.zeros(state[0].shape, state[0].dtype)
    return zero, zero, zero
