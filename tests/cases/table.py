"""What a row of the table holds, and how its inputs are made.

A row says how inputs are made; the checks decide the dtype, the backend and the schedule. Sizes are
small enough for the emulated GPU and chosen to reach the edges named beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Loss:
    """A loss in its three forms: public function, eager reference, emulated CUDA."""

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    emulated: Callable[..., Any]
    forward_op: str
    backward_op: str
    classes_last: bool = False  # the class dimension is the last one, not the one after the batch
    background: bool = False  # the labels -1 and C are background
    ignore_index: int = -100  # the default
    cosines: bool = False  # of cosines in the place of logits
    schedules: tuple[str, ...] = ("recompute", "forward")  # when gradients can be computed
    regions: bool = False  # its losses are of regions, not of rows or elements
    elements: bool = False  # of single elements: of a row nothing is saved
    mined: bool = False  # of all losses only some count
    boxes: bool = False  # of numbers against numbers, without classes

    def class_dim(self, dims: int) -> int:
        """Where an input of `dims` dimensions has its classes."""
        if self.classes_last:
            return dims - 1
        return 1 if dims > 1 else 0


@dataclass(frozen=True)
class Case:
    """One row. ``options`` are keyword arguments; callables in it are given the generator."""

    name: str
    loss: Loss
    shape: tuple[int, ...]
    target: str = "index"  # index | binary | soft | probabilities | zeros | ones
    target_dtype: torch.dtype = torch.int64
    layout: str = "contiguous"
    target_layout: str = "contiguous"
    logits: str = "normal"  # normal | shifted | extreme | zero | cosines | probabilities
    ignored: float = 0.0  # share of ignored targets
    emulated: bool = True  # False: too many classes for the emulator's budget
    options: Options = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(input, target, options), the same for the same seed."""
        generator = torch.Generator().manual_seed(seed + 1)
        input = lay_out(self._logits(generator).to(dtype), self.layout)
        options = {
            key: value(generator) if callable(value) else value
            for key, value in self.options.items()
        }
        target = self._target(generator, options.get("ignore_index", self.loss.ignore_index))
        return input, lay_out(target, self.target_layout), options

    def _logits(self, generator: torch.Generator) -> Tensor:
        if self.logits == "cosines":  # all angles but the ends, which no half type tells apart
            return torch.rand(self.shape, generator=generator, dtype=torch.float64) * 1.96 - 0.98
        if self.logits == "probabilities":
            return torch.rand(self.shape, generator=generator, dtype=torch.float64)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.logits == "zero":
            return x * 0
        if self.logits == "extreme":  # to both ends of float16
            sign = torch.where(torch.rand(self.shape, generator=generator) < 0.5, -1.0, 1.0)
            return sign * torch.logspace(-8, 4.81, x.numel(), dtype=torch.float64).view(self.shape)
        if self.logits == "shifted":  # far from 0 but close to each other: their softmax is plain
            return x * 4 + 2000
        return x * 4

    def _target(self, generator: torch.Generator, ignore_index: int) -> Tensor:
        if self.target == "index":
            dim = self.loss.class_dim(len(self.shape))
            low, high = 0, self.shape[dim]
            if self.loss.background:  # -1, which uint8 has not, and C
                low, high = (0 if self.target_dtype == torch.uint8 else -1), high + 1
            rows = self.shape[:dim] + self.shape[dim + 1 :]
            target = torch.randint(low, high, rows, generator=generator)
        elif self.target == "binary":
            target = (torch.rand(self.shape, generator=generator) < 0.3).long()
        elif self.target == "probabilities":  # each row sums to 1
            x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
            target = torch.softmax(2 * x, self.loss.class_dim(len(self.shape)))
        elif self.target in ("zeros", "ones"):
            target = torch.full(self.shape, self.target == "ones")
        else:
            target = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        target = target.to(self.target_dtype)
        if self.ignored:
            target[torch.rand(target.shape, generator=generator) < self.ignored] = ignore_index
        return target


def under_its_schedules(cases: list[Case], *, on_cuda: bool = False) -> list[Any]:
    """(case, schedule): all that make a difference, as parameters of a test. Of losses that mine only the
    CPU's forward begins gradients.
    """
    return [
        pytest.param(case, schedule, id=f"{case.name}-{schedule}")
        for case in cases
        for schedule in case.loss.schedules
        if not (on_cuda and case.loss.mined and schedule == "forward")
    ]


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "contiguous":
        return x
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last":  # of any number of dimensions
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "permuted":  # the dimensions after the batch in the opposite order
        order = [0, *range(x.dim() - 1, 0, -1)]
        return x.permute(order).contiguous().permute(order)
    if layout == "sliced":  # every second element along the last dimension
        return torch.stack((x, x + 1), dim=-1).flatten(-2)[..., ::2]
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "offset":  # one element past an aligned address
        return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
    raise ValueError(layout)


def uniform(*shape: int) -> Callable[[torch.Generator], Tensor]:
    """An option: float32 numbers in [0, 1)."""
    return lambda generator: torch.rand(shape, generator=generator)
