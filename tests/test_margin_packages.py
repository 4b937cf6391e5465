"""Margin softmax beside insightface and pytorch-metric-learning, and the options of single losses."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from cases.margin_softmax import VARIANTS
from fusedloss import margin_softmax_loss
from margin_cases import (
    by_hand,
    cosines,
    each_backend,
    each_dtype,
    each_schedule,
    each_variant,
    with_gradient,
)
from torch import Tensor


def insightface(
    x: Tensor, label: Tensor, s: float, m1: float, m2: float, m3: float, threshold: float = 0.0
) -> Tensor:
    """The way of insightface's CombinedMarginLoss: the margin is put in place behind autograd's back."""
    logits = x * 1
    rows = torch.where(label != -1)[0]
    with torch.no_grad():
        own = logits[rows, label[rows]]
        if threshold > 0:  # it multiplies by 0 what it filters
            logits[logits > threshold] = 0.0
        logits[rows, label[rows]] = torch.cos(m1 * torch.acos(own) + m2) - m3
    return F.cross_entropy(logits * s, label, ignore_index=-1)


@each_schedule
@each_backend
@pytest.mark.parametrize(
    ("m1", "m2", "m3"),
    [(1.0, 0.5, 0.0), (1.0, 0.0, 0.4), (1.35, 0.0, 0.0), (1.0, 0.3, 0.2), (0.9, 0.4, 0.15)],
)
def test_straight_through_is_insightface(
    m1: float, m2: float, m3: float, backend: str, schedule: str
) -> None:
    x, label = cosines(40, 11)
    label[::7] = -1
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = with_gradient(insightface(theirs, label, 30.0, m1, m2, m3), theirs)
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        loss = margin_softmax_loss(
            ours,
            label,
            **{"scale": 30.0, "m1": m1, "m2": m2, "m3": m3},
            monotonic="none",
            gradient="straight_through",
        )
        got = with_gradient(loss, ours)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    assert (got[1][::7] == 0).all()


@each_backend
def test_the_filter_drops_where_insightface_sets_to_zero(backend: str) -> None:
    x, label = cosines(40, 11)
    rows = torch.arange(40)
    above = x > 0.3
    assert above[rows, label].any()  # the label's own cosine stays whatever it is
    above[rows, label] = False
    ours = x.clone().requires_grad_()
    with fusedloss.backend(backend):
        loss = margin_softmax_loss(ours, label, scale=5.0, m3=0.1, filter_threshold=0.3)
        loss, grad = with_gradient(loss, ours)
    assert (grad[above] == 0).all()
    assert (grad[~above] != 0).all()

    def replaced(by: float) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        changed = torch.where(above, by, leaf - 0.1 * F.one_hot(label, 11).double())
        return with_gradient(F.cross_entropy(changed * 5.0, label), leaf)

    torch.testing.assert_close((loss, grad), replaced(-torch.inf), rtol=1e-11, atol=1e-14)
    theirs = insightface(x, label, 5.0, 1.0, 0.0, 0.1, threshold=0.3)
    torch.testing.assert_close(theirs, replaced(0.0)[0], rtol=1e-12, atol=0)
    assert theirs > loss + 0.01


# The target's cosine in pytorch-metric-learning (ArcFaceLoss, CosFaceLoss, SphereFaceLoss).
def metric_learning_arcface(own: Tensor, margin: float) -> Tensor:
    """cos(theta + m) up to pi - m, then cos(theta) - m sin(m)."""
    angles = torch.acos(own.clamp(-1, 1))
    return torch.where(
        angles <= math.pi - margin,
        torch.cos(angles + margin),
        torch.cos(angles) - margin * math.sin(margin),
    )


def metric_learning_cosface(own: Tensor, margin: float) -> Tensor:
    """cos(theta) - m."""
    return own - margin


def metric_learning_sphereface(own: Tensor, margin: float) -> Tensor:
    """(-1)^k cos(m theta) - 2k for a whole m, with cos(m theta) a polynomial of cos(theta)."""
    before, multiple = torch.ones_like(own), own
    for _ in range(int(margin) - 1):
        before, multiple = multiple, 2 * own * multiple - before
    with torch.no_grad():
        k = (torch.acos(own.clamp(-1, 1)) / (math.pi / margin)).floor()
    return (-1) ** k * multiple - 2 * k


METRIC_LEARNING: list[tuple[Callable[..., Tensor], Callable[..., Tensor], float]] = [
    *((fusedloss.arcface_loss, metric_learning_arcface, m) for m in (0.5, 28.6 * math.pi / 180)),
    *((fusedloss.cosface_loss, metric_learning_cosface, m) for m in (0.35, 0.1)),
    *((fusedloss.sphereface_loss, metric_learning_sphereface, m) for m in (2.0, 3.0, 4.0)),
]


@each_schedule
@each_backend
@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0])
@pytest.mark.parametrize(("function", "form", "margin"), METRIC_LEARNING)
def test_metric_learning(
    function: Callable[..., Tensor],
    form: Callable[..., Tensor],
    margin: float,
    scale: float,
    backend: str,
    schedule: str,
) -> None:
    x, label = cosines(60, 9)
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    own = theirs.gather(1, label[:, None]).squeeze(1)
    mask = F.one_hot(label, 9)
    logits = theirs + mask * (form(own, margin) - own)[:, None]
    expected = with_gradient(F.cross_entropy(logits * scale, label), theirs)
    with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
        got = with_gradient(function(ours, label, margin=margin, scale=scale), ours)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@each_schedule
@each_backend
@pytest.mark.parametrize("classes", [1, 2, 9, 130])
def test_without_margins_it_is_cross_entropy(classes: int, backend: str, schedule: str) -> None:
    x, label = cosines(30, classes)
    label[::5] = -1
    zero = torch.zeros(classes)
    for scale, e, reduction in itertools.product((1.0, 64.0), (0.0, 0.1), ("mean", "sum", "none")):
        common: dict[str, Any] = {"label_smoothing": e, "ignore_index": -1, "reduction": reduction}
        theirs = x.clone().requires_grad_()
        expected = with_gradient(F.cross_entropy(scale * theirs, label, **common), theirs)
        for how in (
            {},
            {"easy_margin": True},
            {"monotonic": "none"},
            {"gradient": "straight_through"},
            {"m1": zero + 1, "m2": zero, "m3": zero},
        ):
            ours = x.clone().requires_grad_()
            with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
                got = with_gradient(
                    margin_softmax_loss(ours, label, scale=scale, **common, **how), ours
                )
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@each_dtype
@each_variant
def test_one_margin_for_all_is_that_of_every_class(variant: str, dtype: torch.dtype) -> None:
    # The one is worked out beforehand in double precision, the other for each row.
    options = VARIANTS[variant]
    x, label = cosines(50, 6)
    x = x.to(dtype)
    by_class = {
        name: torch.full((6,), value, dtype=torch.float64) if name in ("m1", "m2", "m3") else value
        for name, value in options.items()
    }
    results = []
    for given in (options, by_class):
        leaf = x.clone().requires_grad_()
        results.append(with_gradient(margin_softmax_loss(leaf, label, scale=4.0, **given), leaf))
    (loss, grad), (other, other_grad) = results
    torch.testing.assert_close(other, loss, rtol=16 * torch.finfo(loss.dtype).eps, atol=0)
    eps = torch.finfo(dtype).eps
    largest = float(grad.abs().max())
    torch.testing.assert_close(other_grad, grad, rtol=64 * eps, atol=8 * eps * largest)


@each_backend
def test_each_row_has_the_margins_of_its_class(backend: str) -> None:
    x, label = cosines(50, 4)
    margins = {
        "m1": torch.tensor([1.0, 1.5, 1.0, 0.7]),
        "m2": torch.tensor([0.5, 0.0, 0.0, 0.25]),
        "m3": torch.tensor([0.0, 0.125, 0.375, 0.25]),
    }
    leaf = x.clone().requires_grad_()
    with fusedloss.backend(backend):
        loss = margin_softmax_loss(leaf, label, scale=6.0, reduction="none", **margins)
        loss, grad = with_gradient(loss, leaf)
    for c in range(4):
        own = {name: float(values[c]) for name, values in margins.items()}
        expected = by_hand(x[label == c], label[label == c], 6.0, **own)
        assert len(expected[0])
        torch.testing.assert_close(
            (loss[label == c], grad[label == c]), expected, rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("names", [("m1",), ("m2",), ("m3",), ("m1", "m2", "m3")])
def test_margins_that_are_learnt(names: tuple[str, ...], gradient: str) -> None:
    x, label = cosines(12, 3)
    start = {"m1": 1.25, "m2": 0.3, "m3": 0.1}
    leaves = [torch.full((3,), start[name], dtype=torch.float64) for name in names]
    # A margin that is one tensor for all classes as well.
    for margins in (leaves, [leaf[0].clone() for leaf in leaves]):
        given = [leaf.requires_grad_() for leaf in margins]

        def function(*given: Tensor) -> Tensor:
            options = dict(zip(names, given, strict=True))
            return margin_softmax_loss(x, label, scale=4.0, gradient=gradient, **options)

        assert torch.autograd.gradcheck(function, given)
        numbers = {name: start[name] for name in names}
        plain = margin_softmax_loss(x, label, scale=4.0, gradient=gradient, **numbers)
        torch.testing.assert_close(function(*given).detach(), plain, rtol=1e-12, atol=0)


NAMES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "arcface": (fusedloss.arcface_loss, {"m2": 0.5}),
    "cosface": (fusedloss.cosface_loss, {"m3": 0.35}),
    "sphereface": (fusedloss.sphereface_loss, {"m1": 1.7}),
    "normface": (fusedloss.normface_loss, {}),
    "modified softmax": (fusedloss.modified_softmax_loss, {"scale": 1.0}),
}


# Another value of every option that the names hand on.
OTHER_VALUES: dict[str, Any] = {
    "scale": 20.0,
    "easy_margin": True,
    "monotonic": "none",
    "gradient": "straight_through",
    "label_smoothing": 0.2,
    "filter_threshold": 0.1,
    "ignore_index": 2,
    "reduction": "sum",
    "inplace_backward": True,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_margin_softmax_with_defaults(name: str) -> None:
    function, defaults = NAMES[name]
    x, label = cosines(60, 5)
    label[::6] = -1
    parameters = inspect.signature(function).parameters
    assert list(parameters)[1] == "target"
    others = [p for p in list(parameters)[2:] if p != "margin"]
    assert set(others) <= set(OTHER_VALUES)
    for given in ({}, *({option: OTHER_VALUES[option]} for option in others)):
        target = label.clamp(min=0) if "ignore_index" in given else label
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        made = ours * 1
        got = with_gradient(function(made, target, **given), ours)
        expected = with_gradient(margin_softmax_loss(theirs, target, **(defaults | given)), theirs)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
        # Written over the cosines only where that was asked for.
        assert torch.equal(made.detach(), got[1]) is ("inplace_backward" in given)
        if given and "inplace_backward" not in given:
            plain = margin_softmax_loss(x, target, **defaults)
            same = torch.allclose(got[0], plain, rtol=1e-9)
            assert same is (given.get("gradient") is not None), given
    if "margin" in parameters:
        (which,) = defaults
        assert parameters["margin"].default == defaults[which]
        for margin in (0.3, torch.linspace(0.1, 0.6, 5, dtype=torch.float64)):
            got = function(x, label, margin=margin)
            torch.testing.assert_close(got, margin_softmax_loss(x, label, **{which: margin}))


@pytest.mark.parametrize("name", NAMES)
def test_errors_have_the_names_of_the_function_and_its_arguments(name: str) -> None:
    function, defaults = NAMES[name]
    x, label = cosines(6, 5)
    own = function.__name__
    first = "input" if name == "modified softmax" else "cosine"
    wrong: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, f"{own}: {first} must be a tensor, got list", ([0.5], label), {}),
        (ValueError, f"{own}: target has shape", (x, label[1:]), {}),
        (ValueError, f"{own}: reduction is 'avg'", (x, label), {"reduction": "avg"}),
        (TypeError, f"{own}: inplace_backward must be", (x, label), {"inplace_backward": 1}),
    ]
    if name != "modified softmax":
        wrong.append((ValueError, f"{own}: scale is 0", (x, label), {"scale": 0}))
    if "m1" in defaults or "m2" in defaults or "m3" in defaults:
        wrong += [
            (ValueError, f"{own}: margin is nan", (x, label), {"margin": math.nan}),
            (TypeError, f"{own}: margin must be a number", (x, label), {"margin": "wide"}),
            (ValueError, f"{own}: margin has shape (4,)", (x, label), {"margin": torch.ones(4)}),
            (
                ValueError,
                f"{own}: margin has shape (1, 5)",
                (x, label),
                {"margin": torch.ones(1, 5)},
            ),
        ]
    if "m1" in defaults:
        wrong.append((ValueError, f"{own}: margin is 0", (x, label), {"margin": 0.0}))
    for error, message, arguments, options in wrong:
        with pytest.raises(error) as caught:
            function(*arguments, **options)
        assert str(caught.value).startswith(message)


def test_rows_of_classes_that_live_elsewhere() -> None:
    # Each of three workers holds 4 of 12 classes: -1 marks the rows of the others, which count nowhere.
    x, label = cosines(30, 12)
    for first in (0, 4, 8):
        mine = (label >= first) & (label < first + 4)
        local = torch.where(mine, label - first, -1)
        part = x[:, first : first + 4].clone().requires_grad_()
        loss, grad = with_gradient(fusedloss.arcface_loss(part, local), part)
        kept = fusedloss.arcface_loss(x[mine, first : first + 4], local[mine])
        torch.testing.assert_close(loss, kept, rtol=1e-12, atol=0)
        assert (grad[~mine] == 0).all()
        assert (grad[mine] != 0).any(1).all()
    nobody = torch.full((30,), -1)
    leaf = x.clone().requires_grad_()
    loss, grad = with_gradient(fusedloss.arcface_loss(leaf, nobody), leaf)
    assert loss == 0
    assert (grad == 0).all()
