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

Series = Literal["large", "small", "scaling"]

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass
class Inputs:
    """The logits (a leaf that requires grad) and the further arguments of every contender."""

    logits: Tensor
    args: tuple[Tensor, ...]


@dataclass(frozen=True)
class OtherFunction:
    """What a contender computes that serves the same purpose but is not the function of its case."""

    reference: Reference
    computes: str


@dataclass(frozen=True)
class Case:
    """One workload. `gpu_shape` is the full size, used on a GPU."""

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
