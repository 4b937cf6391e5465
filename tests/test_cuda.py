"""The table on a real GPU. Collected only where there is one (conftest.py says so in the header)."""

from __future__ import annotations

from typing import Any

import fusedloss
import pytest
import torch
from cases import SIGMOID_FOCAL, SOFTMAX_FOCAL, Case, Loss
from test_losses import (
    _expected,
    _upstream,
    each_dtype,
    each_loss,
    each_run,
    each_schedule,
)
from tolerances import check_close, check_gradient
from torch import Tensor

pytestmark = pytest.mark.gpu


def cuda_results(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a row of the table, computed on the GPU."""
    input, target, options = case.inputs(dtype)
    options = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
    x = input.detach().cuda().requires_grad_()
    loss = case.loss.function(x, target.cuda(), **options)
    (grad,) = torch.autograd.grad(loss, x, _upstream(loss.cpu()).cuda())
    return loss.detach().cpu(), grad.cpu()


def run_on_cuda(case: Case, dtype: torch.dtype, schedule: str) -> None:
    """Value and gradient against the float64 reference, by the tolerance rule."""
    _, _, _, exact, eager = _expected(case, dtype)
    with fusedloss.gradient_schedule(schedule):
        loss, grad = cuda_results(case, dtype)
    assert grad.dtype == dtype
    check_close(f"{case.name} loss", loss, exact[0], eager[0])
    # The GPU's fast exponential and reciprocal err to one side by a unit or two.
    check_gradient(f"{case.name} gradient", grad, exact[1], eager[1], bias_ulps=4.0)


@each_dtype
@each_run
def test_cuda(case: Case, dtype: torch.dtype, schedule: str) -> None:
    with fusedloss.backend("native"):
        run_on_cuda(case, dtype, schedule)


def _inputs(rows: int = 64, classes: int = 80) -> tuple[Tensor, Tensor]:
    """Numbers that serve as logits and as cosines, and labels."""
    x = (torch.rand(rows, classes, device="cuda") * 1.9 - 0.95).requires_grad_()
    return x, torch.randint(0, classes, (rows,), device="cuda")


@each_loss
def test_out_of_range_label_raises_in_debug_only(loss: Loss) -> None:
    x, _ = _inputs(4, 5)
    target = torch.tensor([0, 9, 4, 1], device="cuda")
    value = loss.function(x, target, reduction="none")
    assert torch.isnan(value[1]).all()
    assert torch.isfinite(value[[0, 2, 3]]).all()
    with fusedloss.debug(True), pytest.raises(IndexError, match="label 9"):
        loss.function(x, target)


@each_schedule
@each_loss
def test_no_host_synchronisation(loss: Loss, schedule: str) -> None:
    x, target = _inputs()
    on_the_device = loss in (SIGMOID_FOCAL, SOFTMAX_FOCAL)
    options = {"normalizer": torch.ones((), device="cuda")} if on_the_device else {}
    torch.cuda.set_sync_debug_mode("error")
    try:
        with fusedloss.gradient_schedule(schedule):
            loss.function(x, target, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


@each_schedule
@each_loss
def test_cuda_graph(loss: Loss, schedule: str) -> None:
    """Loss and gradient are captured, and replayed over new logits."""
    x, target = _inputs()
    with fusedloss.gradient_schedule(schedule):

        def step() -> tuple[Tensor, Tensor]:
            value = loss.function(x, target)
            return value, *torch.autograd.grad(value, x)

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            x.copy_(_inputs()[0])
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


@each_schedule
@each_loss
def test_same_bits_in_every_run(loss: Loss, schedule: str) -> None:
    x, target = _inputs(70_001, 91)
    results = []
    with fusedloss.gradient_schedule(schedule):
        for _ in range(5):
            value = loss.function(x, target)
            results.append((value, *torch.autograd.grad(value, x)))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("function", [fusedloss.cross_entropy, fusedloss.arcface_loss])
def test_gradient_over_the_logits(function: Any) -> None:
    leaf, target = _inputs(300, 1001)
    with fusedloss.gradient_schedule("recompute"):  # as a backward over the logits does
        (expected,) = torch.autograd.grad(function(leaf, target), leaf)
    x = leaf * 1
    place = x.data_ptr()
    x.retain_grad()
    x.register_hook(lambda grad: places.append(grad.data_ptr()))
    places: list[int] = []
    function(x, target, inplace_backward=True).backward()
    assert places == [place]
    assert torch.equal(leaf.grad, expected)


def _linear_cases() -> list[tuple[str, Any, dict[str, Any]]]:
    margin, cross = fusedloss.linear_margin_softmax_loss, fusedloss.linear_cross_entropy
    return [
        ("arcface", margin, {"m2": 0.5, "chunk_size": 37}),
        ("sub-centers", margin, {"m3": 0.35, "sub_centers": 3, "chunk_size": 64}),
        ("smoothed", cross, {"label_smoothing": 0.1, "chunk_size": 50}),
        ("z-loss", cross, {"z_loss": 1e-3, "reduction": "none"}),
    ]


@pytest.mark.parametrize(
    ("name", "function", "options"), _linear_cases(), ids=lambda v: str(v)[:12]
)
def test_linear_losses(name: str, function: Any, options: dict[str, Any]) -> None:
    classes, centers = 1003, options.get("sub_centers", 1)
    features, weight = torch.randn(200, 64), torch.randn(classes * centers, 64) * 0.3
    target = torch.randint(0, classes, (200,))
    target[::7] = -1 if function is fusedloss.linear_margin_softmax_loss else -100
    eager = getattr(fusedloss.reference, function.__name__)
    plain = {key: value for key, value in options.items() if key != "chunk_size"}

    def run(what: Any, how: dict[str, Any], *given: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given[:2]]
        value = what(*leaves, given[2], **how)
        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

    got = run(function, options, features.cuda(), weight.cuda(), target.cuda())
    exact = run(eager, plain, features.double(), weight.double(), target)
    yardstick = run(eager, plain, features.cuda(), weight.cuda(), target.cuda())
    check_close(f"{name} loss", got[0].cpu(), exact[0], yardstick[0].cpu())
    for which, *triple in zip(
        ("features", "weight"), got[1:], exact[1:], yardstick[1:], strict=True
    ):
        check_gradient(
            f"{name} gradient of the {which}", triple[0].cpu(), triple[1], triple[2].cpu()
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_more_than_two_to_the_31_elements(reduction: str) -> None:
    """The last rows lie beyond 32-bit offsets: they must be those of a small tensor."""
    classes, few = 97, 5
    rows = (2**31 + 2**20) // classes
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs a GPU with 24 GiB")
    x = torch.zeros(rows, classes, device="cuda", dtype=torch.bfloat16)
    x[-few:] = torch.randn(few, classes, device="cuda")
    target = torch.randint(0, classes, (rows,), device="cuda", dtype=torch.uint8)
    small = x[-few:].clone().requires_grad_()
    x.requires_grad_()
    value = fusedloss.cross_entropy(x, target, reduction=reduction)
    expected = fusedloss.cross_entropy(small, target[-few:], reduction="none")
    if reduction == "none":
        assert torch.equal(value[-few:], expected)
        value = value.sum() / rows
    (grad,) = torch.autograd.grad(value * rows, x)
    (right,) = torch.autograd.grad(expected.sum(), small)
    torch.testing.assert_close(grad[-few:], right, rtol=2e-2, atol=1e-6)
