"""Focal loss as others write it: each form is spelled out here and must agree with the library.

The forms are the ones that users replace: on top of a BCE, on clipped probabilities, and
torchvision's. The numeric examples were worked out apart from any of this code.
"""

from __future__ import annotations

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("native", "reference")
SCHEDULES = ("recompute", "forward")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def logits_and_targets(
    *shape: int, scale: float = 3.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits around 0 and targets of which a fifth are positive."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return x.to(dtype), (torch.rand(shape, generator=generator) < 0.2).to(dtype)


def with_gradient(loss: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to `x`."""
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), grad


@each_schedule
@each_backend
def test_on_top_of_binary_cross_entropy(backend: str, schedule: str) -> None:
    x, t = logits_and_targets(64, 20)
    theirs = x.clone().requires_grad_()
    bce = F.binary_cross_entropy_with_logits(theirs, t, reduction="none")
    pt = torch.exp(-bce)
    expected = with_gradient(((1 - pt) ** 2 * bce).mean(), theirs)

    ours = x.clone().requires_grad_()
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        got = with_gradient(fusedloss.sigmoid_focal_loss(ours, t, alpha=None, gamma=2.0), ours)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    # 1 - pt loses the last digits where pt is close to 1: an absolute error of about eps / numel.
    torch.testing.assert_close(got[1], expected[1], rtol=2e-6, atol=2e-10)


@each_backend
def test_a_scalar_factor_multiplies_that_form(backend: str) -> None:
    # Hand-written code often has one factor `alpha` for positives and negatives alike: a weight.
    x, t = logits_and_targets(31, 7)
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    expected = (0.8 * (1 - torch.exp(-bce)) ** 2 * bce).mean()
    with fusedloss.backend(backend):
        got = fusedloss.sigmoid_focal_loss(x, t, alpha=None, weight=torch.tensor(0.8))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def clipped_probability_form(p: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of probabilities, kept away from 0 and 1 as Keras-like code does."""
    p = p.clamp(1e-8, 1 - 1e-8)
    positive = -alpha * (1 - p) ** gamma * torch.log(p)
    negative = -(1 - alpha) * p**gamma * torch.log(1 - p)
    return torch.where(t > 0.5, positive, negative)


@each_schedule
@each_backend
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.0])
def test_on_clipped_probabilities(gamma: float, backend: str, schedule: str) -> None:
    # In float64: 1 - 1e-8 is 1 in float32, where that form is infinite. Logits within +-18 are not
    # clipped, so values and gradients must match.
    x, t = logits_and_targets(40, 25, dtype=torch.float64)
    x.clamp_(-18, 18)
    theirs = x.clone().requires_grad_()
    expected = with_gradient(
        clipped_probability_form(torch.sigmoid(theirs), t, 0.25, gamma).mean(), theirs
    )
    ours = x.clone().requires_grad_()
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        got = with_gradient(fusedloss.sigmoid_focal_loss(ours, t, gamma=gamma), ours)
    # 1 - p carries an error of eps / (1 - p), which is 1e-8 at the ends.
    torch.testing.assert_close(got[0], expected[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(got[1], expected[1], rtol=3e-8, atol=1e-15)


@each_backend
def test_beyond_the_clipping_the_logits_keep_what_the_clip_destroys(backend: str) -> None:
    x = torch.tensor([25.0, -25.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    clipped = clipped_probability_form(torch.sigmoid(x), t, 0.5, 2.0).sum()
    (flat,) = torch.autograd.grad(clipped, x)
    assert float(clipped.detach()) == pytest.approx(18.42, abs=0.01)  # -log(1e-8), not 25
    assert flat.tolist() == [0.0, 0.0]
    with fusedloss.backend(backend):
        loss = fusedloss.sigmoid_focal_loss(x, t, alpha=0.5, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x)
    assert float(loss.detach()) == pytest.approx(25.0, rel=1e-8)
    assert grad.tolist() == pytest.approx([0.5, -0.5], rel=1e-8)


def torchvision_sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str
) -> Tensor:
    """The formula of torchvision.ops.sigmoid_focal_loss."""
    p = torch.sigmoid(inputs)
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = ce * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


@each_schedule
@each_backend
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 2.0), (0.6, 1.0), (0.25, 0.0)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torchvision(
    reduction: str, alpha: float, gamma: float, soft: bool, backend: str, schedule: str
) -> None:
    x, t = logits_and_targets(16, 3, 11, dtype=torch.float64)
    if soft:
        t = torch.rand(t.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = x.clone().requires_grad_()
    expected = with_gradient(
        torchvision_sigmoid_focal_loss(theirs, t, alpha, gamma, reduction), theirs
    )
    ours = x.clone().requires_grad_()
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        loss = fusedloss.sigmoid_focal_loss(ours, t, alpha=alpha, gamma=gamma, reduction=reduction)
        got = with_gradient(loss, ours)
    # 1 - p_t cancels for confident logits: an absolute error of a few eps times the slope.
    torch.testing.assert_close(got[0], expected[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-12, atol=1e-14)


@each_schedule
@each_backend
def test_detector_recipe_with_one_hot_rows_and_a_positive_count(
    backend: str, schedule: str
) -> None:
    # RetinaNet: one-hot rows (all zero for background), anchors in between dropped, the sum divided
    # by the number of positive anchors. Class indices say the same without the one-hot tensor.
    classes, ignored = 6, -2
    labels = torch.tensor([0, 5, 6, -1, 3, ignored, 6, 2, ignored, 1])
    x, _ = logits_and_targets(labels.numel(), classes, dtype=torch.float64)
    keep = labels != ignored
    one_hot = torch.zeros(labels.numel(), classes, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        if 0 <= label < classes:
            one_hot[row, label] = 1.0
    positives = 5
    theirs = x.clone().requires_grad_()
    summed = torchvision_sigmoid_focal_loss(theirs[keep], one_hot[keep], 0.25, 2.0, "sum")
    expected = with_gradient(summed / positives, theirs)
    for normalizer in (positives, torch.tensor(positives), torch.tensor([5.0])):
        ours = x.clone().requires_grad_()
        with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
            loss = fusedloss.sigmoid_focal_loss(
                ours, labels, ignore_index=ignored, normalizer=normalizer
            )
            got = with_gradient(loss, ours)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(got[1], expected[1], rtol=1e-12, atol=1e-15)
        assert (got[1][~keep] == 0).all()


# (logit, target, alpha, gamma, loss, derivative), from the definition in 30-digit arithmetic
# (mpmath, derivative by finite differences at that precision). The first by hand: p = 1/2, so
# 1/4 * (1/2)^2 * log 2 = log(2) / 16 = 0.0433216987..., and the derivative is
# -alpha (1-p)^2 ((1-p) + 2 p CE) = -1/4 * 1/4 * (1/2 + log 2) = -0.0745716987... The target 0 has
# 1 - alpha = 3/4 instead: three times as much, the slope upwards.
NUMBERS = [
    (0.0, 1.0, 0.25, 2.0, 0.043321698784996582, -0.074571698784996582),
    (0.0, 0.0, 0.25, 2.0, 0.12996509635498975, 0.22371509635498975),
    (2.0, 1.0, 0.25, 2.0, 0.00045089070881009384, -0.0012177350488481916),
    (2.0, 0.0, 0.25, 2.0, 1.2375586345660567, 0.80753529783636146),
    (-1.5, 1.0, 0.25, 2.0, 0.28431807890479413, -0.24035617186759006),
    (-1.5, 0.0, 0.25, 2.0, 0.0050271351949317426, 0.012773328917426945),
    (1.0, 0.25, None, 1.0, 0.6544687108739619, 0.40063061298529121),
    (3.0, 1.0, 0.75, 0.5, 0.0079358263870469716, -0.011525852269276009),
    (-3.0, 1.0, 0.75, 0.5, 2.2315637472376434, -0.75020050488411687),
    (-20.0, 0.0, 0.25, 2.0, 6.5673830381814269e-27, 1.9702149080703317e-26),
    (20.0, 0.0, 0.25, 2.0, 14.999999939711257, 0.75000005719701267),
]


@each_schedule
@each_backend
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
@pytest.mark.parametrize(("x", "t", "alpha", "gamma", "loss", "slope"), NUMBERS)
def test_numbers(
    x: float,
    t: float,
    alpha: float | None,
    gamma: float,
    loss: float,
    slope: float,
    dtype: torch.dtype,
    rel: float,
    backend: str,
    schedule: str,
) -> None:
    logit = torch.tensor([x], dtype=dtype, requires_grad=True)
    target = torch.tensor([t], dtype=dtype)
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        got = fusedloss.sigmoid_focal_loss(logit, target, alpha=alpha, gamma=gamma)
        (grad,) = torch.autograd.grad(got, logit)
    assert got.item() == pytest.approx(loss, rel=rel)
    assert grad.item() == pytest.approx(slope, rel=2 * rel)


def test_a_small_batch_by_hand() -> None:
    # Two rows, two classes, alpha = 1/4, gamma = 2: logits 0 everywhere, row 0 of class 1, row 1
    # background. One positive element, log(2) / 16; three negative ones, 3 log(2) / 16 each.
    # Sum 10 log(2) / 16, mean of four 10 log(2) / 64.
    log2 = 0.69314718055994531
    x = torch.zeros(2, 2, dtype=torch.float64)
    label = torch.tensor([1, 2])
    total = fusedloss.sigmoid_focal_loss(x, label, reduction="sum")
    assert total.item() == pytest.approx(10 * log2 / 16, rel=1e-15)
    mean = fusedloss.sigmoid_focal_loss(x, label)
    assert mean.item() == pytest.approx(10 * log2 / 64, rel=1e-15)
    each = fusedloss.sigmoid_focal_loss(x, label, reduction="none")
    factors = torch.tensor([[3.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(each, factors * log2 / 16, rtol=1e-15, atol=0)
    # Smoothing 0.2 turns 0/1 into 0.1/0.9. At logit 0: 1 - p_t = 1/2 and CE = log 2 whatever the
    # target; alpha_t = 0.25 * 0.9 + 0.75 * 0.1 = 0.3 for the positive, 0.7 for the negative ones.
    smooth = fusedloss.sigmoid_focal_loss(x, label, label_smoothing=0.2, reduction="sum")
    assert smooth.item() == pytest.approx((0.3 + 3 * 0.7) * log2 / 4, rel=1e-15)
    # Row 1 ignored: the mean of the two elements that are left.
    kept = fusedloss.sigmoid_focal_loss(x, label, ignore_index=2)
    assert kept.item() == pytest.approx(4 * log2 / 16 / 2, rel=1e-15)
    # Per-class alpha (0.25, 0.5), weight 2 for row 1: 3/4 + 1/2 for row 0, 2 (3/4 + 1/2) for row 1.
    weighted = fusedloss.sigmoid_focal_loss(
        x,
        label,
        alpha=torch.tensor([0.25, 0.5]),
        weight=torch.tensor([[1.0], [2.0]]),
        reduction="sum",
    )
    assert weighted.item() == pytest.approx((1.25 + 2 * 1.25) * log2 / 4, rel=1e-15)
