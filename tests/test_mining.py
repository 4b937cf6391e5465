"""Hard example mining against the forms of well-known repositories, its edges, and its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from fusedloss import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

IGNORE = 255
ROW_LOSSES = ("ohem_cross_entropy_loss", "topk_cross_entropy_loss")
ELEMENT_LOSSES = ("balanced_bce_loss", "hard_negative_mining_loss")
OPTIONS: dict[str, dict[str, Any]] = {"hard_negative_mining_loss": {"dim": 1}}


def pixels(seed: int, ignored: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 5, 16, 24, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 16, 24), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return logits.requires_grad_(), labels


def scores(seed: int, positives: float = 0.05) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, 300, generator=generator, dtype=torch.float64)
    target = (torch.rand(4, 300, generator=generator) < positives).double()
    return logits.requires_grad_(), target


def step(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert ours[1].any()


def sorting_form(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """OHEM of HRNet and mmsegmentation: all p of valid pixels in order."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").view(-1)
    mask = labels.view(-1) != IGNORE
    known = torch.where(labels == IGNORE, 0, labels)
    p = torch.softmax(logits, 1).gather(1, known.unsqueeze(1)).view(-1)[mask]
    p, order = p.sort()
    bound = max(float(p[min(min_kept, p.numel() - 1)]), threshold)
    return losses[mask][order][p < bound].mean()


def topk_form(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """OHEM of BiSeNet: losses above a bound, or topk where they are few."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").view(-1)
    hard = losses[losses > -math.log(threshold)]
    if hard.numel() < min_kept:
        hard = losses.topk(min_kept).values
    return hard.mean()


@pytest.mark.parametrize("form", [sorting_form, topk_form])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 10), (0.05, 300), (0.001, 33)])
def test_ohem_is_that_of_other_repositories(
    form: Callable[..., Tensor], threshold: float, min_kept: int
) -> None:
    logits, labels = pixels(min_kept)
    options = {"threshold": threshold, "min_kept": min_kept}
    ours = fusedloss.ohem_cross_entropy_loss(logits, labels, ignore_index=IGNORE, **options)
    assert_same(step(ours, logits), step(form(logits, labels, threshold, min_kept), logits))


@pytest.mark.parametrize("k", [1, 77, 0.1, 0.5])
def test_topk_is_torchs(k: float) -> None:
    logits, labels = pixels(3)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").view(-1)
    number = k if isinstance(k, int) else int(k * int((labels != IGNORE).sum()))
    ours = fusedloss.topk_cross_entropy_loss(logits, labels, k=k, ignore_index=IGNORE)
    assert_same(step(ours, logits), step(losses.topk(number).values.mean(), logits))


def balanced_form(p: Tensor, gt: Tensor, mask: Tensor, ratio: float, eps: float) -> Tensor:
    """BalanceCrossEntropyLoss of DB, over probabilities."""
    positive, negative = (gt * mask).byte(), ((1 - gt) * mask).byte()
    positives = int(positive.sum())
    negatives = min(int(negative.sum()), int(positives * ratio))
    losses = F.binary_cross_entropy(p, gt, reduction="none")
    hardest = (losses * negative).view(-1).topk(negatives).values
    return ((losses * positive).sum() + hardest.sum()) / (positives + negatives + eps)


@pytest.mark.parametrize("ratio", [0.5, 3.0, 1e6])
def test_balanced_bce_is_that_of_db(ratio: float) -> None:
    logits, target = scores(5)
    p = logits.detach().sigmoid().requires_grad_()
    mask = (torch.rand(4, 300, generator=torch.Generator().manual_seed(6)) < 0.8).double()
    options = {"mask": mask, "negative_ratio": ratio, "eps": 1e-6}
    theirs = step(balanced_form(p, target, mask, ratio, 1e-6), p)
    assert_same(
        step(fusedloss.balanced_bce_loss(p, target, from_logits=False, **options), p), theirs
    )
    of_logits = fusedloss.balanced_bce_loss(logits, target, **options)
    torch.testing.assert_close(of_logits.detach(), theirs[0], rtol=1e-10, atol=0.0)


def test_each_image_mines_for_itself() -> None:
    logits, target = scores(7)
    kept = [
        fusedloss.balanced_bce_loss(x, t, reduction="sum")
        for x, t in zip(logits, target, strict=True)
    ]
    ours = fusedloss.hard_negative_mining_loss(logits, target, dim=1, reduction="sum")
    assert_same(step(ours, logits), step(sum(kept, torch.zeros(())), logits))
    counts = [min(int(t.sum()) * 4, t.numel()) for t in target]
    mean = fusedloss.hard_negative_mining_loss(logits, target, dim=1)
    assert float(mean) == pytest.approx(float(ours) / (sum(counts) + 1e-6), rel=1e-12)


# --- Edges: the loss is finite, has a gradient, and the gradient is what the rule says.


def finite_step(loss: Tensor, x: Tensor) -> Tensor:
    assert loss.requires_grad
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    return gradient


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_no_valid_pixel(backend: str) -> None:
    logits, _ = pixels(0)
    labels = torch.full((2, 16, 24), IGNORE)
    with fusedloss.backend(backend):
        for name in ROW_LOSSES:
            loss = getattr(fusedloss, name)(logits, labels, ignore_index=IGNORE)
            assert float(loss) == 0.0
            assert not finite_step(loss, logits).any()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_one_valid_pixel(backend: str) -> None:
    logits, _ = pixels(1)
    labels = torch.full((2, 16, 24), IGNORE)
    labels[1, 3, 4] = 2
    with fusedloss.backend(backend):
        for name in ROW_LOSSES:
            loss = getattr(fusedloss, name)(logits, labels, ignore_index=IGNORE)
            expected = F.cross_entropy(logits, labels, ignore_index=IGNORE)
            assert_same(step(loss, logits), step(expected, logits))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_all_pixels_equally_confident(backend: str) -> None:
    """Where a strict comparison with the k-th keeps nothing and the mean is NaN."""
    logits = torch.zeros(2, 5, 16, 24, dtype=torch.float64, requires_grad=True)
    labels = torch.ones(2, 16, 24, dtype=torch.int64)
    with fusedloss.backend(backend):
        whole = fusedloss.ohem_cross_entropy_loss(logits, labels, threshold=0.1, min_kept=7)
        assert_same(step(whole, logits), step(F.cross_entropy(logits, labels), logits))
        shared = fusedloss.topk_cross_entropy_loss(logits, labels, k=7, reduction="sum")
        assert float(shared) == pytest.approx(7 * math.log(5), rel=1e-12)
        gradient = finite_step(shared, logits)
        assert torch.equal(gradient, gradient[:1, :, :1, :1].expand_as(gradient))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_more_wanted_than_there_are_and_none(backend: str) -> None:
    logits, labels = pixels(2)
    with fusedloss.backend(backend):
        plain = step(F.cross_entropy(logits, labels, ignore_index=IGNORE), logits)
        for options in ({"min_kept": 10**9}, {"threshold": 1.0}):
            loss = fusedloss.ohem_cross_entropy_loss(logits, labels, ignore_index=IGNORE, **options)
            assert_same(step(loss, logits), plain)
        loss = fusedloss.topk_cross_entropy_loss(logits, labels, k=10**9, ignore_index=IGNORE)
        assert_same(step(loss, logits), plain)
        for loss in (
            fusedloss.topk_cross_entropy_loss(logits, labels, k=0, ignore_index=IGNORE),
            fusedloss.ohem_cross_entropy_loss(
                logits, labels, threshold=0.0, min_kept=0, ignore_index=IGNORE
            ),
        ):
            assert float(loss) == 0.0
            assert not finite_step(loss, logits).any()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ELEMENT_LOSSES)
def test_positives_or_negatives_alone(name: str, backend: str) -> None:
    logits, _ = scores(3)
    function = getattr(fusedloss, name)
    options = OPTIONS.get(name, {})
    with fusedloss.backend(backend):
        nothing = function(logits, torch.zeros(4, 300), **options)
        assert float(nothing) == 0.0
        assert not finite_step(nothing, logits).any()
        all_positive = function(logits, torch.ones(4, 300), eps=0.0, **options)
        expected = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        assert_same(step(all_positive, logits), step(expected, logits))
        fallback = function(logits, torch.zeros(4, 300), fallback_negatives=9, eps=0.0, **options)
        losses = F.softplus(logits)
        taken = losses.topk(9).values if options else losses.view(-1).topk(9).values
        assert_same(step(fallback, logits), step(taken.mean(), logits))


def test_what_does_not_count_may_be_anything() -> None:
    """Ignored pixels, masked elements and their gradients: not even NaN logits have an effect."""
    logits, labels = pixels(4, ignored=0.3)
    spoilt = logits.detach().clone()
    spoilt.masked_fill_((labels == IGNORE).unsqueeze(1), math.nan).requires_grad_()
    for name in ROW_LOSSES:
        function = getattr(fusedloss, name)
        ours = step(function(spoilt, labels, ignore_index=IGNORE), spoilt)
        assert_same(ours, step(function(logits, labels, ignore_index=IGNORE), logits))
    x, target = scores(8)
    mask = torch.rand(4, 300, generator=torch.Generator().manual_seed(9)) < 0.7
    y = x.detach().masked_fill(~mask, math.nan).requires_grad_()
    for name in ELEMENT_LOSSES:
        function, options = getattr(fusedloss, name), OPTIONS.get(name, {})
        ours = step(function(y, target, mask=mask, **options), y)
        assert_same(ours, step(function(x, target, mask=mask, **options), x))
        assert not ours[1][~mask].any()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_nan_that_counts_shows(backend: str) -> None:
    logits, labels = pixels(5, ignored=0.0)
    spoilt = logits.detach().clone()
    spoilt[0, 2, 3, 3] = math.nan
    x, target = scores(9)
    y = x.detach().clone()
    y[2, 17] = math.nan
    with fusedloss.backend(backend):
        for name in ROW_LOSSES:
            assert getattr(fusedloss, name)(spoilt, labels).isnan(), name
        for name in ELEMENT_LOSSES:
            assert getattr(fusedloss, name)(y, target, **OPTIONS.get(name, {})).isnan(), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(ROW_LOSSES), st.booleans())
def test_the_order_of_pixels_never_matters(seed: int, name: str, tied: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    if tied:
        logits = logits.round()
    labels = torch.randint(0, 4, (300,), generator=generator)
    order = torch.randperm(300, generator=generator)
    options: dict[str, Any] = {"min_kept": 40} if name.startswith("ohem") else {"k": 40}
    function = getattr(fusedloss, name)

    def run(order: Tensor) -> tuple[Tensor, ...]:
        x = logits[order].requires_grad_()
        return step(function(x, labels[order], reduction="sum", **options), x)

    straight, shuffled = run(torch.arange(300)), run(order)
    torch.testing.assert_close(straight[0], shuffled[0], rtol=1e-12, atol=0.0)
    assert torch.equal(straight[1][order], shuffled[1])


def test_second_derivatives_are_of_the_selection_that_was_made() -> None:
    logits, labels = pixels(6)
    loss = fusedloss.ohem_cross_entropy_loss(
        logits, labels, threshold=1e-6, min_kept=50, ignore_index=IGNORE
    )
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    selected = gradient.detach().abs().sum(1) > 0
    assert selected.sum() == 50
    plain = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    (again,) = torch.autograd.grad(plain[selected].mean(), logits, create_graph=True)
    (expected,) = torch.autograd.grad(again.square().sum(), logits)
    torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-14)


def test_class_weights_neither_select_nor_divide() -> None:
    logits, labels = pixels(7)
    weight = torch.rand(5, dtype=torch.float64) + 0.5
    options = {"threshold": 0.02, "min_kept": 60, "ignore_index": IGNORE}
    plain = fusedloss.ohem_cross_entropy_loss(logits, labels, reduction="none", **options)
    known = torch.where(labels == IGNORE, 0, labels)
    expected = (plain * weight[known]).sum() / (plain > 0).sum()
    ours = fusedloss.ohem_cross_entropy_loss(logits, labels, weight=weight, **options)
    assert_same(step(ours, logits), step(expected, logits))


# --- Arguments


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ohem_cross_entropy_loss", {"threshold": 1.5}, "threshold is 1.5"),
        ("ohem_cross_entropy_loss", {"threshold": "0.7"}, "threshold must be a number"),
        ("ohem_cross_entropy_loss", {"min_kept": -1}, "min_kept is -1"),
        ("ohem_cross_entropy_loss", {"min_kept": 0.5}, "min_kept must be an int"),
        ("ohem_cross_entropy_loss", {"weight": torch.ones(4)}, "weight has shape"),
        ("ohem_cross_entropy_loss", {"reduction": "median"}, "reduction is 'median'"),
        ("topk_cross_entropy_loss", {"k": -3}, "k is -3"),
        ("topk_cross_entropy_loss", {"k": 0.0}, "k is 0"),
        ("topk_cross_entropy_loss", {"k": 1.5}, "k is 1.5"),
        ("topk_cross_entropy_loss", {"k": True}, "k must be an int"),
        ("topk_cross_entropy_loss", {"ignore_index": None}, "ignore_index must be an int"),
        ("balanced_bce_loss", {"negative_ratio": -1.0}, "negative_ratio is -1"),
        ("balanced_bce_loss", {"fallback_negatives": -1}, "fallback_negatives is -1"),
        ("balanced_bce_loss", {"eps": -1e-6}, "eps is -1e-06"),
        ("balanced_bce_loss", {"from_logits": 1}, "from_logits must be a bool"),
        ("balanced_bce_loss", {"mask": torch.ones(3, 1)}, "mask has shape"),
        ("balanced_bce_loss", {"mask": [1.0]}, "mask must be a tensor"),
        ("hard_negative_mining_loss", {"dim": 2}, "dim has 2"),
        ("hard_negative_mining_loss", {"dim": (1, -1)}, "names a dimension twice"),
        ("hard_negative_mining_loss", {"dim": ()}, "dim is empty"),
        ("hard_negative_mining_loss", {"dim": 1.0}, "dim must be an int"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    rows = name in ROW_LOSSES
    logits = torch.zeros(2, 5, 3) if rows else torch.zeros(2, 5)
    target = torch.zeros(2, 3, dtype=torch.int64) if rows else torch.zeros(2, 5)
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: .*{message}"):
        getattr(fusedloss, name)(logits, target, **{**OPTIONS.get(name, {}), **options})


@pytest.mark.parametrize("name", [*ROW_LOSSES, *ELEMENT_LOSSES])
def test_bad_inputs(name: str) -> None:
    function, options = getattr(fusedloss, name), OPTIONS.get(name, {})
    with pytest.raises(TypeError, match=f"^{name}: input has dtype int64"):
        function(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2), **options)
    with pytest.raises(ValueError, match=f"^{name}: target has shape"):
        function(torch.zeros(2, 5), torch.zeros(3, 4, dtype=torch.int64), **options)


@pytest.mark.parametrize("name", ROW_LOSSES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_label_that_is_none_raises(name: str, backend: str) -> None:
    labels = torch.tensor([0, 7, 1])
    message = f"^{name}: target holds label 7, but input has 5 classes"
    with fusedloss.backend(backend), pytest.raises(IndexError, match=message):
        getattr(fusedloss, name)(torch.zeros(3, 5), labels)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_reference_and_the_kernels_select_the_same(threads: int) -> None:
    """Of half a million elements, in several tasks."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(4, 1, 300, 400, generator=generator, dtype=torch.float64).requires_grad_()
    target = (torch.rand(x.shape, generator=generator) < 0.02).double()
    options = {"dim": (1, 2, 3), "negative_ratio": 3.0}
    ours = step(fusedloss.hard_negative_mining_loss(x, target, **options), x)
    assert_same(ours, step(reference.hard_negative_mining_loss(x, target, **options), x))
