"""Hard example mining: what the operators are asked for, and what their marks mean.

Forward leaves one mark for every row or element (kernels/core/mining.h) and, for every slice, the loss
from which on candidates are selected and the share of those tied at it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# What `number` or `factor` says of how many candidates are selected; in the order of the kernels' enum
# Wanted. "together": so many with the always selected; "ratio": times the always selected.
WANTED = {"together": 0, "number": 1, "fraction": 2, "ratio": 3}


class MinedCrossEntropyArguments(NamedTuple):
    """The numbers of the operator over rows, in its order."""

    threshold: float  # rows with a larger -log p are always selected
    wanted: int
    number: int
    factor: float
    whole_ties: bool
    ignore_index: int
    reduction: int


class MinedBinaryCrossEntropyArguments(NamedTuple):
    """The numbers of the operator over elements, in its order."""

    from_logits: bool
    mined_dims: int  # bit d: dimension d belongs to a slice
    ratio: float
    fallback: int
    epsilon: float
    reduction: int


def slice_order(ndim: int, mined_dims: int) -> tuple[list[int], list[int]]:
    """The dimensions that number the slices, and those of a slice."""
    mined = [d for d in range(ndim) if mined_dims >> d & 1]
    return [d for d in range(ndim) if d not in mined], mined


def bits_dtype(input: Tensor) -> torch.dtype:
    """The integers that hold the bits of the arithmetic's numbers: the dtype of marks and selections."""
    return torch.int64 if input.dtype == torch.float64 else torch.int32


def shares(marks: Tensor, selection: Tensor, mined_dims: int | None = None) -> Tensor:
    """Which part of each row's or element's loss counts: 1, 0, or the share of the tied ones.

    Without `mined_dims` there is one slice.
    """
    sizes = [1] * marks.dim()
    if mined_dims is not None:
        for d in slice_order(marks.dim(), mined_dims)[0]:
            sizes[d] = marks.size(d)
    # The order of integers is that of losses, and NaN the largest.
    cut, share = selection.unbind(1)
    bound = cut.reshape(sizes)
    dtype = torch.float64 if selection.dtype == torch.int64 else torch.float32
    tied = torch.where(marks == bound, share.contiguous().view(dtype).reshape(sizes), 0.0)
    of_candidates = torch.where(marks > bound, 1.0, tied)
    of_others = (marks != -1).to(dtype)  # -1: left out
    return torch.where(marks < 0, of_others, of_candidates)
