"""Tensors as the kernels see them: few dimensions, a stride for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S", tuple[int, int], tuple[int, int, int])


def merged(x: Tensor, dims: Sequence[int]) -> tuple[int, int] | None:
    """(size, stride) of these dimensions, in their order, as one; None where they are not."""
    size, stride = 1, 0
    for d in reversed(dims):
        if x.size(d) == 1:
            continue
        if size > 1 and x.stride(d) != stride * size:
            return None
        if size == 1:
            stride = x.stride(d)
        size *= x.size(d)
    return size, stride


class Rows:
    """``[C]``, ``[N, C]`` or ``[N, C, d1, ...]`` as rows of C: n of them outside, l inside."""

    def __init__(self, input: Tensor) -> None:
        self.class_dim = 0 if input.dim() == 1 else 1
        self.classes = input.size(self.class_dim)
        self.outer = list(range(self.class_dim))
        self.inner_dims = list(range(self.class_dim + 1, input.dim()))
        self.inner = math.prod(input.size(d) for d in self.inner_dims)
        self.num_rows = input.numel() // max(1, self.classes)

    def strides(self, x: Tensor) -> tuple[int, int, int] | None:
        """(n, c, l) of a tensor of the input's shape, None where l is several strides."""
        inner = merged(x, self.inner_dims)
        if inner is None:
            return None
        outer = x.stride(0) if self.outer else 0
        return outer, x.stride(self.class_dim), inner[1]

    def strides_of_rows(self, x: Tensor) -> tuple[int, int] | None:
        """(n, l) of a tensor without the class dimension, or of one number."""
        if x.dim() == 0:
            return 0, 0
        inner = merged(x, [d - 1 for d in self.inner_dims])
        if inner is None:
            return None
        return (x.stride(0) if self.outer else 0), inner[1]


def to_write(grad: Tensor | None, rows: Rows) -> tuple[Tensor | None, tuple[int, int, int]]:
    """`grad`, or a contiguous tensor to copy into it where strides do not merge, and those strides."""
    if grad is None:
        return None, (0, 0, 0)
    strides = rows.strides(grad)
    if strides is None:
        grad = torch.empty_like(grad, memory_format=torch.contiguous_format)
        strides = rows.strides(grad)
    assert strides is not None
    return grad, strides


def with_strides(x: Tensor, find: Callable[[Tensor], S | None]) -> tuple[Tensor, S]:
    """`x`, or a contiguous copy where its strides do not merge, and those strides."""
    strides = find(x)
    if strides is None:
        x = x.contiguous()
        strides = find(x)
    assert strides is not None
    return x, strides


class Elements:
    """The elements of several tensors of one shape (stride 0 where they are broadcast), in the order of
    the first one's memory.
    """

    def __init__(self, shape: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
        order = sorted(
            (d for d in range(len(shape)) if shape[d] != 1),
            key=lambda d: strides[0][d],
            reverse=True,
        )
        sizes: list[int] = []
        merged_strides: list[list[int]] = [[] for _ in strides]
        for d in order:
            fits = bool(sizes) and all(
                to[-1] == given[d] * shape[d]
                for to, given in zip(merged_strides, strides, strict=True)
            )
            if fits:
                sizes[-1] *= shape[d]
            else:
                sizes.append(shape[d])
            for to, given in zip(merged_strides, strides, strict=True):
                if fits:
                    to[-1] = given[d]
                else:
                    to.append(given[d])
        self.sizes = tuple(sizes) or (1,)
        self.strides = [tuple(to) or (0,) for to in merged_strides]

    @property
    def ndim(self) -> int:
        """Merged dimensions."""
        return len(self.sizes)


def broadcast_strides(x: Tensor | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor as if expanded to a shape; zeros of none."""
    if x is None:
        return (0,) * len(shape)
    return tuple(x.expand(shape).stride())
