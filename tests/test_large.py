"""Tensors of more than 2^31 elements on the CPU, in up to 17 GB of memory: `make test-slow`.

What a call returns for all of a tensor is compared with calls on parts of it; the other tests compare
such calls with float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
from torch import Tensor

NUMBER = 2**31 + 2**20
Function = Callable[..., Tensor]


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    """Of a leaf, which lets go of it."""
    loss.backward()
    grad, x.grad = x.grad, None
    assert grad is not None
    return grad


def ends(size: int, part: int) -> list[slice]:
    """The first, a middle and the last stretch."""
    return [slice(0, part), slice(size // 2, size // 2 + part), slice(size - part, size)]


def random_halves(*shape: int) -> Tensor:
    """Numbers from -2 to 2 that are not the same all over, made without a float32 of the size."""
    x = torch.empty(shape, dtype=torch.float16)
    flat = x.view(-1)
    period = (4 * torch.rand(2**20 + 7, generator=torch.Generator().manual_seed(1)) - 2).half()
    for start in range(0, flat.numel(), period.numel()):
        stretch = flat[start : start + period.numel()]
        stretch.copy_(period[: stretch.numel()])
    return x


def check_parts(function: Function, x: Tensor, target: Tensor, **options: Any) -> None:
    """A sum over rows, against the same over stretches of rows."""
    rows, part = x.size(0), x.size(0) // 64
    leaf = x.requires_grad_()
    loss = function(leaf, target, reduction="sum", **options)
    grad = gradient(loss, leaf)
    total = 0.0
    with torch.no_grad():
        for start in range(0, rows, part):
            at = slice(start, start + part)
            total += float(function(x[at], target[at], reduction="sum", **options))
    assert float(loss.detach()) == pytest.approx(total, rel=1e-6)
    for at in ends(rows, part // 4):
        some = x.detach()[at].clone().requires_grad_()
        expected = gradient(function(some, target[at], reduction="sum", **options), some)
        assert torch.equal(grad[at], expected)


def test_dense_focal() -> None:
    x = random_halves(NUMBER // 64, 64)
    target = (x > 1).to(torch.uint8)
    check_parts(fusedloss.sigmoid_focal_loss, x, target)


@pytest.mark.parametrize("classes", [19, 1_000])
def test_cross_entropy(classes: int) -> None:
    rows = NUMBER // classes
    target = (torch.arange(rows) % classes).to(torch.int16)
    check_parts(fusedloss.cross_entropy, random_halves(rows, classes), target)


def test_ohem() -> None:
    rows = NUMBER // 19
    x = random_halves(rows, 19)
    target = (torch.arange(rows) % 19).to(torch.uint8)
    every = {"threshold": 1.0, "min_kept": 1}  # all are kept
    check_parts(fusedloss.ohem_cross_entropy_loss, x, target, **every)


def test_dice_of_few_classes() -> None:
    """By sample, so that a part's regions are its own."""
    samples, side = 2_064, 1_024
    x = random_halves(samples, 2, 512, side)
    assert x.numel() > 2**31
    target = (torch.arange(512 * side) % 2).to(torch.uint8).view(1, 512, side)
    target = target.expand(samples, 512, side)
    check_parts(fusedloss.dice_loss, x, target)


def test_one_region_of_all() -> None:
    """A single region: the sums of 2^31 elements."""
    x = random_halves(1, 1, NUMBER)
    target = (x > 1).to(torch.uint8)
    leaf = x.requires_grad_()
    loss = fusedloss.dice_loss(leaf, target, mode="binary")
    gradient(loss, leaf)
    overlap = mass = truth = 0.0
    for start in range(0, NUMBER, 2**26):
        at = slice(start, start + 2**26)
        p = x.detach()[0, 0, at].float().sigmoid()
        t = target[0, 0, at].float()
        overlap += float((p * t).double().sum())
        mass += float(p.double().sum())
        truth += float(t.double().sum())
    expected = 1 - (2 * overlap + 1e-5) / (mass + truth + 1e-5)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
