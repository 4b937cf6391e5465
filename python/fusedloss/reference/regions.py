"""Region losses: dice, Jaccard, Tversky, generalized dice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._ops import REDUCTION_NAMES
from .._regions import (
    JOINED,
    NOTHING_IGNORED,
    WEIGHTINGS,
    RegionArguments,
    SoftmaxRegionArguments,
    with_channels,
)
from .common import along_classes, arithmetic, labels
from .cross_entropy import cross_entropy
from .sigmoid_focal import sigmoid_focal_loss
from .softmax_focal import softmax_focal_loss

# (I, P, T) of regions -> numerator and denominator of their ratios, nothing added yet.
Ratio = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _dice(i: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * i, p + t


def _jaccard(i: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return i, p + t - i


@dataclass(frozen=True)
class _How:
    """The options that all share, for an input with batch and class dimensions."""

    function: str
    activation: str  # softmax | sigmoid | none
    smooth: tuple[float, float] = (1e-5, 1e-5)
    squared: bool = False
    batch: bool = False
    first_class: int = 0
    ignore_index: int = NOTHING_IGNORED
    weight: Tensor | None = None
    skip_absent: bool = False
    log: bool = False
    reduction: str = "mean"
    exponent: float = 1.0
    weighting: str | None = None


def _one_hot(how: _How, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels as 0 and 1, the valid ones, and those out of range as NaN in a tensor of ones."""
    label, valid, bad = labels(how.function, x, target, how.ignore_index)
    classes = along_classes(torch.arange(x.size(1), device=x.device), label, 1, x.dim())
    hot = (classes == label.unsqueeze(1)).to(x.dtype)
    return hot, valid.unsqueeze(1), torch.where(bad, torch.nan, 1.0).to(x.dtype).unsqueeze(1)


def _sums(how: _How, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """I, P and T ``[N, C]``, or ``[1, C]`` of the whole batch."""
    x = arithmetic(input)
    poison = None
    if target.dim() < x.dim():
        t, valid, poison = _one_hot(how, x, target)
    else:
        if not target.is_floating_point():
            target = target.long()  # a uint8 must not be compared with a negative number as uint8
        t = target.to(x.dtype)
        # A row of soft targets has no label that could say that it is ignored.
        elements = how.activation != "softmax" and how.ignore_index != NOTHING_IGNORED
        valid = target != how.ignore_index if elements else torch.ones_like(t, dtype=torch.bool)
    x = torch.where(valid, x, 0.0)
    p = {"softmax": lambda x: torch.softmax(x, 1), "sigmoid": torch.sigmoid, "none": lambda x: x}[
        how.activation
    ](x)
    p, t = torch.where(valid, p, 0.0), torch.where(valid, t, 0.0)
    if poison is not None:
        p = p * poison

    def over_regions(values: Tensor) -> Tensor:
        by_sample = values.unsqueeze(-1).flatten(2).sum(-1)
        return by_sample.sum(0, keepdim=True) if how.batch else by_sample

    mass, truth = (p.square(), t.square()) if how.squared else (p, t)
    return over_regions(p * t), over_regions(mass), over_regions(truth)


def _loss_of_ratio(how: _How, numerator: Tensor, denominator: Tensor, left: Tensor) -> Tensor:
    """A loss for each ratio; 0 where nothing is left to make one."""
    s0, s1 = how.smooth
    ratio = torch.where(left, numerator + s0, 1.0) / torch.where(left, denominator + s1, 1.0)
    if how.log:
        return torch.where(left, -torch.log(ratio), 0.0)
    off = 1 - ratio
    if how.exponent != 1:
        above = ~(off <= 0)  # NaN included
        off = torch.where(above, torch.where(above, off, 1.0) ** how.exponent, 0.0)
    return torch.where(left, off, 0.0)


def _generalized_weight(truth: Tensor, left: Tensor, weighting: str) -> Tensor:
    """w_c of each region: an infinite one is replaced by the group's largest finite one, or 0."""
    if weighting == "uniform":
        return left.to(truth.dtype)
    present = truth > 0
    w = torch.where(present, truth, 1.0) ** (-1 if weighting == "simple" else -2)
    largest = torch.where(present & left, w, 0.0).amax(1, keepdim=True)
    return torch.where(left, torch.where(present, w, largest), 0.0)


def _region_loss(how: _How, input: Tensor, target: Tensor, ratio: Ratio) -> Tensor:
    """The loss of inputs ``[N, C, ...]``."""
    if input.numel() == 0:  # nothing at all has loss 0
        how = _How(**{**vars(how), "smooth": (1.0, 1.0)})
    i, p, t = (s[:, how.first_class :] for s in _sums(how, input, target))
    left = t != 0 if how.skip_absent else torch.ones_like(t, dtype=torch.bool)
    weight = torch.ones_like(t)
    if how.weight is not None:
        weight = how.weight.to(t.dtype)[how.first_class :].expand_as(t)
    numerator, denominator = ratio(i, p, t)
    if how.weighting is None:
        loss = _loss_of_ratio(how, numerator, denominator, left)
        loss = torch.where(left, loss * weight, 0.0)
        loss = loss.squeeze(0) if how.batch else loss
        left = left.squeeze(0) if how.batch else left
    else:
        w = _generalized_weight(t, left, how.weighting) * weight
        left = left.any(1)
        loss = _loss_of_ratio(how, (w * numerator).sum(1), (w * denominator).sum(1), left)
    if how.reduction == "none":
        return loss
    total = loss.sum()
    return total if how.reduction == "sum" else total / left.sum().clamp(min=1)


def _joined_cross_entropy(
    how: _How,
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    smoothing: str,
) -> Tensor:
    """Cross entropy, binary for elements; its mean over nothing is 0."""
    if how.activation == "sigmoid":
        return _joined_focal(how, input, target, None, 0.0, label_smoothing)
    total = cross_entropy(
        input,
        target,
        class_weight,
        ignore_index=how.ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
        smoothing=smoothing,
    )
    if how.reduction == "sum":
        return total
    if target.dim() == input.dim():
        return total / max(input.numel() // input.size(1), 1)
    label, valid, _ = labels(how.function, input, target, how.ignore_index)
    counted = valid.to(total.dtype)
    if class_weight is not None:
        counted = torch.where(valid, class_weight.to(total.dtype)[label], 0.0)
    return total / torch.where(valid.any(), counted.sum(), 1.0)


def _joined_focal(
    how: _How,
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    label_smoothing: float,
) -> Tensor:
    options: dict[str, Any] = {
        "alpha": alpha,
        "gamma": gamma,
        "ignore_index": how.ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": how.reduction,
    }
    if how.activation == "softmax":
        return softmax_focal_loss(input, target, **options)
    return sigmoid_focal_loss(input.movedim(1, -1), target.movedim(1, -1), **options)


def _shared(
    function: str,
    input: Tensor,
    target: Tensor,
    *,
    mode: str = "multiclass",
    from_logits: bool = True,
    smooth: float | tuple[float, float] = 1e-5,
    squared: bool = False,
    batch: bool = False,
    include_background: bool = True,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    absent: str = "keep",
    log: bool = False,
    reduction: str = "mean",
) -> tuple[_How, Tensor, Tensor]:
    """The shared options, and both tensors with batch and class dimensions."""
    activation = "none" if not from_logits else "softmax" if mode == "multiclass" else "sigmoid"
    input, target = with_channels(input, target, mode)
    soft_rows = mode == "multiclass" and target.dim() == input.dim()
    how = _How(
        function,
        activation,
        smooth=smooth if isinstance(smooth, tuple) else (smooth, smooth),
        squared=squared,
        batch=batch,
        first_class=0 if include_background else 1,
        ignore_index=NOTHING_IGNORED if ignore_index is None or soft_rows else ignore_index,
        weight=weight,
        skip_absent=absent == "skip",
        log=log,
        reduction=reduction,
    )
    return how, input, target


def dice_loss(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Dice loss; see :func:`fusedloss.dice_loss`."""
    how, input, target = _shared("dice_loss", input, target, **options)
    return _region_loss(how, input, target, _dice)


def jaccard_loss(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Jaccard loss; see :func:`fusedloss.jaccard_loss`."""
    how, input, target = _shared("jaccard_loss", input, target, **options)
    return _region_loss(how, input, target, _jaccard)


def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    **options: Any,
) -> Tensor:
    """Tversky loss; see :func:`fusedloss.tversky_loss`."""
    how, input, target = _shared("tversky_loss", input, target, **options)
    how = _How(**{**vars(how), "exponent": gamma})

    def tversky(i: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        false_positives, false_negatives = p - i, t - i
        return i, i + alpha * false_positives + beta * false_negatives

    return _region_loss(how, input, target, tversky)


def generalized_dice_loss(
    input: Tensor, target: Tensor, *, weighting: str = "square", **options: Any
) -> Tensor:
    """Generalized dice loss; see :func:`fusedloss.generalized_dice_loss`."""
    how, input, target = _shared("generalized_dice_loss", input, target, **options)
    how = _How(**{**vars(how), "weighting": weighting})
    return _region_loss(how, input, target, _dice)


def dice_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    **options: Any,
) -> Tensor:
    """Dice and cross entropy; see :func:`fusedloss.dice_cross_entropy_loss`."""
    how, input, target = _shared("dice_cross_entropy_loss", input, target, **options)
    dice = _region_loss(how, input, target, _dice)
    ce = _joined_cross_entropy(how, input, target, class_weight, label_smoothing, smoothing)
    return dice_weight * dice + ce_weight * ce


def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    dice_weight: float = 1.0,
    focal_weight: float = 1.0,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    **options: Any,
) -> Tensor:
    """Dice and focal loss; see :func:`fusedloss.dice_focal_loss`."""
    how, input, target = _shared("dice_focal_loss", input, target, **options)
    dice = _region_loss(how, input, target, _dice)
    focal = _joined_focal(how, input, target, alpha, gamma, label_smoothing)
    return dice_weight * dice + focal_weight * focal


def region_loss(
    input: Tensor,
    target: Tensor,
    region_weight: Tensor | None,
    side: Tensor | None,
    arguments: RegionArguments,
) -> Tensor:
    """Any loss of the family, described as the operators are told it."""
    a = arguments
    softmax = isinstance(a, SoftmaxRegionArguments)
    how = _How(
        "region_loss",
        "softmax" if isinstance(a, SoftmaxRegionArguments) else ("none", "sigmoid")[a.activation],
        smooth=(a.smooth_numerator, a.smooth_denominator),
        squared=a.squared,
        batch=a.batch,
        first_class=a.first_class,
        ignore_index=a.ignore_index,
        weight=region_weight,
        skip_absent=a.skip_absent,
        log=a.log,
        reduction=REDUCTION_NAMES[a.reduction],
        exponent=a.gamma,
        weighting=WEIGHTINGS[a.weighting - 1] if a.weighting else None,
    )

    def ratio(i: Tensor, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return a.gain * i, a.by_overlap * i + a.by_mass * p + a.by_truth * t

    loss = a.factor * _region_loss(how, input, target, ratio)
    if JOINED[a.joined] == "cross_entropy":
        others = isinstance(a, SoftmaxRegionArguments) and a.smooth_others
        smoothing = "others" if others else "uniform"
        args = (how, input, target, side, a.label_smoothing, smoothing)
        return loss + a.joined_factor * _joined_cross_entropy(*args)
    if JOINED[a.joined] == "focal":
        off = not softmax and a.alpha_value < 0
        alpha = side if side is not None else None if off else a.alpha_value
        focal = _joined_focal(how, input, target, alpha, a.focal_gamma, a.label_smoothing)
        return loss + a.joined_factor * focal
    return loss
