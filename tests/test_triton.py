"""The Triton kernels on the CPU, under TRITON_INTERPRET=1: the whole table, and parity with the native
kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import fusedloss
import pytest
import torch
from cases import CASES, Case, under_its_schedules
from fusedloss import show_config
from test_losses import _check, _expected, _upstream
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, where NaN is wanted


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with fusedloss.backend("triton"):
        yield


def run(case: Case, dtype: torch.dtype, schedule: str) -> None:
    """Value and gradient against the float64 reference, by the tolerance rule."""
    input, target, options, exact, eager = _expected(case, dtype)
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(schedule):
        loss = case.loss.function(x, target, **options)
        (grad,) = torch.autograd.grad(loss, x, _upstream(exact[0].to(loss.dtype)))
    assert grad.dtype == dtype
    _check(case, loss.detach(), grad, exact, eager)


@pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES, on_cuda=True))
def test_table(case: Case, schedule: str) -> None:
    run(case, torch.float32, schedule)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES[::9], on_cuda=True))
def test_table_in_other_dtypes(case: Case, schedule: str, dtype: torch.dtype) -> None:
    run(case, dtype, schedule)


def results(case: Case) -> tuple[Tensor, Tensor]:
    input, target, options = case.inputs(torch.float64)
    x = input.detach().requires_grad_()
    options = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    loss = case.loss.function(x, target, **options)
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), grad


@pytest.mark.parametrize("case", CASES[::25], ids=lambda case: case.name)
def test_native_kernels_agree(case: Case) -> None:
    ours = results(case)
    with fusedloss.backend("native"):
        native = results(case)
    for got, expected in zip(ours, native, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_the_choice_is_shown_and_taken_back() -> None:
    assert "Triton kernels" in show_config()
    x, target = torch.randn(3, 4), torch.tensor([0, 9, 1])
    assert fusedloss.cross_entropy(x, target).isnan()  # as on a GPU
    with fusedloss.backend("native"), pytest.raises(IndexError):
        fusedloss.cross_entropy(x, target)
    with pytest.raises(RuntimeError, match="on the CPU alone"):
        fusedloss.cross_entropy(x.to("meta"), target.to("meta"))
