"""The in-place backward of cross_entropy: the gradient over the memory of the logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from cases import lay_out
from fusedloss import cross_entropy
from test_autograd import Calls
from test_cross_entropy import (
    REDUCTIONS,
    combinations,
    each_dtype,
    each_schedule,
    inputs,
    with_gradient,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_place(
    x: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient, the logits afterwards) of logits that another operation made."""
    leaf = x.detach().requires_grad_()
    logits = lay_out(leaf * 1, "contiguous")
    loss = cross_entropy(logits, target, weight, inplace_backward=True, **options)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    return loss.detach(), grad, logits.detach()


@each_dtype
@each_schedule
@pytest.mark.parametrize("inner", [1, 5])
def test_in_place_backward_gives_the_same_and_reuses_the_memory(
    inner: int, schedule: str, dtype: torch.dtype
) -> None:
    x, label, soft, weight = inputs(19, inner, rows=9, dtype=dtype)
    for (weighted, options), z in itertools.product(combinations(), (0.0, 0.1)):
        for target in (label, soft):
            w = weight if weighted else None
            with fusedloss.gradient_schedule("recompute"):
                expected = with_gradient(
                    lambda x, t=target, w=w, o=options, z=z: cross_entropy(x, t, w, z_loss=z, **o),
                    x,
                )
            with fusedloss.gradient_schedule(schedule):
                loss, grad, logits = in_place(x, target, w, z_loss=z, **options)
            assert torch.equal(loss, expected[0])
            assert torch.equal(grad, expected[1])
            assert torch.equal(logits, grad)


@each_schedule
def test_in_place_backward_leaves_shared_memory_alone(schedule: str) -> None:
    # Every row is the same memory: there is no room for a gradient of each.
    row = torch.randn(1, 7, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, 3, 6, 3])
    made = row * 1
    expanded = made.expand(4, 7)
    with fusedloss.gradient_schedule(schedule):
        loss = cross_entropy(expanded, label, inplace_backward=True)
        (grad,) = torch.autograd.grad(loss, row)
    assert torch.equal(made, row)
    other = row.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(other.expand(4, 7), label), other)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


def torch_gradient(x: Tensor, label: Tensor) -> Tensor:
    """The gradient of torch's mean."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(leaf, label), leaf)[0]


@each_schedule
@pytest.mark.parametrize("layout", ["sliced", "transposed", "permuted"])
def test_in_place_backward_of_strided_logits(layout: str, schedule: str) -> None:
    x, label, *_ = inputs(5, 4, 6, rows=3)
    leaf = x.clone().requires_grad_()
    logits = lay_out(leaf * 1, layout)
    with fusedloss.gradient_schedule(schedule):
        loss = cross_entropy(logits, label, inplace_backward=True)
        (grad,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(grad, torch_gradient(x, label), rtol=1e-12, atol=1e-15)


@each_schedule
def test_in_place_backward_writes_nothing_beside_the_logits(schedule: str) -> None:
    x, label, *_ = inputs(5, 6, rows=3)
    store = torch.full((3, 7, 9), 0.125, dtype=torch.float64, requires_grad=True)
    whole = store * 1
    logits = whole[:, 1:6, 2:8]
    with torch.no_grad():
        logits.copy_(x)
    with fusedloss.gradient_schedule(schedule):
        loss = cross_entropy(logits, label, inplace_backward=True)
        (grad,) = torch.autograd.grad(loss, store)
    expected = torch.zeros_like(store)
    expected[:, 1:6, 2:8] = torch_gradient(x, label)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)
    inside = torch.zeros(3, 7, 9, dtype=torch.bool)
    inside[:, 1:6, 2:8] = True
    assert (whole.detach()[~inside] == 0.125).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_operator_is_registered_right(reduction: str) -> None:
    x, label, soft, weight = inputs(7, 3, rows=4, dtype=torch.float32)
    for target, w in itertools.product((label, soft), (None, weight)):
        leaf = x.clone().requires_grad_()
        with Calls() as calls:
            loss = cross_entropy(leaf * 1, target, w, reduction=reduction, inplace_backward=True)
            loss.sum().backward()
        assert calls.names == ["cross_entropy_fwd", "cross_entropy_bwd_"]
        for operator, arguments in calls.calls:
            torch.library.opcheck(operator, arguments)


def right_or_refused(step: Callable[[], tuple[Tensor, ...]], *expected: Tensor) -> None:
    """The results, or autograd's error about memory that was written since: never wrong numbers."""
    try:
        results = step()
    except RuntimeError as error:
        message = str(error)
    else:
        torch.testing.assert_close(results, expected, rtol=1e-12, atol=1e-15)
        return
    assert "inplace" in message


@each_schedule
def test_in_place_backward_where_the_graph_is_kept(schedule: str) -> None:
    x, label, *_ = inputs(7, rows=9)
    leaf = x.clone().requires_grad_()

    def twice() -> tuple[Tensor, Tensor]:
        loss = cross_entropy(leaf * 1, label, inplace_backward=True)
        first = torch.autograd.grad(loss, leaf, retain_graph=True)[0].clone()
        return first, torch.autograd.grad(loss, leaf)[0]

    with fusedloss.gradient_schedule(schedule):
        right_or_refused(twice, torch_gradient(x, label), torch_gradient(x, label))


@each_schedule
def test_in_place_backward_with_second_derivatives(schedule: str) -> None:
    x, label, *_ = inputs(7, rows=9)

    def penalty(function: Callable[..., Tensor], **options: Any) -> tuple[Tensor]:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf * 1, label, **options), leaf, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaf)

    with fusedloss.gradient_schedule(schedule):
        right_or_refused(
            lambda: penalty(cross_entropy, inplace_backward=True), *penalty(F.cross_entropy)
        )


@each_schedule
@pytest.mark.parametrize("first", [True, False])
def test_in_place_backward_beside_another_use_of_the_logits(first: bool, schedule: str) -> None:
    # Another operation that needs the logits for its own backward gets them whole, or an error.
    x, label, *_ = inputs(7, rows=9)
    leaf = x.clone().requires_grad_()

    def both() -> tuple[Tensor]:
        logits = leaf * 1
        square = logits.square().sum() if first else None
        loss = cross_entropy(logits, label, inplace_backward=True)
        square = logits.square().sum() if square is None else square
        return torch.autograd.grad(loss + square, leaf)

    with fusedloss.gradient_schedule(schedule):
        right_or_refused(both, torch_gradient(x, label) + 2 * x)


def test_in_place_backward_without_kernels_is_an_ordinary_one() -> None:
    x, label, *_ = inputs(7, rows=9)
    with fusedloss.backend("reference"):
        loss, grad, logits = in_place(x, label)
    assert torch.equal(logits, x)
    expected = with_gradient(lambda x: F.cross_entropy(x, label), x)
    torch.testing.assert_close((loss, grad), expected, rtol=1e-12, atol=1e-15)


def test_a_leaf_is_never_overwritten() -> None:
    # Its gradient would be its own memory: zeroing the one would zero the other.
    x, label, *_ = inputs(7, 1, rows=5, dtype=torch.float32)
    leaf = x[..., 0].clone().requires_grad_()
    before = leaf.detach().clone()
    for _ in range(2):  # the second accumulates
        cross_entropy(leaf, label[..., 0], inplace_backward=True).backward()
    assert torch.equal(leaf.detach(), before)
    torch.testing.assert_close(leaf.grad, 2 * torch_gradient(before, label[..., 0]))


@each_schedule
@pytest.mark.parametrize("through", ["checkpoint", "hooks"])
def test_in_place_backward_under_hooks_on_saved_tensors(through: str, schedule: str) -> None:
    # The sigmoid saves the logits as its own output, and with hooks autograd cannot see that they change.
    x = torch.randn(6, 7, dtype=torch.float64)
    label = torch.arange(6)

    def gradient(**options: bool) -> Tensor:
        leaf = x.clone().requires_grad_()

        def loss(leaf: Tensor) -> Tensor:
            return cross_entropy(torch.sigmoid(leaf), label, **options)

        with fusedloss.gradient_schedule(schedule):
            if through == "checkpoint":
                value = checkpoint(loss, leaf, use_reentrant=False)
                return torch.autograd.grad(value, leaf)[0]
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                value = loss(leaf)
            return torch.autograd.grad(value, leaf)[0]

    torch.testing.assert_close(gradient(inplace_backward=True), gradient(), rtol=1e-14, atol=0)
