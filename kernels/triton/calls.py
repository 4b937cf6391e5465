"""What every launch needs: the arithmetic's type, the gradient to write, the finish of a loss."""

from __future__ import annotations

import torch
from torch import Tensor

import triton.language as tl

from .row_softmax import finish_kernel

FINISH_BLOCK = 1024


def accumulator(input: Tensor) -> torch.dtype:
    """The arithmetic's type."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def element_type(dtype: torch.dtype) -> tl.dtype:
    """The arithmetic's type as kernels name it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def finish(
    partials: Tensor, programs: int, loss: Tensor, scale: Tensor, reduction: int, expected: float,
    normalizer: Tensor | None, normalizer_value: float, weighted_mean: bool, nothing_is_zero: bool,
) -> None:  # fmt: skip
    """From the programs' sums to the loss and the two numbers of `scale`."""
    finish_kernel[(1,)](
        partials, programs, loss, scale, partials if normalizer is None else normalizer,
        float(normalizer_value), expected,
        MEAN=reduction == 2, WITH_LOSS=reduction != 0, WEIGHTED=weighted_mean,
        HAS_NORMALIZER=normalizer is not None, NORMALIZER_VALUE=normalizer_value > 0,
        ZERO=nothing_is_zero, BLOCK=FINISH_BLOCK,
    )  # fmt: skip


def grad_to_write(input: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor]:
    """Where the gradient goes, if anywhere, and what the operator returns of it."""
    if not wanted:
        return None, input.new_empty(0)
    grad = torch.empty_like(input)
    return grad, grad
