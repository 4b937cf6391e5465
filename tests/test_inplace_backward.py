"""The gradient over the memory of the logits: the in-place backward of cross_entropy and the margin
softmax, and the operators that write it there in forward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from cases import BY_NAME, lay_out
from fusedloss import cross_entropy, margin_softmax_loss
from test_autograd import Calls, recorded
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
    x: Tensor, target: Tensor, function: Callable[..., Tensor] = cross_entropy, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient, the logits afterwards) of logits that another operation made."""
    leaf = x.detach().requires_grad_()
    logits = lay_out(leaf * 1, "contiguous")
    loss = function(logits, target, inplace_backward=True, **options)
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
                loss, grad, logits = in_place(x, target, weight=w, z_loss=z, **options)
            assert torch.equal(loss, expected[0])
            assert torch.equal(grad, expected[1])
            assert torch.equal(logits, grad)


MARGINS: dict[str, dict[str, Any]] = {
    "arc": {"m2": 0.5},
    "smoothed": {"m2": 0.5, "label_smoothing": 0.1, "reduction": "none"},
    "filtered": {"m2": 0.5, "filter_threshold": 0.3, "reduction": "sum"},
    "through": {"m1": 1.3, "gradient": "straight_through"},
    "per class": {"m1": torch.linspace(0.8, 1.4, 19), "m3": torch.linspace(0, 0.4, 19)},
}


@each_dtype
@each_schedule
@pytest.mark.parametrize("inner", [1, 5])
@pytest.mark.parametrize("name", MARGINS)
def test_in_place_backward_of_margins(
    name: str, inner: int, schedule: str, dtype: torch.dtype
) -> None:
    x, label, *_ = inputs(19, inner, rows=9, dtype=dtype)
    x, options = torch.tanh(x), MARGINS[name] | {"ignore_index": -100}
    with fusedloss.gradient_schedule("recompute"):
        expected = with_gradient(lambda x: margin_softmax_loss(x, label, **options), x)
    with fusedloss.gradient_schedule(schedule), Calls() as calls:
        loss, grad, cosines = in_place(x, label, margin_softmax_loss, **options)
    assert calls.names == ["margin_softmax_fwd", "margin_softmax_bwd_"]
    assert torch.equal(loss, expected[0])
    assert torch.equal(grad, expected[1])
    assert torch.equal(cosines, grad)
    for operator, arguments in calls.calls if dtype == torch.float32 else ():
        torch.library.opcheck(operator, arguments)


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
    plain = {"scale": 1.0, "ignore_index": -100}  # cross entropy by another name
    for function, options in ((cross_entropy, {}), (margin_softmax_loss, plain)):
        with fusedloss.backend("reference"):
            loss, grad, logits = in_place(x, label, function, **options)
        assert torch.equal(logits, x)
        expected = with_gradient(lambda x: F.cross_entropy(x, label), x)
        torch.testing.assert_close((loss, grad), expected, rtol=1e-12, atol=1e-15)


def test_a_leaf_is_never_overwritten() -> None:
    # Its gradient would be its own memory: zeroing the one would zero the other.
    x, label, *_ = inputs(7, 1, rows=5, dtype=torch.float32)
    plain = {"scale": 1.0, "ignore_index": -100}
    for function, options in ((cross_entropy, {}), (margin_softmax_loss, plain)):
        leaf = x[..., 0].clone().requires_grad_()
        before = leaf.detach().clone()
        for _ in range(2):  # the second accumulates
            function(leaf, label[..., 0], inplace_backward=True, **options).backward()
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


IN_FORWARD = [
    *(
        "ce-7-classes",
        "ce-1001-classes",
        "ce-2x19x527",
        "ce-channels-last",
        "ce-none-3d",
        "ce-empty-sum",
    ),
    *("ce-weight-uniform-mean", "ce-z-weight-mean", "ce-soft-weight", "ce-offset", "ce-no-batch"),
    *("margin-arcface", "margin-2x19x527", "margin-1001-classes", "margin-channels-last"),
    *("margin-none-3d", "margin-per-class-all", "margin-arcface-smoothing-0.1", "margin-no-batch"),
    *("margin-filter-0.4-5x1001", "margin-elsewhere", "margin-offset", "margin-empty"),
]


@each_dtype
@pytest.mark.parametrize("name", IN_FORWARD)
def test_the_gradient_in_the_place_of_the_logits_already_in_forward(
    name: str, dtype: torch.dtype
) -> None:
    case = BY_NAME[name]
    operator, arguments = recorded(case, dtype, "forward")[0]
    in_place_operator = getattr(torch.ops.fusedloss, f"{case.loss.forward_op}_").default
    x, *given, with_saved, with_grad = arguments
    assert (with_saved, with_grad) == (False, True)
    place = x.clone()
    results = in_place_operator(place, *given)
    loss, scale, _, grad = operator(*arguments)
    torch.testing.assert_close(
        (*results, place), (loss, scale, grad), rtol=0, atol=0, equal_nan=True
    )
    torch.library.opcheck(in_place_operator, (x, *given))


@pytest.mark.parametrize("shape", [(2200, 1000), (1, 19, 160_000)])
def test_large_gradients_in_the_place_of_the_logits(shape: tuple[int, ...]) -> None:
    # Where a gradient of its own would be written past the cache.
    x, label, *_ = inputs(*shape[1:], rows=shape[0], dtype=torch.float32)
    x = x.mul(0.05).clamp(-1, 1)
    margins = (
        None,
        None,
        None,
        64.0,
        1.0,
        0.5,
        0.0,
        False,
        True,
        False,
        0.0,
        float("inf"),
        -100,
        2,
    )
    for name, given in (
        ("cross_entropy", (None, 0.1, False, 0.0, -100, 2)),
        ("margin_softmax", margins),
    ):
        place = x.clone()
        results = getattr(torch.ops.fusedloss, f"{name}_fwd_")(place, label, *given)
        loss, scale, _, grad = getattr(torch.ops.fusedloss, f"{name}_fwd")(
            x, label, *given, False, True
        )
        assert torch.isfinite(grad).all()
        assert torch.equal(place, grad)
        assert torch.equal(results[0], loss)
        assert torch.equal(results[1], scale)
