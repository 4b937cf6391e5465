"""Values and gradients of every case, on every backend, under both schedules, in every dtype."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import fusedloss
import pytest
import torch
from cases import BY_NAME, CASES, Case
from tolerances import check_close, check_gradient
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SCHEDULES = ("recompute", "forward")

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def _upstream(loss: Tensor) -> Tensor:
    """A gradient that is neither 1 nor the same everywhere."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(loss.shape, generator=generator).to(loss) + 0.5


def _eager(
    case: Case, input: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    x = input.detach().clone().requires_grad_()
    loss = case.loss.reference(x, target, **options)
    (grad,) = torch.autograd.grad(loss, x, _upstream(loss))
    return loss.detach(), grad


def _expected(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    input, target, options = case.inputs(dtype)
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    exact = _eager(case, input.double(), target, wide)
    return input, target, options, exact, _eager(case, input, target, options)


def _check(
    case: Case,
    loss: Tensor,
    grad: Tensor,
    exact: tuple[Tensor, Tensor],
    eager: tuple[Tensor, Tensor],
) -> None:
    check_close(f"{case.name} loss", loss, exact[0], eager[0])
    check_gradient(f"{case.name} gradient", grad, exact[1], eager[1])


@each_schedule
@each_dtype
@each_case
def test_native(case: Case, dtype: torch.dtype, schedule: str) -> None:
    input, target, options, exact, eager = _expected(case, dtype)
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        loss = case.loss.function(x, target, **options)
        (grad,) = torch.autograd.grad(loss, x, _upstream(loss))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    _check(case, loss.detach(), grad, exact, eager)


@each_schedule
@each_dtype
@each_case
def test_emulated_cuda(case: Case, dtype: torch.dtype, schedule: str, emulator: ModuleType) -> None:
    input, target, options, exact, eager = _expected(case, dtype)
    # Without counters, on small inputs with the race check: the traffic has a test of its own.
    emulator.configure(count=False, race_check=input.numel() < 3000, seed=len(case.name))
    kernel = case.loss.emulated(emulator, input, target, **options)
    loss, grad = kernel.run(schedule, _upstream(exact[0].to(kernel.dtype)))
    _check(case, loss, grad, exact, eager)


@each_schedule
@each_case
def test_same_bits_for_any_thread_count_and_run(case: Case, schedule: str) -> None:
    input, target, options = case.inputs(torch.float32)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        x = input.detach().requires_grad_()
        with fusedloss.gradient_schedule(schedule):
            loss = case.loss.function(x, target, **options)
            results.append((loss, *torch.autograd.grad(loss, x, torch.ones_like(loss))))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_emulated_cuda_gives_the_same_bits_for_any_order_of_threads(emulator: ModuleType) -> None:
    input, target, options = BY_NAME["focal-long-index"].inputs(torch.float32)
    results = []
    for seed in range(4):
        emulator.configure(seed=seed, count=False, race_check=False)
        kernel = BY_NAME["focal-long-index"].loss.emulated(emulator, input, target, **options)
        results.append(kernel.run("recompute"))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 2.5])
def test_saturated_logits_stay_finite(dtype: torch.dtype, gamma: float) -> None:
    top = min(torch.finfo(dtype).max, 1e6)
    x = torch.tensor([-top, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, top], dtype=dtype)
    for target in (torch.zeros(8), torch.ones(8), torch.full((8,), 0.3)):
        for schedule in SCHEDULES:
            leaf = x.clone().requires_grad_()
            with fusedloss.gradient_schedule(schedule):
                loss = fusedloss.sigmoid_focal_loss(leaf, target, gamma=gamma, reduction="sum")
                loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_logits_show_as_in_eager(value: float, emulator: ModuleType) -> None:
    emulator.configure(count=False)
    x = torch.tensor([[0.5, value, -1.0]])
    target = torch.tensor([[0.0, 1.0, 1.0]])
    eager = fusedloss.reference.sigmoid_focal_loss(x, target, reduction="none")
    native = fusedloss.sigmoid_focal_loss(x, target, reduction="none")
    emulated, _ = (
        BY_NAME["focal-none"].loss.emulated(emulator, x, target, reduction="none").run("recompute")
    )
    assert torch.equal(torch.isnan(native), torch.isnan(emulated))
    assert torch.equal(
        native[:, [0, 2]],
        fusedloss.sigmoid_focal_loss(x[:, [0, 2]], target[:, [0, 2]], reduction="none"),
    )
    # NaN where eager has NaN, infinite where it is infinite.
    for got in (native, emulated):
        torch.testing.assert_close(got, eager, equal_nan=True)


@pytest.mark.parametrize("index", [True, False])
def test_ignored_elements_have_no_effect_whatever_their_logit(
    index: bool, emulator: ModuleType
) -> None:
    emulator.configure(count=False)
    x = torch.randn(6, 5)
    target = torch.tensor([0, 1, -100, 5, -100, 2]) if index else torch.rand(6, 5)
    if not index:
        target[[2, 4]] = -100.0
    # With a gradient, as below: the pass without one may round the last bit differently.
    clean = fusedloss.sigmoid_focal_loss(x.clone().requires_grad_(), target)
    x[2] = torch.nan
    x[4] = torch.inf
    leaf = x.requires_grad_()
    loss = fusedloss.sigmoid_focal_loss(leaf, target)
    loss.backward()
    assert torch.equal(loss, clean)
    assert (leaf.grad[[2, 4]] == 0).all()
    assert torch.isfinite(leaf.grad).all()
    loss, grad = BY_NAME["focal-none"].loss.emulated(emulator, x.detach(), target).run("recompute")
    assert torch.isfinite(loss)
    assert (grad[[2, 4]] == 0).all()


@pytest.mark.parametrize("label", [-2, 6, 1000, -99])
def test_out_of_range_label(label: int, emulator: ModuleType) -> None:
    target = torch.tensor([0, 1, label, 5, -1, 2])
    x = torch.randn(6, 5)
    with pytest.raises(IndexError, match=f"label {label}, but input has 5 classes"):
        fusedloss.sigmoid_focal_loss(x, target)
    with fusedloss.backend("reference"), pytest.raises(IndexError, match=f"label {label}"):
        fusedloss.sigmoid_focal_loss(x, target)
    # On a GPU nothing waits for the device: the row's loss is NaN, the others are right.
    emulator.configure(count=False)
    loss, _ = (
        BY_NAME["focal-none"].loss.emulated(emulator, x, target, reduction="none").run("recompute")
    )
    assert torch.isnan(loss[2]).all()
    assert torch.isfinite(loss[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize("indexed", [True, False])
def test_offsets_beyond_32_bits(indexed: bool, emulator: ModuleType) -> None:
    """Two rows 2^31 elements apart: 4 GiB of address space, of which two pages are touched."""
    store = torch.empty(2**31 + 64, dtype=torch.float16)
    x = store.as_strided((2, 40), (2**31, 1))
    x.copy_(torch.randn(2, 40))
    target = torch.tensor([3, 39]) if indexed else (torch.rand(2, 40) < 0.5)
    near = x.clone().requires_grad_()
    expected = fusedloss.sigmoid_focal_loss(near, target)
    (grad,) = torch.autograd.grad(expected, near)
    far = x.detach().requires_grad_()
    loss = fusedloss.sigmoid_focal_loss(far, target)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss, far)[0], grad)
    emulator.configure(count=False, race_check=False)
    emulated, emulated_grad = (
        BY_NAME["focal-index"].loss.emulated(emulator, x, target).run("recompute")
    )
    check_close("loss", emulated, expected.detach().double(), expected.detach())
    check_close("gradient", emulated_grad, grad.double(), grad)
