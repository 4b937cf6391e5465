"""NaN and infinite logits show in every loss where they show in eager, and nowhere else.

The value is the eager one, NaN in the same places. Where that is finite (classes masked with -inf) the
gradient is the eager one too. Elsewhere finite gradients are equal; what is NaN in one may be infinite in
the other, and a whole row NaN, since backward has formulas of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
from torch import Tensor

INF, NAN = math.inf, math.nan
CLASSES, SPOILT = 4, 1
# The row that is spoilt; its label is class 1.
ROWS = {
    "all -inf": [-INF, -INF, -INF, -INF],
    "all +inf": [INF, INF, INF, INF],
    "all NaN": [NAN, NAN, NAN, NAN],
    "+inf at the label": [0.0, INF, 1.0, -0.5],
    "+inf beside": [INF, 0.0, 1.0, -0.5],
    "-inf at the label": [0.0, -INF, 1.0, 0.5],
    "-inf beside": [-INF, 0.0, 1.0, 0.5],
    "only the label": [-INF, 0.5, -INF, -INF],
    "NaN at the label": [0.0, NAN, 1.0, 0.5],
    "NaN beside": [NAN, 0.0, 1.0, 0.5],
    "+inf and -inf": [INF, 0.0, -INF, 0.5],
}
LABELS = torch.tensor([0, 1, 2])
HOT = torch.nn.functional.one_hot(LABELS, CLASSES).float()


def logits(name: str, dtype: torch.dtype) -> Tensor:
    """Three rows, of which the second is spoilt."""
    return torch.tensor([[0.5, 1.0, -1.0, 0.25], ROWS[name], [2.0, 0.0, 1.0, -1.0]], dtype=dtype)


Call = Callable[..., Tensor]


def of_rows(function: str, **options: Any) -> Call:
    """Rows and labels."""
    loss = getattr(fusedloss, function)
    return lambda x, **more: loss(x, LABELS, **options, **more)


def of_elements(function: str, **options: Any) -> Call:
    """Elements and ones and zeros."""
    loss = getattr(fusedloss, function)
    return lambda x, **more: loss(x, HOT, **options, **more)


def of_pixels(function: str, **options: Any) -> Call:
    """The rows as pixels of one image."""
    loss = getattr(fusedloss, function)
    target = HOT.t()[None] if options.get("mode") == "multilabel" else LABELS[None]
    return lambda x, **more: loss(x.t()[None], target, **options, **more)


def of_features(function: str, **options: Any) -> Call:
    """The rows as features of a linear layer."""
    loss = getattr(fusedloss, function)
    weight = torch.eye(CLASSES) + 0.1
    return lambda x, **more: loss(x, weight.to(x.dtype), LABELS, **options, **more)


# A bad row has no effect on others.
ALONE = {
    "focal": of_rows("sigmoid_focal_loss"),
    "focal, elements": of_elements("sigmoid_focal_loss", alpha=None),
    "focal, gamma 0.5, smoothed": of_rows("sigmoid_focal_loss", gamma=0.5, label_smoothing=0.1),
    "focal, gamma 0": of_rows("sigmoid_focal_loss", gamma=0),
    "smooth l1": of_elements("smooth_l1_loss"),
    "l1": of_elements("l1_loss"),
    "cross entropy": of_rows("cross_entropy"),
    "weighted": of_rows("cross_entropy", weight=torch.tensor([0.5, 1.5, 1.0, 2.0])),
    "smoothed": of_rows("cross_entropy", label_smoothing=0.1, z_loss=0.1),
    "others": of_rows("cross_entropy", label_smoothing=0.1, smoothing="others"),
    "nll": of_rows("nll_loss"),
    "softmax focal": of_rows("softmax_focal_loss"),
    "softmax focal, gamma 0": of_rows("softmax_focal_loss", gamma=0),
    "softmax focal, smoothed": of_rows("softmax_focal_loss", gamma=0.5, label_smoothing=0.1),
    "arcface": of_rows("arcface_loss"),
    "arcface, easy": of_rows("arcface_loss", easy_margin=True),
    "cosface, smoothed": of_rows("cosface_loss", label_smoothing=0.1),
    "sphereface": of_rows("sphereface_loss"),
    "normface": of_rows("normface_loss"),
    "modified softmax": of_rows("modified_softmax_loss"),
    "straight through": of_rows("margin_softmax_loss", m2=0.3, gradient="straight_through"),
    "filtered": of_rows("margin_softmax_loss", m3=0.35, filter_threshold=0.3),
}
TOGETHER = {
    "linear cross entropy": of_features("linear_cross_entropy"),
    "linear margin": of_features("linear_margin_softmax_loss", m2=0.5),
    "ohem": of_rows("ohem_cross_entropy_loss", min_kept=2, threshold=0.3),
    "top-k": of_rows("topk_cross_entropy_loss", k=2),
    "balanced": of_elements("balanced_bce_loss"),
    "hard negatives": of_elements("hard_negative_mining_loss", dim=1),
    "dice": of_pixels("dice_loss"),
    "dice, elements": of_pixels("dice_loss", mode="multilabel"),
    "dice, squared": of_pixels("dice_loss", squared=True),
    "dice, log": of_pixels("dice_loss", log=True),
    "jaccard": of_pixels("jaccard_loss"),
    "jaccard, elements": of_pixels("jaccard_loss", mode="multilabel"),
    "tversky": of_pixels("tversky_loss", gamma=0.7),
    "tversky, elements": of_pixels("tversky_loss", mode="multilabel", gamma=0.7),
    "generalized dice": of_pixels("generalized_dice_loss"),
    "generalized dice, elements": of_pixels("generalized_dice_loss", mode="multilabel"),
    "dice and cross entropy": of_pixels("dice_cross_entropy_loss"),
    "dice and cross entropy, elements": of_pixels("dice_cross_entropy_loss", mode="multilabel"),
    "dice and focal": of_pixels("dice_focal_loss"),
    "dice and focal, elements": of_pixels("dice_focal_loss", mode="multilabel"),
}
CALLS = ALONE | TOGETHER
# No loss for each row or pixel.
COMPOUNDS = {name for name in CALLS if " and " in name}
# Its loss is 0 (1 - p_t, to any power) times infinity, NaN; only there the gradient is 0 in the kernels.
ZERO = {("softmax focal, smoothed", "only the label")}
# More than any plausible gradient: infinity times a number that stands for one.
HUGE = 1e28


def evaluate(name: str, x: Tensor, reduction: str, backend: str) -> tuple[Tensor, Tensor]:
    """(loss, gradient)."""
    leaf = x.clone().requires_grad_()
    with fusedloss.backend(backend):
        loss = CALLS[name](leaf, reduction=reduction)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def check(name: str, row: str, got: tuple[Tensor, Tensor], eager: tuple[Tensor, Tensor]) -> None:
    """Against eager, as the head of this file says."""
    half = eager[1].dtype == torch.bfloat16
    near = {"rtol": 2e-2, "atol": 1e-2} if half else {"rtol": 1e-5, "atol": 1e-6}
    what = f"{name}, {row}"
    torch.testing.assert_close(got[0], eager[0], equal_nan=True, rtol=1e-5, atol=1e-6, msg=what)
    finite = torch.isfinite(got[1]), torch.isfinite(eager[1])
    both = finite[0] & finite[1]
    torch.testing.assert_close(got[1][both], eager[1][both], **near, msg=what)
    if torch.isfinite(eager[0]).all():
        torch.testing.assert_close(got[1], eager[1], equal_nan=True, **near, msg=what)
    if (name, row) not in ZERO:
        hidden = finite[0] & (got[1].abs() < HUGE) & ~finite[1]
        assert not hidden.any(), f"{what}: gradient {got[1]}, eager {eager[1]}"
    if name in ALONE:
        others = [i for i in range(len(LABELS)) if i != SPOILT]
        assert finite[0][others].all(), what


@pytest.mark.parametrize("name", CALLS)
def test_bad_logits_show_as_in_eager(name: str) -> None:
    spoilt = 0
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16 and name.startswith("linear"):
            continue  # whose products round
        for row in ROWS:
            x = logits(row, dtype)
            for reduction in ["sum"] if name in COMPOUNDS else ["none", "sum"]:
                eager = evaluate(name, x, reduction, "reference")
                spoilt += not torch.isfinite(eager[0]).all()
                for schedule in ("recompute", "forward"):
                    with fusedloss.gradient_schedule(schedule):
                        check(name, row, evaluate(name, x, reduction, "native"), eager)
    assert spoilt  # else nothing was tested


@pytest.mark.parametrize("classes", [1, 3])
def test_a_margin_of_nothing_is_nan(classes: int) -> None:
    """As `F.cross_entropy` of such a row, from kernels and reference."""
    x = torch.full((2, classes), -INF)
    for backend in ("native", "reference"):
        with fusedloss.backend(backend):
            for function in (fusedloss.arcface_loss, fusedloss.cross_entropy):
                loss = function(x, torch.tensor([0, 0]), reduction="none")
                assert loss.isnan().all(), (backend, function)


def test_a_positive_of_which_nothing_is_left_has_an_infinite_loss() -> None:
    x, target = torch.tensor([[-INF, 0.5, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    for backend in ("native", "reference"):
        with fusedloss.backend(backend):
            assert fusedloss.balanced_bce_loss(x, target) == INF
