"""Derivatives, transforms, compilation and operators of losses of a linear layer."""

from __future__ import annotations

from collections.abc import Callable

import fusedloss
import pytest
import torch
from fusedloss import _linear
from fusedloss._chunks import Head
from linear_cases import (
    CLASSES,
    ROWS,
    VARIANTS,
    Variant,
    each_reduction,
    each_schedule,
    gradients,
    leaves,
    make,
)
from test_arguments import INF
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


@each_schedule
@pytest.mark.parametrize("name", ["arcface", "cross entropy"])
def test_only_required_gradients_are_made(name: str, schedule: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    full = gradients(variant.loss, variant, inputs, None, chunk_size=8)[1:]
    places = [0, 1] if variant.margin else [0, 1, 3]
    for place, expected in zip(places, full, strict=True):
        one = list(inputs)
        one[place] = one[place].clone().requires_grad_()
        with fusedloss.gradient_schedule(schedule):
            loss = variant.loss(one, chunk_size=8)
        (grad,) = torch.autograd.grad(loss, one[place])
        assert torch.equal(grad, expected)
    assert not variant.loss(inputs).requires_grad
    with torch.no_grad():
        assert not variant.loss([inputs[0].requires_grad_(), *inputs[1:]]).requires_grad


@each_schedule
@pytest.mark.parametrize("factor", [0.0, -2.5, 65536.0])
@pytest.mark.parametrize("name", ["sub-centers", "uniform, z"])
def test_upstream_gradient_and_repeated_backward(name: str, factor: float, schedule: str) -> None:
    variant = VARIANTS[name]
    f, w, target, b = leaves(make(variant), variant)
    wrt = [f, w] if variant.margin else [f, w, b]
    with fusedloss.gradient_schedule(schedule):
        loss = variant.loss([f, w, target, b], chunk_size=8)
    first = torch.autograd.grad(loss, wrt, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, wrt, torch.tensor(factor).double())
    for one, copy, other in zip(first, kept, second, strict=True):
        assert torch.equal(one, copy)  # the second pass has not written over the first's result
        torch.testing.assert_close(other, factor * one)


SMOOTH = ["arcface", "combined, easy", "by class", "smoothed", "sub-centers", "modified softmax"]


def as_function(name: str, reduction: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A variant as a function of its floating-point inputs, and these."""
    variant = VARIANTS[name]
    f, w, target, b = make(variant, rows=6)
    wrt = [x.requires_grad_() for x in ([f, w] if variant.margin else [f, w, b])]
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in variant.options.items()}

    def function(*given: Tensor) -> Tensor:
        inputs = [given[0], given[1], target, given[2] if len(given) > 2 else b]
        return Variant(variant.margin, doubled).loss(inputs, reduction=reduction, chunk_size=4)

    return function, tuple(wrt)


@each_schedule
@each_reduction
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str, reduction: str, schedule: str) -> None:
    function, inputs = as_function(name, reduction)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@each_reduction
@pytest.mark.parametrize("name", SMOOTH)
def test_gradgradcheck(name: str, reduction: str) -> None:
    function, inputs = as_function(name, reduction)
    with fusedloss.backend("native"):
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_schedule
@pytest.mark.parametrize("name", ["arcface", "uniform, z"])
def test_function_transforms(name: str, schedule: str) -> None:
    function, inputs = as_function(name, "mean")
    wrt = tuple(range(len(inputs)))
    with fusedloss.gradient_schedule(schedule):
        got = torch.func.grad(function, wrt)(*(x.detach() for x in inputs))
        expected = torch.autograd.grad(function(*inputs), inputs)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["by class", "arcface"])
def test_margins_that_learn_go_to_the_reference(name: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    m3 = torch.full((CLASSES,), 0.2, dtype=torch.float64, requires_grad=True)
    loss = variant.loss(inputs, m3=m3)
    (grad,) = torch.autograd.grad(loss, m3)
    (expected,) = torch.autograd.grad(variant.eager(inputs, m3=m3), m3)
    torch.testing.assert_close(grad, expected)
    assert grad.any()


@pytest.mark.parametrize("name", ["arcface", "sub-centers", "uniform, z"])
def test_reference_backend(name: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    expected = gradients(variant.eager, variant, inputs, None)
    with fusedloss.backend("reference"):
        got = gradients(variant.loss, variant, inputs, None)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@each_schedule
@each_reduction
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["arcface", "sub-centers", "uniform, z"])
def test_compiled_whole(name: str, dynamic: bool, reduction: str, schedule: str) -> None:
    torch._dynamo.reset()
    variant = VARIANTS[name]

    def function(inputs: list[Tensor]) -> Tensor:
        return (variant.loss(inputs, reduction=reduction, chunk_size=8) * 1.5).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with fusedloss.gradient_schedule(schedule):
        for rows in (ROWS, 20) if dynamic else (ROWS,):
            inputs = make(variant, rows=rows)
            expected = gradients(function, variant, inputs, None)
            got = gradients(compiled, variant, inputs, None)
            for ours, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, False], [False] * 3])
@pytest.mark.parametrize("head", [Head(True, True, 1), Head(False, True, 3)])
def test_operators(wanted: list[bool], head: Head) -> None:
    f, w, target, b = make(VARIANTS["sub-centers"], torch.float32)
    factor = torch.rand(ROWS)
    entropy = (0.1, False, 0.01, -1, 5, wanted)
    plain = (f, w[:CLASSES], b, target, factor, *entropy)
    torch.library.opcheck(torch.ops.fusedloss.linear_cross_entropy, plain)
    margin = (None, None, None, 9.0, 1.0, 0.3, 0.0, False, True, False, 0.0, INF, -1)
    weight = w[: CLASSES * head.sub_centers]
    bare = (f, weight, None, target, None, *margin, *head, 5, [*wanted[:2], False])
    torch.library.opcheck(torch.ops.fusedloss.linear_margin_softmax, bare)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no CUDA devices")
@pytest.mark.parametrize("centers", [1, 3])
def test_a_gpu_is_never_waited_for(centers: int) -> None:
    with FakeTensorMode():  # whose tensors have no values that anybody could look at
        f, w = (torch.empty(rows, 4, device="cuda:0") for rows in (20, 6 * centers))
        target = torch.empty(20, dtype=torch.int64, device="cuda:0")
        margin = (None, None, None, 9.0, 1.0, 0.3, 0.0, False, True, False, 0.0, INF, -1)
        factor, wanted = f[:, 0], [True, True, False]
        got = _linear.linear_margin_softmax(
            f, w, None, target, factor, *margin, True, True, centers, 7, wanted
        )
        assert [x.shape for x in got] == [(20,), f.shape, w.shape, (0,)]
        entropy, wanted = (0.1, False, 0.1, -1), [True, True, True]
        got = _linear.linear_cross_entropy(f, w, w[:, 0], target, factor, *entropy, 7, wanted)
        assert [x.shape for x in got] == [(20,), f.shape, w.shape, w.shape[:1]]
        assert all(x.device.type == "cuda" for x in got)


@pytest.mark.parametrize("name", ["arcface", "cross entropy"])
def test_autocast_changes_nothing(name: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant, torch.float32)
    expected = gradients(variant.loss, variant, inputs, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(variant.loss, variant, inputs, None)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
