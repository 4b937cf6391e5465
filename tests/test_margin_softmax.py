"""Margin softmax against its formula worked out by hand, against the forms that others have of it, and
at the ends of the cosine, where the angle has no derivative.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from cases import MARGIN_SOFTMAX
from cases.margin_softmax import VARIANTS
from fusedloss import margin_softmax_loss, reference
from torch import Tensor

SCHEDULES = ("recompute", "forward")
BACKENDS = ("native", "reference")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def with_gradient(loss: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to `x`."""
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), grad


def cosines(rows: int, classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Cosines of all angles in float64, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, classes, generator=generator, dtype=torch.float64) * 1.96 - 0.98
    return x, torch.randint(0, classes, (rows,), generator=generator)


def psi_by_hand(
    x: float,
    closest: float,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
) -> tuple[float, float]:
    """The label's cosine with its margin, and the slope, in double precision from the definition."""
    if easy_margin and x <= 0:
        return x, 1.0
    linear = monotonic == "linear" and not easy_margin
    theta = math.acos(max(-1.0, min(1.0, x)))
    if m1 == 1.0 and m2 == 0.0:
        psi, slope = x, 1.0
    elif linear and m1 == 1.0 and m2 > 0 and theta > math.pi - m2:
        psi, slope = x - m2 * math.sin(m2), 1.0
    else:
        inside = max(-closest, min(closest, x))
        angle, angle_inside = m1 * theta + m2, m1 * math.acos(inside) + m2
        folds = linear and m1 != 1.0
        k = math.floor(angle / math.pi) if folds else 0
        k_inside = math.floor(angle_inside / math.pi) if folds else 0
        psi = (-1) ** k * math.cos(angle) - 2 * k
        slope = (-1) ** k_inside * m1 * math.sin(angle_inside)
        slope /= math.sqrt((1 - inside) * (1 + inside))
    return psi - m3, slope if gradient == "exact" else 1.0


def by_hand(x: Tensor, label: Tensor, scale: float, **options: Any) -> tuple[Tensor, Tensor]:
    """Losses and gradients of rows [N, C], in double precision."""
    closest = 1 - torch.finfo(x.dtype).eps / 2
    x = x.double()
    rows = torch.arange(len(x))
    found = [psi_by_hand(float(c), closest, **options) for c in x[rows, label]]
    psi, slope = torch.tensor(found, dtype=torch.float64).unbind(1)
    logits = scale * x
    logits[rows, label] = scale * psi
    p = torch.softmax(logits, 1)
    others = p.clone()
    others[rows, label] = 0.0
    grad = scale * p
    grad[rows, label] = -scale * others.sum(1) * slope
    return F.cross_entropy(logits, label, reduction="none"), grad


def test_numbers_worked_out_by_hand() -> None:
    # theta = pi/3 to the label's class, 0 to the other, s = 2. ArcFace with m = pi/6: psi = cos(pi/2),
    # which is 0, loss log(1 + e^2) = 2.126928; slope sin(pi/2) / sin(pi/3) = 1.154701, p of the other
    # class 0.880797.
    x = torch.tensor([[0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0])
    loss, grad = with_gradient(fusedloss.arcface_loss(x, label, margin=math.pi / 6, scale=2.0), x)
    assert loss.item() == pytest.approx(2.126928, abs=1e-6)
    assert grad[0].tolist() == pytest.approx([-2 * 0.880797 * 1.154701, 2 * 0.880797], abs=1e-5)
    # CosFace with m = 0.25: psi = 0.25, loss log(1 + e^1.5) = 1.701413, p 0.817574.
    loss, grad = with_gradient(fusedloss.cosface_loss(x, label, margin=0.25, scale=2.0), x)
    assert loss.item() == pytest.approx(1.701413, abs=1e-6)
    assert grad[0].tolist() == pytest.approx([-2 * 0.817574, 2 * 0.817574], abs=1e-5)
    # SphereFace with m = 2: psi = cos(2 pi/3) = -0.5, loss log(1 + e^3) = 3.048587, p 0.952574, slope 2.
    loss, grad = with_gradient(fusedloss.sphereface_loss(x, label, margin=2.0, scale=2.0), x)
    assert loss.item() == pytest.approx(3.048587, abs=1e-6)
    assert grad[0].tolist() == pytest.approx([-4 * 0.952574, 2 * 0.952574], abs=1e-5)


# Of each dtype: the ends, what rounding makes of them, far beyond, and the last numbers inside.
def ends(dtype: torch.dtype) -> Tensor:
    """Cosines at which the angle has no derivative, or none."""
    eps = torch.finfo(dtype).eps
    right = torch.tensor(
        [1.0, 1 + eps, 1 + 8 * eps, 1.5, 1 - eps / 2, 1 - eps], dtype=torch.float64
    )
    x = torch.cat((right, -right)).to(dtype)
    assert (x.abs() >= 1 - eps).all()
    return x


def rows_at_the_ends(dtype: torch.dtype, classes: int) -> tuple[Tensor, Tensor]:
    """Rows whose label has such a cosine, among other classes some of which have one too."""
    own = ends(dtype)
    x = torch.linspace(-0.8, 0.9, len(own) * classes).view(len(own), classes).to(dtype)
    x[::3, -1] = 1.0
    x[1::3, -1] = -1.0
    label = torch.arange(len(own)) % (classes - 1)
    x[torch.arange(len(own)), label] = own
    return x, label


def check_at_the_ends(
    loss: Tensor, grad: Tensor, exact: tuple[Tensor, Tensor], scale: float, options: dict[str, Any]
) -> None:
    """Finite, and what the definition says."""
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
    exact_loss, exact_grad = exact
    eps = torch.finfo(loss.dtype).eps
    torch.testing.assert_close(loss.double(), exact_loss, rtol=16 * eps, atol=16 * eps * scale)
    # Near -1 the angle is known to eps * pi, and a whole factor of it has a slope that goes through 0.
    from_end = math.sqrt(torch.finfo(grad.dtype).eps)
    angle = 16 * eps / from_end if options.get("m1", 1.0) == 4.0 else 0.0
    largest = float(exact_grad.abs().max())
    tolerance = 64 * eps + 2 * torch.finfo(grad.dtype).eps + angle
    torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance * largest)


@each_dtype
@each_variant
@pytest.mark.parametrize("classes", [2, 5, 70])
def test_cosines_of_one_and_beyond(classes: int, variant: str, dtype: torch.dtype) -> None:
    options = VARIANTS[variant]
    x, label = rows_at_the_ends(dtype, classes)
    for pixels, scale in ((False, 2.0), (True, 30.0)):
        exact = by_hand(x, label, scale, **options)
        given, target = (x.t()[None], label[None]) if pixels else (x, label)
        for backend, schedule in (
            ("native", "recompute"),
            ("native", "forward"),
            ("reference", "auto"),
        ):
            leaf = given.clone().requires_grad_()
            with fusedloss.backend(backend), fusedloss.gradient_schedule(schedule):
                loss = margin_softmax_loss(leaf, target, scale=scale, reduction="none", **options)
                loss, grad = with_gradient(loss, leaf)
            grad = grad[0].t() if pixels else grad
            check_at_the_ends(loss.view(-1), grad, exact, scale, options)


@each_dtype
@each_variant
def test_cosines_of_one_and_beyond_on_the_emulator(
    variant: str, dtype: torch.dtype, emulator: ModuleType
) -> None:
    emulator.configure(count=False, race_check=False, seed=1)
    options = VARIANTS[variant]
    for classes, schedule in ((5, "recompute"), (70, "forward"), (1030, "recompute")):
        x, label = rows_at_the_ends(dtype, classes)
        kernel = MARGIN_SOFTMAX.emulated(
            emulator, x, label, scale=30.0, reduction="none", **options
        )
        exact = by_hand(x, label, 30.0, **options)
        check_at_the_ends(*kernel.run(schedule), exact, 30.0, options)


@each_dtype
@each_variant
def test_second_derivatives_of_one_and_beyond_are_finite(variant: str, dtype: torch.dtype) -> None:
    x, label = rows_at_the_ends(dtype, 5)
    x = x.requires_grad_()
    loss = margin_softmax_loss(x, label, scale=1.0, **VARIANTS[variant])
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(grad[:, 0].float().sum(), x)
    assert torch.isfinite(second.float()[:, 1:]).all()
    # In half precision only its own range may be too small for the curvature there.
    assert not torch.isnan(second).any()
    if dtype in (torch.float32, torch.float64):
        assert torch.isfinite(second).all()


@each_backend
@each_variant
def test_against_the_formula_at_every_angle(variant: str, backend: str) -> None:
    # Angles on both sides of every bend, and the bends themselves but for a hair.
    options = VARIANTS[variant]
    m1, m2 = options.get("m1", 1.0), options.get("m2", 0.0)
    theta = list(torch.linspace(0.01, math.pi - 0.01, 401, dtype=torch.float64).tolist())
    for k in range(6):
        bend = (k * math.pi - m2) / m1
        theta += [bend + d for d in (-1e-3, -1e-9, 1e-9, 1e-3) if 0.01 < bend + d < 3.13]
    theta += [math.pi / 2 - 1e-9, math.pi / 2 + 1e-9]
    own = torch.cos(torch.tensor(theta, dtype=torch.float64))
    x = torch.stack((own, torch.full_like(own, 0.3), torch.full_like(own, -0.5)), dim=1)
    label = torch.zeros(len(own), dtype=torch.int64)
    expected = by_hand(x, label, 8.0, **options)
    leaf = x.clone().requires_grad_()
    with fusedloss.backend(backend):
        loss = margin_softmax_loss(leaf, label, scale=8.0, reduction="none", **options)
        torch.testing.assert_close(with_gradient(loss, leaf), expected, rtol=1e-11, atol=1e-12)


@each_dtype
@pytest.mark.parametrize(
    "variant", ["arcface", "cosface", "sphereface", "sphereface-4", "combined"]
)
def test_the_linear_forms_fall_with_the_angle(variant: str, dtype: torch.dtype) -> None:
    # Distinct cosines of the dtype, from 1 down to -1: the loss never goes down.
    own = torch.linspace(1, -1, 301, dtype=torch.float64).to(dtype).unique().flip(0)
    x = torch.stack((own, torch.zeros_like(own)), dim=1)
    label = torch.zeros(len(own), dtype=torch.int64)
    loss = margin_softmax_loss(x, label, scale=4.0, reduction="none", **VARIANTS[variant])
    assert (loss.diff() >= 0).all()
    assert (loss.diff() > 0).double().mean() > 0.99
    plain = VARIANTS[variant] | {"monotonic": "none"}
    loss = margin_softmax_loss(x, label, scale=4.0, reduction="none", **plain)
    assert bool((loss.diff() < 0).any()) is (variant != "cosface")


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


def test_the_reference_takes_half_cosines_for_what_they_are() -> None:
    # The slope at 1 depends on how close to 1 the dtype comes: sin(m) / sin(theta) with theta there.
    for dtype in DTYPES:
        x = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
        loss = reference.margin_softmax_loss(x, torch.tensor([0]), m2=0.5, scale=1.0)
        (grad,) = torch.autograd.grad(loss, x)
        closest = 1 - torch.finfo(dtype).eps / 2
        slope = math.cos(0.5) + closest * math.sin(0.5) / math.sqrt((1 - closest) * (1 + closest))
        expected = -slope / (1 + math.exp(math.cos(0.5)))
        assert float(grad[0, 0]) == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("emulated", [False, True], ids=["native", "emulated CUDA"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_does_not_compute_the_changed_cosine_again(
    dtype: torch.dtype, emulated: bool, emulator: ModuleType
) -> None:
    """It might round otherwise than forward's did, and a lone class would then have a gradient: scale
    times the last digit of psi. A GPU was seen to. Here cosines that are one digit less stand for it: psi
    computed from them is below the maximum, which was itself.
    """
    x = cosines(40, 1)[0].to(dtype)
    label = torch.zeros(40, dtype=torch.int64)
    less = torch.nextafter(x, -torch.ones_like(x))
    if emulated:
        emulator.configure(count=False, race_check=True, seed=3)
        kernel = MARGIN_SOFTMAX.emulated(emulator, x, label, m2=0.5)
        _, scale, _ = kernel.forward(with_grad=False)
        kernel.input.copy_(less)
        grad = kernel.backward(torch.ones((), dtype=dtype), scale)
    else:
        leaf = x.requires_grad_()
        with fusedloss.gradient_schedule("recompute"):
            loss = margin_softmax_loss(leaf, label, m2=0.5)
        with torch.no_grad():
            leaf.data.copy_(less)  # not seen by autograd
        (grad,) = torch.autograd.grad(loss, leaf)
    assert (grad == 0).all()
