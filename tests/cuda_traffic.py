"""What the CUDA kernels move, counted by the emulator on small versions of the workloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from emulated import CrossEntropy, MarginSoftmax, SigmoidFocal, SmoothL1, SoftmaxFocal
from emulated_mining import MinedBinaryCrossEntropy, MinedCrossEntropy, Wanted
from emulated_regions import ElementRegions, SoftmaxRegions, emulated_regions
from torch import Tensor

ROWS, CLASSES = 2048, 80
functional = torch.nn.functional


@dataclass(frozen=True)
class Workload:
    """Logits of one dtype, rows of one width, with one kind of target."""

    name: str
    dtype: torch.dtype
    target: Tensor
    reduction: str = "mean"
    loss: Callable[..., SigmoidFocal | SmoothL1] = SigmoidFocal
    classes: int = CLASSES
    options: dict[str, Any] = field(default_factory=dict)

    def input(self) -> Tensor:
        """The logits."""
        return torch.randn(self.target.size(0), self.classes).to(self.dtype)

    def kernel(self, module: ModuleType, x: Tensor) -> SigmoidFocal | SmoothL1:
        """The loss on the emulator."""
        return self.loss(module, x, self.target, reduction=self.reduction, **self.options)


@dataclass(frozen=True)
class RowWorkload:
    """Logits of one shape and dtype under a loss of the row-softmax engine.

    `policy` is the kernel that this shape is there to exercise.
    """

    name: str
    policy: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    loss: Callable[..., CrossEntropy | MarginSoftmax | SoftmaxFocal] = CrossEntropy
    options: dict[str, Any] = field(default_factory=dict)
    probabilities: bool = False
    reduction: str = "mean"

    @property
    def target(self) -> Tensor:
        """Class indices, or probabilities of the logits' shape."""
        generator = torch.Generator().manual_seed(1)
        if self.probabilities:
            return torch.rand(self.shape, generator=generator).to(self.dtype)
        rows = (self.shape[0], *self.shape[2:])
        return torch.randint(0, self.shape[1], rows, generator=generator)

    def input(self) -> Tensor:
        """The logits, or cosines."""
        logits = torch.randn(self.shape)
        return (logits.tanh() if self.loss is MarginSoftmax else logits).to(self.dtype)

    def kernel(self, module: ModuleType, x: Tensor) -> CrossEntropy | MarginSoftmax | SoftmaxFocal:
        """The loss on the emulator."""
        return self.loss(module, x, self.target, reduction=self.reduction, **self.options)


@dataclass(frozen=True)
class RegionWorkload:
    """Logits of one shape and dtype under a region loss. `policy`: as above, how its name begins."""

    name: str
    policy: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    function: str = "dice_loss"
    options: dict[str, Any] = field(default_factory=dict)
    target: str = "labels"  # labels | bool | soft
    reduction: str = "mean"

    def input(self) -> Tensor:
        """The logits, or probabilities."""
        logits = torch.randn(self.shape)
        plain = not self.options.get("from_logits", True)
        return (logits.sigmoid() if plain else logits).to(self.dtype)

    def kernel(self, module: ModuleType, x: Tensor) -> SoftmaxRegions | ElementRegions:
        """The loss on the emulator."""
        generator = torch.Generator().manual_seed(1)
        if self.target == "labels":
            rows = (self.shape[0], *self.shape[2:])
            target = torch.randint(0, self.shape[1], rows, generator=generator)
        else:
            target = torch.rand(self.shape, generator=generator)
            target = target < 0.1 if self.target == "bool" else target.to(self.dtype)
        return emulated_regions(module, x, target, self.function, **self.options)


@dataclass(frozen=True)
class MiningWorkload:
    """Logits of one shape and dtype under a mined loss. What is kept lies in a patch, `kept` of the
    whole; `launches`: of a forward. `policy`: as above.
    """

    name: str
    policy: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str  # ohem | topk | balanced
    kept: float
    launches: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    reduction: str = "mean"

    def kernel(self, module: ModuleType) -> MinedCrossEntropy | MinedBinaryCrossEntropy:
        """The loss on the emulator."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.shape, generator=generator)
        if self.kind == "balanced":
            # A quarter of the patch is positive; its other elements are the hardest negatives.
            hard = torch.arange(x.numel()) < self.kept * x.numel()
            positive = torch.arange(x.numel()) < self.kept * x.numel() / 4
            x = torch.where(hard.view(self.shape), x.abs() + 4, x - 4).to(self.dtype)
            rule = {"wanted": Wanted.RATIO, "factor": 3.0, "epsilon": 1e-6}
            target = positive.view(self.shape)
            return MinedBinaryCrossEntropy(module, x, target, **rule, **self.options)
        rows = (self.shape[0], *self.shape[2:])
        target = torch.randint(0, self.shape[1], rows, generator=generator)
        hard = torch.arange(target.numel()) < self.kept * target.numel()
        bonus = torch.where(hard.view(rows), 0.0, 9.0).unsqueeze(1).expand(self.shape)
        own = functional.one_hot(target, self.shape[1]).movedim(-1, 1)
        x = (x + own * bonus).to(self.dtype)
        options: dict[str, Any] = {"wanted": Wanted.NUMBER, "number": int(hard.sum())}
        if self.kind == "ohem":
            options = {"wanted": Wanted.TOGETHER, "number": int(hard.sum()), "whole_ties": True}
        return MinedCrossEntropy(module, x, target, **options, **self.options)


AnyWorkload = Workload | RowWorkload | RegionWorkload | MiningWorkload


@dataclass(frozen=True)
class Traffic:
    """One pass of a workload; clearing memory is no launch. Sectors: of each warp, 32 bytes each."""

    workload: AnyWorkload
    what: str  # forward | backward | forward+grad | scale
    launches: int
    moved: int  # bytes of distinct sectors, once for each launch
    least: int  # bytes that the pass cannot do without
    written: int
    sectors: int
    full_sectors: int
    atomics: int
    float_atomics: int
    blocks: int
    kernels: tuple[str, ...]


def class_indices(rows: int, classes: int) -> Tensor:
    """Labels of which 5 % are not background."""
    generator = torch.Generator().manual_seed(1)
    target = torch.full((rows,), classes)
    positive = torch.rand(rows, generator=generator) < 0.05
    target[positive] = torch.randint(0, classes, (int(positive.sum()),), generator=generator)
    return target


_INDICES = class_indices(ROWS, CLASSES)
_DENSE = torch.zeros(ROWS, CLASSES)
_BOXES, _WEIGHT = torch.zeros(40 * ROWS, 4), torch.rand(40 * ROWS, 1)
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
    *(
        Workload(f"boxes, {name}", dtype, _BOXES.to(dtype), "mean", SmoothL1, 4, options)
        for name, dtype, options in (
            ("fp32", torch.float32, {}),
            ("bf16", torch.bfloat16, {}),
            ("fp32, weights", torch.float32, {"weight": _WEIGHT}),
            ("bf16, weights", torch.bfloat16, {"weight": _WEIGHT}),
        )
    ),
]


F32, BF16, F64, F16 = torch.float32, torch.bfloat16, torch.float64, torch.float16
MARGINS = {"m2": 0.5}
ROW_WORKLOADS = [
    # Whole rows in shared memory: any number of classes, the last tile partly filled.
    RowWorkload("[16384, 2] fp32", "row_tile", (16384, 2), F32),
    RowWorkload("[8192, 19] bf16", "row_tile", (8192, 19), BF16),
    RowWorkload("[2048, 91] fp32", "row_tile", (2048, 91), F32),
    RowWorkload("[2048, 91] fp16, focal", "row_tile", (2048, 91), F16, SoftmaxFocal),
    RowWorkload("[250, 1000] fp32", "row_tile", (250, 1000), F32),
    RowWorkload(
        "[250, 1001] bf16, smoothed",
        "row_tile",
        (250, 1001),
        BF16,
        CrossEntropy,
        {"label_smoothing": 0.1},
    ),
    RowWorkload("[200, 1000] fp32, soft", "row_tile", (200, 1000), F32, CrossEntropy, {}, True),
    # A row for each block: kept in shared memory, then longer than that.
    RowWorkload("[96, 1000] fp64", "row_block", (96, 1000), F64),
    RowWorkload("[64, 3001] fp32", "row_block", (64, 3001), F32),
    RowWorkload("[32, 8192] fp32, soft", "row_block", (32, 8192), F32, CrossEntropy, {}, True),
    RowWorkload("[24, 32000] bf16", "row_block", (24, 32000), BF16, CrossEntropy, {"z_loss": 1e-4}),
    RowWorkload("[512, 100] fp32, margin", "row_tile", (512, 100), F32, MarginSoftmax, MARGINS),
    RowWorkload("[16, 9343] fp32, margin", "row_block", (16, 9343), F32, MarginSoftmax, MARGINS),
    RowWorkload("[16, 9343] bf16, margin", "row_block", (16, 9343), BF16, MarginSoftmax, MARGINS),
    # Classes apart from each other.
    RowWorkload("[2, 19, 64, 64] fp32", "row_pixels", (2, 19, 64, 64), F32),
    RowWorkload("[2, 19, 64, 64] bf16", "row_pixels", (2, 19, 64, 64), BF16),
    RowWorkload(
        "[2, 21, 64, 64] fp32, focal",
        "row_pixels",
        (2, 21, 64, 64),
        F32,
        SoftmaxFocal,
        {"label_smoothing": 0.1},
    ),
    RowWorkload("[4, 300, 128] fp32", "row_pixels", (4, 300, 128), F32),
]

MULTILABEL = {"mode": "multilabel"}
REGION_WORKLOADS = [
    RegionWorkload("[2, 19, 96, 96] fp32", "region_rows", (2, 19, 96, 96), F32),
    RegionWorkload("[2, 19, 96, 96] bf16", "region_rows", (2, 19, 96, 96), BF16),
    RegionWorkload("[1, 150, 64, 64] fp32", "region_rows", (1, 150, 64, 64), F32),
    RegionWorkload(
        "[2, 19, 96, 96] fp32, ce", "region_rows", (2, 19, 96, 96), F32, "dice_cross_entropy_loss"
    ),
    RegionWorkload(
        "[2, 4, 32, 32, 32] fp32, ce",
        "region_rows",
        (2, 4, 32, 32, 32),
        F32,
        "dice_cross_entropy_loss",
        {"batch": True},
    ),
    RegionWorkload(
        "[2, 19, 96, 96] bf16, focal", "region_rows", (2, 19, 96, 96), BF16, "dice_focal_loss"
    ),
    RegionWorkload(
        "[2, 5, 96, 96] fp32, soft squared",
        "region_rows",
        (2, 5, 96, 96),
        F32,
        "dice_loss",
        {"squared": True},
        "soft",
    ),
    RegionWorkload(
        "[2, 19, 96, 96] fp64", "region_rows", (2, 19, 96, 96), F64, "dice_cross_entropy_loss"
    ),
    RegionWorkload(
        "[2, 3, 160, 160] fp32, bool",
        "region_elements",
        (2, 3, 160, 160),
        F32,
        "dice_loss",
        MULTILABEL,
        "bool",
    ),
    RegionWorkload(
        "[2, 3, 160, 160] bf16, bce",
        "region_elements",
        (2, 3, 160, 160),
        BF16,
        "dice_cross_entropy_loss",
        MULTILABEL,
        "bool",
    ),
    RegionWorkload(
        "[2, 3, 161, 161] fp32, focal",
        "region_elements",
        (2, 3, 161, 161),
        F32,
        "dice_focal_loss",
        MULTILABEL,
        "soft",
    ),
    RegionWorkload(
        "[8, 1, 160, 160] fp32, plain",
        "region_elements",
        (8, 1, 160, 160),
        F32,
        "dice_loss",
        {**MULTILABEL, "from_logits": False, "batch": True},
        "bool",
    ),
]


MINING_WORKLOADS = [
    MiningWorkload(
        "[2, 19, 192, 192] fp32, topk", "row_pixels", (2, 19, 192, 192), F32, "topk", 0.1
    ),
    MiningWorkload(
        "[2, 19, 192, 192] bf16, topk", "row_pixels", (2, 19, 192, 192), BF16, "topk", 0.1
    ),
    MiningWorkload(
        "[2, 19, 192, 192] fp32, ohem", "row_pixels", (2, 19, 192, 192), F32, "ohem", 0.2
    ),
    MiningWorkload("[40000, 19] fp32, topk", "row_tile", (40000, 19), F32, "topk", 0.1),
    MiningWorkload("[900, 2000] fp32, topk", "row_block", (900, 2000), F32, "topk", 0.1),
    MiningWorkload("[4, 1, 320, 320] fp32, bce", "mined", (4, 1, 320, 320), F32, "balanced", 0.1),
    MiningWorkload("[4, 1, 320, 320] bf16, bce", "mined", (4, 1, 320, 320), BF16, "balanced", 0.1),
]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def _taken(module: ModuleType, workload: AnyWorkload, what: str, least: int) -> Traffic:
    kernels = module.counters()
    launched = [k for k in kernels if not k["name"].startswith("cudaMemset")]
    ways = [k[way] for k in kernels for way in ("read", "write")]
    return Traffic(
        workload,
        what,
        launches=sum(k["launches"] for k in launched),
        moved=sum(way["unique_bytes"] for way in ways),
        least=least,
        written=sum(k["write"]["bytes"] for k in kernels),
        sectors=sum(way["sectors"] for way in ways),
        full_sectors=sum(way["full_sectors"] for way in ways),
        atomics=sum(sum(k["atomics"].values()) for k in kernels),
        float_atomics=sum(k["float_atomics"] for k in kernels),
        blocks=max(k["blocks"] for k in kernels),
        kernels=tuple(k["name"] for k in launched),
    )


def _measure_regions(module: ModuleType, workload: RegionWorkload) -> list[Traffic]:
    """Forward and backward; the one schedule there is."""
    x = workload.input()
    module.configure(count=True, race_check=False, seed=0)
    module.reset_counters()
    kernel = workload.kernel(module, x)
    loss, scale, slopes = kernel.forward()
    # Of softmax regions alone a row's third number stays unused.
    saved = kernel.saved if kernel.saved is None or kernel.joined else kernel.saved[:2]
    small = (loss, scale, slopes)
    least = _bytes(kernel.input, kernel.target, saved, *small)
    passes = [_taken(module, workload, "forward", least)]
    module.reset_counters()
    grad = kernel.backward(torch.ones((), dtype=kernel.dtype), scale, slopes)
    least = _bytes(kernel.input, kernel.target, saved, grad, *small)
    return [*passes, _taken(module, workload, "backward", least)]


def _measure_mining(module: ModuleType, workload: MiningWorkload) -> list[Traffic]:
    """Forward and backward. Marks: written once and read twice, then once."""
    module.configure(count=True, race_check=False, seed=0)
    kernel = workload.kernel(module)
    x, target = kernel.input, kernel.target
    module.reset_counters()
    forward = kernel.forward()
    marks = forward.marks
    passes = [_taken(module, workload, "forward", _bytes(x, target, marks, marks, marks))]
    module.reset_counters()
    grad = kernel.backward(torch.ones((), dtype=kernel.dtype), forward)
    kept = int(workload.kept * _bytes(x))
    # Labels of rows are read all, targets of elements as their logits.
    labels = _bytes(target) if target.dim() < x.dim() else int(workload.kept * _bytes(target))
    least = kept + labels + _bytes(marks, grad)
    return [*passes, _taken(module, workload, "backward", least)]


def measure(module: ModuleType, workload: AnyWorkload) -> list[Traffic]:
    """Both gradient schedules of one workload: forward, backward; forward with gradient, its scaling."""
    if isinstance(workload, RegionWorkload):
        return _measure_regions(module, workload)
    if isinstance(workload, MiningWorkload):
        return _measure_mining(module, workload)
    x = workload.input()
    kernel = workload.kernel(module, x)
    given = (kernel.target, workload.options.get("weight"))
    upstream = torch.ones((), dtype=kernel.dtype)
    module.configure(count=True, race_check=False, seed=3)
    passes = []

    module.reset_counters()
    loss, scale, _ = kernel.forward(with_grad=False)
    saved = kernel.saved
    passes.append(_taken(module, workload, "forward", _bytes(x, *given, loss, saved)))
    module.reset_counters()
    grad = kernel.backward(upstream, scale)
    passes.append(_taken(module, workload, "backward", _bytes(x, *given, grad, saved)))

    module.reset_counters()
    loss, scale, written = kernel.forward(with_grad=True)
    assert written is not None
    least = _bytes(x, *given, loss, written)
    passes.append(_taken(module, workload, "forward+grad", least))
    module.reset_counters()
    kernel.scaled(written, upstream, scale)
    # Nothing moves where the factor is 1; a float16 mean is not prescaled, so all of it does.
    not_one = workload.dtype == torch.float16 and workload.reduction == "mean"
    passes.append(_taken(module, workload, "scale", 2 * _bytes(written) if not_one else 0))
    return passes
