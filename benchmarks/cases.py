"""The workloads: one row of `CASES` each. A new loss adds rows here and its forms in baselines.py.

A row says what the inputs are, who contends, and what is right; the harness adds `torch.compile`
of the eager form and the yardstick `logits.clone()` by itself.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import baselines
from .baselines import LossFn

Series = Literal["large", "small", "scaling"]

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass
class Inputs:
    """The logits (a leaf that requires grad) and the further arguments of every contender."""

    logits: Tensor
    args: tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One workload. `gpu_shape` is the full size, used on a GPU."""

    name: str
    loss: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    setup: Callable[[Case, torch.device], Inputs]
    contenders: Callable[[], dict[str, LossFn]]
    reference: Callable[..., tuple[Tensor, Tensor]]
    series: Series = "large"
    gpu_shape: tuple[int, ...] | None = None
    quick: bool = False
    fullgraph: bool = True
    """Whether `torch.compile` must take the eager form without a graph break."""

    @property
    def elements(self) -> int:
        """Number of logits."""
        return math.prod(self.shape)

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


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(20_170_807)


POSITIVE_SHARE = 0.01
PRIOR_LOGIT = -math.log(99.0)
"""RetinaNet starts its classification head at p = 0.01."""


def focal_index_inputs(case: Case, device: torch.device) -> Inputs:
    """Anchors with one class index each (C = background), 1 % positive; divisor: positives."""
    generator = _generator(device)
    *rows, classes = case.shape
    logits = torch.randn(case.shape, generator=generator, device=device).mul_(2).add_(PRIOR_LOGIT)
    labels = torch.randint(0, classes, rows, generator=generator, device=device)
    background = torch.rand(rows, generator=generator, device=device) >= POSITIVE_SHARE
    labels[background] = classes
    normalizer = (labels < classes).sum().clamp_(min=1).float()
    return Inputs(logits.to(case.dtype).requires_grad_(), (labels, normalizer))


def focal_dense_inputs(case: Case, device: torch.device) -> Inputs:
    """The same with the target written out in the dtype and shape of the logits."""
    inputs = focal_index_inputs(case, device)
    labels, normalizer = inputs.args
    dense = baselines.one_hot_without_background(labels, inputs.logits.detach())
    return Inputs(inputs.logits, (dense.contiguous(), normalizer))


def _focal(
    name: str,
    shape: tuple[int, ...],
    *,
    index: bool,
    dtype: torch.dtype = torch.float32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
    quick: bool = False,
) -> Case:
    return Case(
        name,
        f"sigmoid focal, {'class-index' if index else 'dense'} targets",
        shape,
        dtype,
        setup=focal_index_inputs if index else focal_dense_inputs,
        contenders=baselines.focal_index if index else baselines.focal_dense,
        reference=baselines.focal_reference,
        series=series,
        gpu_shape=gpu_shape,
        quick=quick,
    )


RETINANET = (2, 76_725, 80)
RETINANET_GPU = (16, 201_600, 80)
BF16 = torch.bfloat16

# fmt: off
CASES: tuple[Case, ...] = (
    _focal("retinanet-index-fp32", RETINANET, index=True, gpu_shape=RETINANET_GPU, quick=True),
    _focal("retinanet-index-bf16", RETINANET, index=True, gpu_shape=RETINANET_GPU, dtype=BF16),
    _focal("retinanet-dense-fp32", RETINANET, index=False, gpu_shape=RETINANET_GPU),
    _focal("retinanet-dense-bf16", RETINANET, index=False, gpu_shape=RETINANET_GPU, dtype=BF16),
    _focal("small-focal-index-256x80", (256, 80), index=True, series="small", quick=True),
    _focal("small-focal-dense-256x80", (256, 80), index=False, series="small"),
    _focal("small-focal-index-8x4", (8, 4), index=True, series="small"),
    _focal("scaling-focal-16x80", (16, 80), index=True, series="scaling"),
    _focal("scaling-focal-256x80", (256, 80), index=True, series="scaling"),
    _focal("scaling-focal-4096x80", (4_096, 80), index=True, series="scaling"),
    _focal("scaling-focal-32768x80", (32_768, 80), index=True, series="scaling"),
    _focal("scaling-focal-262144x80", (262_144, 80), index=True, series="scaling"),
)
# fmt: on


def select(
    cases: Sequence[Case] = CASES,
    *,
    pattern: str = "",
    dtype: str = "",
    quick: bool = False,
) -> list[Case]:
    """Rows whose name contains `pattern` (or matches it as a glob), of the dtype, quick or all.

    A pattern or a dtype that is given picks from all rows, also with `quick`.
    """

    def wanted(case: Case) -> bool:
        named = pattern in case.name or fnmatch.fnmatch(case.name, pattern)
        if quick and not pattern and not dtype and not case.quick:
            return False
        return named and dtype in ("", case.dtype_name)

    return [case for case in cases if wanted(case)]
