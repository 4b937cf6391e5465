"""What a workload is: inputs, contenders and what is right. The rows are in cases.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .baselines import LossFn, Reference
from .results import CLONE

Series = Literal["large", "small", "scaling"]

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass
class Inputs:
    """The logits (features, of a loss with a linear layer) and the further arguments of a contender."""

    logits: Tensor
    args: tuple[Tensor, ...]

    @property
    def leaves(self) -> list[Tensor]:
        """The arguments that get a gradient, in their order."""
        return [tensor for tensor in (self.logits, *self.args) if tensor.requires_grad]


Yardstick = Callable[[Inputs], Callable[[], object]]
"""Makes, from the inputs, what is timed beside the contenders and is no loss."""


def clone(inputs: Inputs) -> Callable[[], object]:
    """The cheapest thing that reads the logits and writes their size anew."""
    return inputs.logits.detach().clone


@dataclass(frozen=True)
class OtherFunction:
    """What a contender computes that serves the same purpose but is not the function of its case.

    `allowed` multiplies the tolerances, for a contender that is what it says and loses digits.
    """

    reference: Reference
    computes: str
    allowed: float = 1.0


@dataclass(frozen=True)
class Case:
    """One workload. `shape` is that of the logits; `gpu_shape` is the full size, used on a GPU."""

    name: str
    loss: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    setup: Callable[[Case, torch.device], Inputs]
    contenders: Callable[[], dict[str, LossFn]]
    reference: Reference
    series: Series = "large"
    class_dim: int = -1
    gpu_shape: tuple[int, ...] | None = None
    quick: bool = False
    fullgraph: bool = True
    """Whether `torch.compile` must take the eager form without a graph break."""
    other_functions: Mapping[str, OtherFunction] = field(default_factory=dict)
    """Contenders that are checked against a reference of their own, and marked in the report."""
    gpu_contenders: Callable[[], dict[str, LossFn]] = dict
    """Contenders that run on a GPU alone; what fails or is wrong there is left out with the reason."""
    yardsticks: Mapping[str, Yardstick] = field(default_factory=lambda: {CLONE: clone})

    @property
    def elements(self) -> int:
        """Number of logits."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows, anchors or pixels: everything but the classes."""
        return self.elements // max(1, self.shape[self.class_dim])

    @property
    def logits_bytes(self) -> int:
        """Size of the logits in bytes."""
        return self.elements * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """Short name of the dtype: fp32, bf16."""
        return DTYPE_NAMES.get(self.dtype, str(self.dtype).removeprefix("torch."))

    def at_full_size(self) -> Case:
        """The same workload at the size for a GPU."""
        return dataclasses.replace(self, shape=self.gpu_shape or self.shape)
