"""The Triton kernels on a real GPU: the whole table, and parity with the compiled CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator

import fusedloss
import pytest
import torch
from cases import CASES, Case, Loss, under_its_schedules
from test_cuda import cuda_results, run_on_cuda
from test_losses import each_loss, each_schedule
from torch import Tensor

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with fusedloss.backend("triton"):
        yield


@pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES, on_cuda=True))
def test_table(case: Case, schedule: str) -> None:
    run_on_cuda(case, torch.float32, schedule)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES[::9], on_cuda=True))
def test_table_in_other_dtypes(case: Case, schedule: str, dtype: torch.dtype) -> None:
    run_on_cuda(case, dtype, schedule)


@pytest.mark.parametrize("case", CASES[::25], ids=lambda case: case.name)
def test_compiled_kernels_agree(case: Case) -> None:
    ours = cuda_results(case, torch.float64)
    with fusedloss.backend("native"):
        native = cuda_results(case, torch.float64)
    for got, expected in zip(ours, native, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@each_schedule
@each_loss
def test_no_host_synchronisation(loss: Loss, schedule: str) -> None:
    x, target = _inputs(64, 80)
    with fusedloss.gradient_schedule(schedule):
        loss.function(x, target).backward()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss.function(x, target).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


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


def _inputs(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Numbers that serve as logits and as cosines, and labels."""
    x = (torch.rand(rows, classes, device="cuda") * 1.9 - 0.95).requires_grad_()
    return x, torch.randint(0, classes, (rows,), device="cuda")
