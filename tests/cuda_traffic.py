"""What the CUDA kernels move, counted by the emulator on small versions of the workloads."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from emulated import SigmoidFocal
from torch import Tensor

ROWS, CLASSES = 2048, 80


@dataclass(frozen=True)
class Workload:
    """Logits ``[ROWS, CLASSES]`` of one dtype with one kind of target."""

    name: str
    dtype: torch.dtype
    target: Tensor
    reduction: str = "mean"


@dataclass(frozen=True)
class Traffic:
    """One pass of a workload. Sectors are those of each warp's requests, 32 bytes each."""

    workload: Workload
    what: str  # forward | backward | forward+grad | scale
    launches: int
    moved: int  # bytes of distinct sectors, once for each launch
    least: int  # bytes that the pass cannot do without
    written: int
    sectors: int
    full_sectors: int
    atomics: int
    blocks: int


def class_indices(rows: int, classes: int) -> Tensor:
    """Labels of which 5 % are not background."""
    generator = torch.Generator().manual_seed(1)
    target = torch.full((rows,), classes)
    positive = torch.rand(rows, generator=generator) < 0.05
    target[positive] = torch.randint(0, classes, (int(positive.sum()),), generator=generator)
    return target


_INDICES = class_indices(ROWS, CLASSES)
_DENSE = torch.zeros(ROWS, CLASSES)
WORKLOADS = [
    Workload("index int64, fp32", torch.float32, _INDICES),
    Workload("index int64, bf16", torch.bfloat16, _INDICES),
    Workload("index int64, fp64", torch.float64, _INDICES),
    Workload("index uint8, fp16", torch.float16, _INDICES.to(torch.uint8)),
    Workload("dense fp32, fp32", torch.float32, _DENSE),
    Workload("dense fp32, bf16", torch.bfloat16, _DENSE),
    Workload("dense bool, fp32", torch.float32, _DENSE.bool()),
    Workload("dense uint8, bf16", torch.bfloat16, _DENSE.to(torch.uint8)),
    Workload("dense fp32, none", torch.float32, _DENSE, "none"),
    Workload("dense bool, bf16, none", torch.bfloat16, _DENSE.bool(), "none"),
]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def _taken(module: ModuleType, workload: Workload, what: str, least: int) -> Traffic:
    kernels = module.counters()
    ways = [k[way] for k in kernels for way in ("read", "write")]
    return Traffic(
        workload,
        what,
        launches=sum(k["launches"] for k in kernels),
        moved=sum(way["unique_bytes"] for way in ways),
        least=least,
        written=sum(k["write"]["bytes"] for k in kernels),
        sectors=sum(way["sectors"] for way in ways),
        full_sectors=sum(way["full_sectors"] for way in ways),
        atomics=sum(sum(k["atomics"].values()) for k in kernels),
        blocks=max(k["blocks"] for k in kernels),
    )


def measure(module: ModuleType, workload: Workload) -> list[Traffic]:
    """Both gradient schedules of one workload: forward, backward; forward with gradient, its scaling."""
    x = torch.randn(ROWS, CLASSES).to(workload.dtype)
    target = workload.target
    kernel = SigmoidFocal(module, x, target, reduction=workload.reduction)
    upstream = torch.ones((), dtype=kernel.dtype)
    module.configure(count=True, race_check=False, seed=3)
    passes = []

    module.reset_counters()
    loss, scale, _ = kernel.forward(with_grad=False)
    passes.append(_taken(module, workload, "forward", _bytes(x, target, loss)))
    module.reset_counters()
    grad = kernel.backward(upstream, scale)
    passes.append(_taken(module, workload, "backward", _bytes(x, target, grad)))

    module.reset_counters()
    loss, scale, written = kernel.forward(with_grad=True)
    assert written is not None
    least = _bytes(x, target, loss, written)
    passes.append(_taken(module, workload, "forward+grad", least))
    module.reset_counters()
    kernel.scaled(written, upstream, scale)
    # Nothing moves where the factor is 1; a float16 mean is not prescaled, so all of it does.
    not_one = workload.dtype == torch.float16 and workload.reduction == "mean"
    passes.append(_taken(module, workload, "scale", 2 * _bytes(written) if not_one else 0))
    return passes
