"""What every launch needs: the arithmetic's type, the gradient to write, the finish of a loss."""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .row_softmax import finish_kernel
from .sums import add_parts_kernel

ADD_STEPS = 32  # of a program that adds parts: two launches add 2^20 of them
FINISH_BLOCK = 1024
FINISH_PARTIALS = 8 * FINISH_BLOCK  # that one program adds; of more, some are added before


def accumulator(input: Tensor) -> torch.dtype:
    """The arithmetic's type."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def element_type(dtype: torch.dtype) -> tl.dtype:
    """The arithmetic's type as kernels name it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def add_parts(parts: Tensor, enough: int) -> Tensor:
    """[groups, parts, width] in float64 with at most `enough` parts of each group left."""
    groups, num_parts, width = parts.shape
    columns = min(64, triton.next_power_of_2(width))
    rows = 1024 // columns
    while num_parts > enough:
        each = min(ADD_STEPS * rows, triton.next_power_of_2(num_parts))
        chunks = triton.cdiv(num_parts, each)
        out = parts.new_empty([groups, chunks, width])
        add_parts_kernel[(groups * chunks, triton.cdiv(width, columns))](
            parts, out, num_parts, chunks, width, each, PARTS=min(rows, each), COLUMNS=columns
        )
        parts, num_parts = out, chunks
    return parts


def fewer_partials(partials: Tensor) -> Tensor:
    """The programs' sums, [programs, width], few enough for one program to add."""
    return add_parts(partials[None], FINISH_PARTIALS)[0]


def finish(
    partials: Tensor, loss: Tensor, scale: Tensor, reduction: int, expected: float,
    normalizer: Tensor | None, normalizer_value: float, weighted_mean: bool, nothing_is_zero: bool,
) -> None:  # fmt: skip
    """From the programs' sums, [programs, PARTIALS], to the loss and the two numbers of `scale`."""
    partials = fewer_partials(partials)
    finish_kernel[(1,)](
        partials, partials.size(0), loss, scale, partials if normalizer is None else normalizer,
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
