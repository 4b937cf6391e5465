"""The region losses by other hands' formulas, and by worked numbers.

The formulas of MONAI and segmentation-models-pytorch are written out here; the packages themselves are
compared in the benchmark. docs/recipes.md says which of our options give theirs.
"""

from __future__ import annotations

import math
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from fusedloss import (
    dice_cross_entropy_loss,
    dice_focal_loss,
    dice_loss,
    generalized_dice_loss,
    jaccard_loss,
    tversky_loss,
)
from torch import Tensor

each_backend = pytest.mark.parametrize("backend", ["native", "reference"])


def example(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C, ...]`` in float64 and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    return x, torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """``[N, C, ...]``."""
    return F.one_hot(target, classes).movedim(-1, 1).double()


def monai_dice(
    p: Tensor,
    t: Tensor,
    *,
    include_background: bool = True,
    squared_pred: bool = False,
    jaccard: bool = False,
    batch: bool = False,
    weight: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
) -> Tensor:
    """monai.losses.DiceLoss(reduction="none"), of probabilities."""
    if not include_background:
        p, t = p[:, 1:], t[:, 1:]
    axes = [0] * batch + list(range(2, p.dim()))
    intersection = torch.sum(t * p, axes)
    ground = torch.sum(t**2 if squared_pred else t, axes)
    predicted = torch.sum(p**2 if squared_pred else p, axes)
    denominator = ground + predicted
    if jaccard:
        denominator = 2.0 * (denominator - intersection)
    f = 1.0 - (2.0 * intersection + smooth_nr) / (denominator + smooth_dr)
    return f if weight is None else f * weight


MONAI: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "defaults": ({}, dice_loss, {}),
    "no background": (
        {"include_background": False, "batch": True},
        dice_loss,
        {"include_background": False, "batch": True},
    ),
    "squared": (
        {"squared_pred": True, "smooth_nr": 0.3, "smooth_dr": 0.7},
        dice_loss,
        {"squared": True, "smooth": (0.3, 0.7)},
    ),
    # Twice numerator and denominator: half of what is added.
    "jaccard": (
        {"jaccard": True, "smooth_nr": 1.0, "smooth_dr": 1.0},
        jaccard_loss,
        {"smooth": 0.5},
    ),
    "jaccard squared": (
        {"jaccard": True, "squared_pred": True},
        jaccard_loss,
        {"squared": True, "smooth": 5e-6},
    ),
}


@each_backend
@pytest.mark.parametrize("name", MONAI)
def test_monais_dice(name: str, backend: str) -> None:
    theirs, ours, options = MONAI[name]
    x, target = example(3, 5, 7, 6)
    hot = one_hot(target, 5)
    w = torch.linspace(0.2, 1, 5, dtype=torch.float64)
    skipped = 0 if theirs.get("include_background", True) else 1
    with fusedloss.backend(backend):
        got = ours(x, target, reduction="none", weight=w, **options)
        many = ours(x, hot, mode="multilabel", reduction="none", **options)
    expected = monai_dice(torch.softmax(x, 1), hot, weight=w[skipped:], **theirs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(
        many, monai_dice(torch.sigmoid(x), hot, **theirs), rtol=1e-10, atol=1e-13
    )


@each_backend
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    ("w_type", "weight_of"),
    [
        ("square", lambda t: torch.reciprocal(t * t)),
        ("simple", torch.reciprocal),
        ("uniform", torch.ones_like),
    ],
)
def test_monais_generalized_dice(w_type: str, weight_of: Any, batch: bool, backend: str) -> None:
    x, target = example(2, 19, 5)  # more classes than pixels
    p, t = torch.softmax(x, 1), one_hot(target, 19)
    axes = [0, 2] if batch else [2]
    intersection, ground, predicted = ((v).sum(axes) for v in (t * p, t, p))
    w = weight_of(ground)
    infinite = torch.isinf(w)
    w[infinite] = 0.0
    w = w + infinite * w.amax(-1, keepdim=True)
    numerator = 2.0 * (intersection * w).sum(-1) + 1e-5
    expected = 1.0 - numerator / (((ground + predicted) * w).sum(-1) + 1e-5)
    with fusedloss.backend(backend):
        got = generalized_dice_loss(x, target, weighting=w_type, batch=batch)
    torch.testing.assert_close(got, expected.mean(), rtol=1e-10, atol=0)


@each_backend
def test_monais_tversky_and_dice_ce(backend: str) -> None:
    x, target = example(2, 4, 5, 3, 3)
    p, t = torch.softmax(x, 1), one_hot(target, 4)
    axes = [2, 3, 4]
    tp, fp, fn = (p * t).sum(axes), (p * (1 - t)).sum(axes), ((1 - p) * t).sum(axes)
    expected = 1 - (tp + 1e-5) / (tp + 0.3 * fp + 0.7 * fn + 1e-5)
    w = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    both = 0.5 * monai_dice(p, t, weight=w).mean()
    both = both + 2 * F.cross_entropy(x, target, w, label_smoothing=0.1)
    binary, label = x[:, :1], t[:, :1]
    bce = F.binary_cross_entropy_with_logits(binary, label)
    with fusedloss.backend(backend):
        got = tversky_loss(x, target, alpha=0.3, beta=0.7, reduction="none")
        joined = dice_cross_entropy_loss(
            x,
            target,
            **{"weight": w, "class_weight": w, "label_smoothing": 0.1},
            **{"dice_weight": 0.5, "ce_weight": 2},
        )
        single = dice_cross_entropy_loss(binary, label, mode="binary")
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(joined, both, rtol=1e-10, atol=0)
    plain = monai_dice(torch.sigmoid(binary), label).mean()
    torch.testing.assert_close(single, plain + bce, rtol=1e-10, atol=0)


def smp_tversky(
    p: Tensor, t: Tensor, alpha: float, beta: float, smooth: float, mask: Tensor | None = None
) -> Tensor:
    """segmentation_models_pytorch's soft_tversky_score over the whole batch, of each class."""
    if mask is not None:
        p, t = p * mask, t * mask
    p, t = p.flatten(2), t.flatten(2)
    tp = (p.sum((0, 2)) + t.sum((0, 2)) - (p - t).abs().sum((0, 2))) / 2
    fp, fn = p.sum((0, 2)) - tp, t.sum((0, 2)) - tp
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


@each_backend
def test_segmentation_models_pytorchs_losses(backend: str) -> None:
    x, target = example(3, 5, 7, 6)
    p, t = torch.softmax(x, 1), one_hot(target, 5)
    ignored = target.clone()
    ignored[torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
    mask = (ignored != 255).unsqueeze(1)
    few, labels = example(2, 19, 5)
    present = one_hot(labels, 19).sum((0, 2)) > 0
    of_few = 1 - smp_tversky(torch.softmax(few, 1), one_hot(labels, 19), 0.5, 0.5, 0)
    with fusedloss.backend(backend):
        pairs = [
            (dice_loss(x, target, batch=True, smooth=0), 1 - smp_tversky(p, t, 0.5, 0.5, 0)),
            # Their smooth stands beside I, ours beside 2 I.
            (dice_loss(x, target, batch=True, smooth=2), 1 - smp_tversky(p, t, 0.5, 0.5, 1)),
            (
                dice_loss(x, target, batch=True, smooth=0, log=True),
                -torch.log(smp_tversky(p, t, 0.5, 0.5, 0)),
            ),
            (jaccard_loss(x, target, batch=True, smooth=0.5), 1 - smp_tversky(p, t, 1, 1, 0.5)),
            (
                tversky_loss(x, target, batch=True, smooth=0, alpha=0.2, beta=0.8),
                1 - smp_tversky(p, t, 0.2, 0.8, 0),
            ),
            (
                dice_loss(x, ignored, batch=True, smooth=0, ignore_index=255),
                1 - smp_tversky(p, t, 0.5, 0.5, 0, mask),
            ),
            # A class without a pixel has loss 0 and stays in their mean.
            (
                dice_loss(few, labels, batch=True, smooth=0, absent="skip", reduction="sum") / 19,
                torch.where(present, of_few, 0.0),
            ),
        ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected.mean(), rtol=1e-9, atol=0)


@each_backend
def test_worked_numbers(backend: str) -> None:
    # Two classes, p of class 1 is 3/4 and 1/4; the first pixel is of class 1, the second of class 0.
    x = torch.tensor([[[0.0, 0.0], [math.log(3), -math.log(3)]]], dtype=torch.float64)
    target = torch.tensor([[1, 0]])
    # Class 0: I = 3/4, P = 1/4 + 3/4, T = 1, and class 1 the same.
    with fusedloss.backend(backend):
        assert float(dice_loss(x, target, smooth=0)) == pytest.approx(1 - 2 * 0.75 / 2)
        assert float(jaccard_loss(x, target, smooth=0)) == pytest.approx(1 - 0.75 / 1.25)
        squares = 2 * (9 / 16 + 1 / 16) / 2 + 1
        expected = 1 - 2 * 0.75 / squares
        assert float(dice_loss(x, target, smooth=0, squared=True)) == pytest.approx(expected)
        assert float(dice_loss(x, target, smooth=1)) == pytest.approx(1 - 2.5 / 3)
        assert float(dice_loss(x, target, smooth=(0, 1))) == pytest.approx(1 - 1.5 / 3)
        assert float(dice_loss(x, target, smooth=0, log=True)) == pytest.approx(-math.log(0.75))
        gamma = tversky_loss(x, target, smooth=0, gamma=0.75)
        assert float(gamma) == pytest.approx(0.25**0.75)
        ce = -math.log(0.75)
        assert float(dice_cross_entropy_loss(x, target, smooth=0)) == pytest.approx(0.25 + ce)
        focal = dice_focal_loss(x, target, smooth=0, gamma=2)
        assert float(focal) == pytest.approx(0.25 + 0.25**2 * ce)


@each_backend
def test_whole_batch_dice_of_probabilities_and_heat_maps(backend: str) -> None:
    # The form of many text detectors: 1 - 2 sum(p g m) / (sum(p m) + sum(g m) + 1e-6).
    p = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    g = (p.roll(1, 0) > 0.6).double()
    mask = p.roll(2, 0) > 0.1
    expected = 1 - 2 * (p * g * mask).sum() / ((p * mask).sum() + (g * mask).sum() + 1e-6)
    how: dict[str, Any] = {"from_logits": False, "batch": True, "smooth": (0, 1e-6)}
    with fusedloss.backend(backend):
        got = dice_loss(p, torch.where(mask, g, -1), mode="binary", ignore_index=-1, **how)
        maps = torch.exp(-((torch.arange(12) - 5.5) ** 2) / 8).expand(4, 3, 12, 12).double()
        heat = dice_loss(p.expand(4, 3, 12, 12), maps, mode="multilabel", squared=True, **how)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    top, bottom = 2 * 3 * (p * maps[:, :1]).sum(), 3 * (p.square() + maps[:, :1].square()).sum()
    torch.testing.assert_close(heat, 1 - top / (bottom + 3e-6), rtol=1e-12, atol=1e-7)


@each_backend
def test_alpha_is_the_price_of_false_positives(backend: str) -> None:
    # Everything is called class 1, which is right for one pixel of four.
    x = torch.tensor([[[-9.0] * 4, [9.0] * 4]], dtype=torch.float64)
    target = torch.tensor([[1, 0, 0, 0]])
    with fusedloss.backend(backend):
        cheap = tversky_loss(x, target, alpha=0.1, beta=0.9, smooth=0, reduction="none")[0]
        dear = tversky_loss(x, target, alpha=0.9, beta=0.1, smooth=0, reduction="none")[0]
    # Class 1: one true positive, three false positives.
    assert float(cheap[1]) == pytest.approx(1 - 1 / 1.3, rel=1e-6)
    assert float(dear[1]) == pytest.approx(1 - 1 / 3.7, rel=1e-6)
    assert dear[1] > cheap[1]
