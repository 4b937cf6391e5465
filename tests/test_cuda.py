"""The table on a real GPU. Collected only where there is one (conftest.py says so in the header)."""

from __future__ import annotations

import fusedloss
import pytest
import torch
from cases import CROSS_ENTROPY, Case, Loss
from test_losses import (
    _check,
    _expected,
    _upstream,
    each_case,
    each_dtype,
    each_loss,
    each_schedule,
)
from torch import Tensor

pytestmark = pytest.mark.gpu


@each_schedule
@each_dtype
@each_case
def test_cuda(case: Case, dtype: torch.dtype, schedule: str) -> None:
    input, target, options, exact, eager = _expected(case, dtype)
    options = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
    x = input.cuda().requires_grad_()
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        loss = case.loss.function(x, target.cuda(), **options)
        (grad,) = torch.autograd.grad(loss, x, _upstream(loss.cpu()).cuda())
    _check(case, loss.detach().cpu(), grad.cpu(), exact, eager)


@each_loss
def test_out_of_range_label_raises_in_debug_only(loss: Loss) -> None:
    x = torch.randn(4, 5, device="cuda")
    target = torch.tensor([0, 9, 4, 1], device="cuda")
    value = loss.function(x, target, reduction="none")
    assert torch.isnan(value[1]).all()
    assert torch.isfinite(value[[0, 2, 3]]).all()
    with fusedloss.debug(True), pytest.raises(IndexError, match="label 9"):
        loss.function(x, target)


@each_loss
def test_no_host_synchronisation(loss: Loss) -> None:
    x = torch.randn(64, 80, device="cuda", requires_grad=True)
    target = torch.randint(0, 80, (64,), device="cuda")
    options = {} if loss is CROSS_ENTROPY else {"normalizer": torch.ones((), device="cuda")}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for schedule in ("recompute", "forward"):
            with fusedloss.gradient_schedule(schedule):
                loss.function(x, target, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_loss
def test_cuda_graph(loss: Loss) -> None:
    x = torch.randn(64, 80, device="cuda")
    target = torch.randint(0, 80, (64,), device="cuda")
    expected = loss.function(x, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss.function(x, target)
    graph.replay()
    assert torch.equal(captured, expected)
