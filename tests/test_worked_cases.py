"""Focal losses and cross entropy as others write them: each form is spelled out here and must agree
with the library.

The forms are the ones that users replace: focal loss on top of a BCE, on clipped probabilities, and
torchvision's; label smoothing with a one-hot scatter. The numeric examples were worked out apart from
any of this code.
"""

from __future__ import annotations

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@each_schedule
@each_backend
def test_cross_entropy_of_two_rows_by_hand(backend: str, schedule: str) -> None:
    # Row 0, label 2: lse = log(e^0.1 + e^0.05 + e^0.7 + e^0.15) = 1.67373, less 0.7: 0.97373.
    # Row 1, label 0: lse = log(e^0.2 + e^0.3 + e^0.4 + e^0.1) = 1.64253, less 0.2: 1.44253.
    x = torch.tensor([[0.1, 0.05, 0.7, 0.15], [0.2, 0.3, 0.4, 0.1]], requires_grad=True)
    label = torch.tensor([2, 0])
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        mean = fusedloss.cross_entropy(x, label)
        each = fusedloss.cross_entropy(x, label, reduction="none")
        (grad,) = torch.autograd.grad(mean, x)
        # The z-loss adds half the sum of lse^2.
        z = fusedloss.cross_entropy(x, label, z_loss=1.0)
        # The same rows as pixels of one image.
        pixels = fusedloss.cross_entropy(x.t()[None], label[None])
        focal = fusedloss.softmax_focal_loss(x, label, gamma=2.0)
        nll = fusedloss.nll_loss(torch.log_softmax(x, 1), label)
    assert round(mean.item(), 4) == 1.2081
    assert pixels.item() == pytest.approx(mean.item(), rel=1e-6)
    assert nll.item() == pytest.approx(mean.item(), rel=1e-6)
    assert each.tolist() == pytest.approx([0.97373, 1.44253], abs=1e-5)
    assert z.item() - mean.item() == pytest.approx((1.67373**2 + 1.64253**2) / 2, abs=1e-4)
    # p of the labels: e^-0.97373 = 0.37767 and e^-1.44253 = 0.23633.
    assert grad[0, 2].item() == pytest.approx((0.37767 - 1) / 2, abs=1e-5)
    assert grad[1, 0].item() == pytest.approx((0.23633 - 1) / 2, abs=1e-5)
    expected = ((1 - 0.37767) ** 2 * 0.97373 + (1 - 0.23633) ** 2 * 1.44253) / 2
    assert focal.item() == pytest.approx(expected, abs=2e-5)


class LabelSmoothLoss(nn.Module):
    """Label smoothing as it is often written: eps / (C - 1) scattered over the wrong classes."""

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean over the rows of logits [N, C]."""
        log_prob = F.log_softmax(input, dim=-1)
        weight = input.new_ones(input.size()) * self.smoothing / (input.size(-1) - 1.0)
        weight.scatter_(-1, target.unsqueeze(-1), (1.0 - self.smoothing))
        return (-weight * log_prob).sum(dim=-1).mean()


@each_schedule
@each_backend
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 10, 91])
def test_hand_written_label_smoothing(
    classes: int, eps: float, backend: str, schedule: str
) -> None:
    generator = torch.Generator().manual_seed(classes)
    x = 3 * torch.randn(24, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (24,), generator=generator)
    theirs = x.clone().requires_grad_()
    expected = with_gradient(LabelSmoothLoss(eps)(theirs, label), theirs)
    module = fusedloss.LabelSmoothingCrossEntropyLoss(label_smoothing=eps, smoothing="others")
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        for function in (
            lambda x: fusedloss.cross_entropy(x, label, label_smoothing=eps, smoothing="others"),
            lambda x: module(x, label),
            # As pixels: a hand-written loss is given the classes last.
            lambda x: fusedloss.cross_entropy(
                x.t()[None], label[None], label_smoothing=eps, smoothing="others"
            ),
        ):
            ours = x.clone().requires_grad_()
            got = with_gradient(function(ours), ours)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def smoothed_by_hand(x: Tensor, q: Tensor, w: Tensor, e: float, way: str, divisor: float) -> Tensor:
    """Every term of a smoothed, weighted cross entropy in a loop; q [N, C] sums to 1 in each row."""
    rows, classes = x.shape
    total = x.new_zeros(())
    for n in range(rows):
        lse = torch.log(sum(torch.exp(x[n, j]) for j in range(classes)))
        for j in range(classes):
            spread = e / classes if way == "uniform" else e * (1 - q[n, j]) / (classes - 1)
            total = total + w[j] * (q[n, j] * (1 - e) + spread) * (lse - x[n, j])
    return total / divisor


@each_schedule
@each_backend
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("way", ["uniform", "others"])
def test_smoothing_with_class_weights_term_by_term(
    way: str, soft: bool, backend: str, schedule: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 3, 1, 1, 2, 0])
    w = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    q = torch.softmax(torch.randn(6, 4, generator=generator, dtype=torch.float64), 1)
    q = q if soft else F.one_hot(label, 4).double()
    # The divisor is the weights of the labels: 0.5 + 0 + 2 + 2 + 1 + 0.5; the rows if probabilities.
    divisor = 6.0
    assert soft or float(w[label].sum()) == divisor
    theirs = x.clone().requires_grad_()
    expected = with_gradient(smoothed_by_hand(theirs, q, w, 0.2, way, divisor), theirs)
    ours = x.clone().requires_grad_()
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        target = q if soft else label
        got = fusedloss.cross_entropy(ours, target, w, label_smoothing=0.2, smoothing=way)
        torch.testing.assert_close(with_gradient(got, ours), expected, rtol=1e-12, atol=1e-15)


@each_schedule
@each_backend
def test_z_loss_has_a_divisor_of_its_own(backend: str, schedule: str) -> None:
    # The weighted mean divides by the weights of the labels, the penalty by the rows that count.
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (5, 4), generator=generator)
    label[0], label[1, 2] = -100, -100
    w = torch.tensor([0.25, 3.0, 1.0], dtype=torch.float64)
    theirs = x.clone().requires_grad_()
    penalty = torch.logsumexp(theirs, 1)[label != -100].square().mean()
    expected = with_gradient(F.cross_entropy(theirs, label, w) + 0.3 * penalty, theirs)
    ours = x.clone().requires_grad_()
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        got = with_gradient(fusedloss.cross_entropy(ours, label, w, z_loss=0.3), ours)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def multiclass_focal_on_cross_entropy(
    x: Tensor, label: Tensor, alpha: Tensor | None, gamma: float
) -> Tensor:
    """Focal loss on top of a cross entropy, as segmentation code writes it."""
    ce = F.cross_entropy(x, label, reduction="none", ignore_index=-100)
    loss = (1 - torch.exp(-ce)) ** gamma * ce
    if alpha is not None:
        loss = loss * alpha[label.clamp(min=0)]
    return loss[label != -100].mean()


@each_schedule
@each_backend
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 2.5])
@pytest.mark.parametrize("shape", [(20, 6), (2, 6, 7), (2, 6, 3, 4)])
def test_softmax_focal_on_top_of_cross_entropy(
    shape: tuple[int, ...], gamma: float, backend: str, schedule: str
) -> None:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 6, (shape[0], *shape[2:]), generator=generator)
    label.view(-1)[::5] = -100
    for alpha in (None, torch.rand(6, generator=generator, dtype=torch.float64)):
        theirs = x.clone().requires_grad_()
        expected = with_gradient(
            multiclass_focal_on_cross_entropy(theirs, label, alpha, gamma), theirs
        )
        ours = x.clone().requires_grad_()
        with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
            loss = fusedloss.softmax_focal_loss(ours, label, alpha=alpha, gamma=gamma)
            got = with_gradient(loss, ours)
        # 1 - e^-ce cancels: an error of eps / (1 - p).
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@each_schedule
@each_backend
def test_softmax_focal_of_two_classes_is_the_sigmoid_one(backend: str, schedule: str) -> None:
    # Logits (-x/2, x/2) have p = sigmoid(x) and sigmoid(-x).
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    label = (torch.arange(37) % 3 == 0).long()
    sigmoid_x, softmax_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        one = fusedloss.sigmoid_focal_loss(sigmoid_x, label, alpha=0.3, gamma=1.5)
        pair = torch.stack((-softmax_x / 2, softmax_x / 2), dim=1)
        alpha = torch.tensor([0.7, 0.3], dtype=torch.float64)
        two = fusedloss.softmax_focal_loss(pair, label, alpha=alpha, gamma=1.5)
        torch.testing.assert_close(
            with_gradient(two, softmax_x), with_gradient(one, sigmoid_x), rtol=1e-12, atol=1e-16
        )
