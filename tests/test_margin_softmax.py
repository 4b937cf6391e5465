"""Margin softmax against its formula worked out by hand, against the forms that others have of it, and
at the ends of the cosine, where the angle has no derivative.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import fusedloss
import pytest
import torch
from cases import MARGIN_SOFTMAX
from cases.margin_softmax import VARIANTS
from fusedloss import margin_softmax_loss, reference
from margin_cases import (
    DTYPES,
    by_hand,
    cosines,
    each_backend,
    each_dtype,
    each_variant,
    with_gradient,
)
from torch import Tensor


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
