"""The workloads: one row of `CASES` each.

A row says what the inputs are, who contends, and what is right; the harness adds `torch.compile`
of the eager form and, where a row names no other, the yardstick `logits.clone()`. A new loss adds
rows here, its forms in a `baselines_<family>.py`, its inputs in inputs.py where none of them fits,
and its bars in bars.py.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence

import torch

from . import baselines_cross_entropy as cross_entropy
from . import baselines_dice as dice
from . import baselines_linear as linear
from . import baselines_margin_softmax as margin_softmax
from . import baselines_mining as mining
from . import baselines_sigmoid_focal as sigmoid_focal
from . import baselines_smooth_l1 as smooth_l1
from . import baselines_softmax_focal as softmax_focal
from . import inputs
from .results import PRODUCTS
from .workload import Case, OtherFunction, Series

FP32, BF16 = torch.float32, torch.bfloat16
SMOOTHING = 0.1


def _focal(
    name: str,
    shape: tuple[int, ...],
    *,
    index: bool,
    dtype: torch.dtype = FP32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
    quick: bool = False,
) -> Case:
    return Case(
        name,
        f"sigmoid focal, {'class-index' if index else 'dense'} targets",
        shape,
        dtype,
        setup=inputs.focal_index if index else inputs.focal_dense,
        contenders=sigmoid_focal.index if index else sigmoid_focal.dense,
        reference=sigmoid_focal.reference,
        series=series,
        gpu_shape=gpu_shape,
        quick=quick,
    )


def _boxes(name: str, rows: int, *, dtype: torch.dtype = FP32, series: Series = "large") -> Case:
    return Case(
        name,
        f"smooth L1 of boxes, beta {smooth_l1.BETA:.3g}, weights",
        (rows, 4),
        dtype,
        setup=inputs.boxes,
        contenders=smooth_l1.contenders,
        reference=smooth_l1.reference,
        series=series,
    )


def _cross_entropy(
    name: str,
    shape: tuple[int, ...],
    *,
    smoothing: float = 0.0,
    ignore_index: int = cross_entropy.IGNORE_NOTHING,
    dtype: torch.dtype = FP32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
    quick: bool = False,
) -> Case:
    return Case(
        name,
        f"cross entropy, label smoothing {smoothing:g}" if smoothing else "cross entropy",
        shape,
        dtype,
        setup=inputs.classification if len(shape) == 2 else inputs.segmentation,
        contenders=functools.partial(cross_entropy.contenders, smoothing, ignore_index),
        reference=cross_entropy.reference(smoothing, ignore_index),
        gpu_contenders=functools.partial(cross_entropy.gpu_contenders, smoothing, ignore_index)
        if len(shape) == 2
        else dict,
        series=series,
        class_dim=1,
        gpu_shape=gpu_shape,
        quick=quick,
    )


def _softmax_focal(
    name: str,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = FP32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
) -> Case:
    smp = OtherFunction(softmax_focal.smp_reference, softmax_focal.SMP_COMPUTES)
    return Case(
        name,
        f"softmax focal, gamma {softmax_focal.GAMMA:g}",
        shape,
        dtype,
        setup=inputs.classification if len(shape) == 2 else inputs.segmentation,
        contenders=softmax_focal.contenders,
        reference=softmax_focal.reference,
        series=series,
        class_dim=1,
        gpu_shape=gpu_shape,
        other_functions={softmax_focal.SMP: smp},
    )


def _arcface(
    name: str,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = FP32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
    quick: bool = False,
) -> Case:
    insightface = OtherFunction(
        margin_softmax.reference(straight_through=True), margin_softmax.INSIGHTFACE_COMPUTES
    )
    return Case(
        name,
        f"ArcFace on cosines, margin {margin_softmax.MARGIN:g}",
        shape,
        dtype,
        setup=inputs.cosines,
        contenders=margin_softmax.contenders,
        reference=margin_softmax.reference(),
        series=series,
        gpu_shape=gpu_shape,
        quick=quick,
        other_functions={margin_softmax.INSIGHTFACE: insightface},
    )


def _linear_arcface(
    name: str, shape: tuple[int, ...], *, gpu_shape: tuple[int, ...] | None = None
) -> Case:
    return Case(
        name,
        f"{inputs.EMBEDDING} features, linear layer and ArcFace, margin {margin_softmax.MARGIN:g}",
        shape,
        FP32,
        setup=inputs.features,
        contenders=linear.contenders,
        reference=linear.reference,
        gpu_shape=gpu_shape,
        yardsticks={PRODUCTS: linear.products},
    )


def _dice(
    name: str,
    shape: tuple[int, ...],
    form: dice.Form,
    *,
    dtype: torch.dtype = FP32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
    quick: bool = False,
) -> Case:
    over = "the batch" if form.batch else "each sample"
    return Case(
        name,
        f"dice over {over}{' and cross entropy' if form.joined else ''}",
        shape,
        dtype,
        setup=inputs.volumes if len(shape) == 5 else inputs.regions,
        contenders=form.contenders,
        reference=form.reference,
        series=series,
        class_dim=1,
        gpu_shape=gpu_shape,
        quick=quick,
        other_functions={"smp": OtherFunction(form.reference, dice.SMP_COMPUTES, dice.SMP_ALLOWED)},
    )


def _mined(
    name: str,
    shape: tuple[int, ...],
    hard: mining.Hard,
    *,
    dtype: torch.dtype = FP32,
    series: Series = "large",
    gpu_shape: tuple[int, ...] | None = None,
    quick: bool = False,
) -> Case:
    rule = f"p < {mining.THRESHOLD:g}, at least {hard.min_kept:,} pixels"
    return Case(
        name,
        f"hardest {hard.share:.0%} of the pixels" if hard.share else f"OHEM, {rule}",
        shape,
        dtype,
        setup=functools.partial(inputs.mined, share=hard.share),
        contenders=hard.contenders,
        reference=hard.reference,
        series=series,
        class_dim=1,
        gpu_shape=gpu_shape,
        quick=quick,
        fullgraph=False,
    )


def _text(name: str, shape: tuple[int, ...], *, series: Series = "large") -> Case:
    return Case(
        name,
        f"balanced binary cross entropy, {mining.RATIO:g} negatives a positive",
        shape,
        FP32,
        setup=inputs.text,
        contenders=mining.balanced_contenders,
        reference=mining.balanced_reference,
        series=series,
        class_dim=1,
        fullgraph=False,
    )


RETINANET = (2, 76_725, 80)
RETINANET_GPU = (16, 201_600, 80)
IMAGENET, IMAGENET_21K = (8_192, 1_000), (1_024, 21_841)
CITYSCAPES = (2, 19, 512, 1_024)
CITYSCAPES_GPU = (8, 19, 1_024, 2_048)
NNUNET = (2, 4, 128, 128, 128)
STREET_DICE = dice.Form(batch=True, smooth=1.0, ignores=True)
STREET_DICE_CE = dice.Form(batch=True, smooth=1.0, ignores=True, joined=True)
VOLUME_DICE_CE = dice.Form(batch=False, smooth=1e-5, ignores=False, joined=True)
TEXT = (8, 1, 640, 640)
FACES, FACES_ODD = (256, 100_000), (128, 93_431)
FACES_GPU = (1_024, 1_000_000)
LINEAR, LINEAR_GPU = (512, 100_000), (1_024, 1_000_000)

_retinanet = functools.partial(_focal, shape=RETINANET, gpu_shape=RETINANET_GPU)
_smooth = functools.partial(_cross_entropy, smoothing=SMOOTHING)
_street = functools.partial(
    _cross_entropy, shape=CITYSCAPES, ignore_index=softmax_focal.IGNORE, gpu_shape=CITYSCAPES_GPU
)
_street_dice = functools.partial(
    _dice, shape=CITYSCAPES, form=STREET_DICE, gpu_shape=CITYSCAPES_GPU
)
_street_dice_ce = functools.partial(
    _dice, shape=CITYSCAPES, form=STREET_DICE_CE, gpu_shape=CITYSCAPES_GPU
)
_street_ohem = functools.partial(
    _mined, shape=CITYSCAPES, hard=mining.Hard(), gpu_shape=CITYSCAPES_GPU
)
_street_focal = functools.partial(_softmax_focal, shape=CITYSCAPES, gpu_shape=CITYSCAPES_GPU)

# fmt: off
CASES: tuple[Case, ...] = (
    _retinanet("retinanet-index-fp32", index=True, quick=True),
    _retinanet("retinanet-index-bf16", index=True, dtype=BF16, quick=True),
    _retinanet("retinanet-dense-fp32", index=False),
    _retinanet("retinanet-dense-bf16", index=False, dtype=BF16),
    _boxes("boxes-4000000x4-fp32", 4_000_000),
    _boxes("boxes-4000000x4-bf16", 4_000_000, dtype=BF16),
    _smooth("imagenet-ce-smooth-8192x1000-fp32", IMAGENET, quick=True),
    _smooth("imagenet-ce-smooth-8192x1000-bf16", IMAGENET, dtype=BF16, quick=True),
    _smooth("imagenet-ce-smooth-1024x21841-fp32", IMAGENET_21K),
    _smooth("imagenet-ce-smooth-1024x21841-bf16", IMAGENET_21K, dtype=BF16),
    _cross_entropy("imagenet-ce-8192x1000-fp32", IMAGENET),
    _cross_entropy("imagenet-ce-8192x1000-bf16", IMAGENET, dtype=BF16),
    _street("cityscapes-ce-fp32"),
    _street("cityscapes-ce-bf16", dtype=BF16),
    _street_focal("cityscapes-softmax-focal-fp32"),
    _street_focal("cityscapes-softmax-focal-bf16", dtype=BF16),
    _street_dice("cityscapes-dice-fp32", quick=True),
    _street_dice("cityscapes-dice-bf16", dtype=BF16),
    _street_dice_ce("cityscapes-dice-ce-fp32"),
    _street_dice_ce("cityscapes-dice-ce-bf16", dtype=BF16),
    _street_ohem("cityscapes-ohem-fp32", quick=True),
    _street_ohem("cityscapes-ohem-bf16", dtype=BF16),
    _mined("cityscapes-topk-fp32", CITYSCAPES, mining.Hard(share=0.1), gpu_shape=CITYSCAPES_GPU),
    _text("text-balanced-bce-fp32", TEXT),
    _dice("nnunet3d-dice-ce-fp32", NNUNET, VOLUME_DICE_CE),
    _arcface("faces-256x100000-fp32", FACES, gpu_shape=FACES_GPU),
    _arcface("faces-256x100000-bf16", FACES, gpu_shape=FACES_GPU, dtype=BF16),
    _arcface("faces-128x93431-fp32", FACES_ODD, quick=True),
    _arcface("faces-128x93431-bf16", FACES_ODD, dtype=BF16),
    _linear_arcface("linear-arcface-512x512x100000-fp32", LINEAR, gpu_shape=LINEAR_GPU),
    _focal("small-focal-index-256x80", (256, 80), index=True, series="small", quick=True),
    _focal("small-focal-dense-256x80", (256, 80), index=False, series="small"),
    _focal("small-focal-index-8x4", (8, 4), index=True, series="small"),
    _boxes("small-boxes-256x4", 256, series="small"),
    _smooth("small-ce-smooth-256x100", (256, 100), series="small"),
    _smooth("small-ce-smooth-8x10", (8, 10), series="small"),
    _softmax_focal("small-softmax-focal-256x20", (256, 20), series="small"),
    _dice("small-dice-256x4", (256, 4), STREET_DICE, series="small"),
    _dice("small-dice-ce-256x4", (256, 4), STREET_DICE_CE, series="small"),
    _mined("small-ohem-256x19", (256, 19), mining.Hard(min_kept=16), series="small"),
    _text("small-balanced-bce-1x1x32x32", (1, 1, 32, 32), series="small"),
    _arcface("small-arcface-256x100", (256, 100), series="small"),
    _arcface("small-arcface-8x100", (8, 100), series="small"),
    *(_focal(f"scaling-focal-{rows}x80", (rows, 80), index=True, series="scaling",
             quick=rows in (256, 4_096, 32_768))
      for rows in (16, 256, 4_096, 32_768, 262_144)),
    *(_smooth(f"scaling-ce-smooth-{rows}x1000", (rows, 1_000), series="scaling",
              quick=rows in (256, 2_048, 16_384))
      for rows in (16, 256, 2_048, 16_384, 65_536)),
    *(_dice(f"scaling-dice-ce-2x19x{side}x{side}", (2, 19, side, side), STREET_DICE_CE, series="scaling")
      for side in (32, 64, 256, 512, 1_024)),
    *(_arcface(f"scaling-arcface-{rows}x10000", (rows, 10_000), series="scaling")
      for rows in (1, 8, 64, 512, 4_096)),
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
