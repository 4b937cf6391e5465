"""The table on a real GPU. Collected only where there is one (conftest.py says so in the header)."""

from __future__ import annotations

import fusedloss
import pytest
import torch
from cases import CROSS_ENTROPY, REGION_LOSSES, Case, Loss
from test_losses import (
    _check,
    _expected,
    _upstream,
    each_dtype,
    each_loss,
    each_run,
)
from torch import Tensor

pytestmark = pytest.mark.gpu


@each_dtype
@each_run
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


each_region_loss = pytest.mark.parametrize("loss", REGION_LOSSES, ids=lambda loss: loss.name)


def _region_problem(loss: Loss) -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
    x = torch.randn(3, 8, 64, device="cuda", requires_grad=True)
    if "softmax" in loss.name:
        return x, torch.randint(0, 8, (3, 64), device="cuda"), {}
    return x, torch.rand(3, 8, 64, device="cuda") < 0.3, {"mode": "multilabel"}


@pytest.mark.parametrize("loss", [x for x in REGION_LOSSES if "softmax" in x.name])
def test_out_of_range_label_of_regions_raises_in_debug_only(loss: Loss) -> None:
    x, target, _ = _region_problem(loss)
    target[1, 3] = 9
    assert torch.isnan(loss.function(x, target))
    name = loss.function.__name__
    with fusedloss.debug(True), pytest.raises(IndexError, match=f"{name}: target holds label 9"):
        loss.function(x, target)


@each_region_loss
def test_no_host_synchronisation_for_regions(loss: Loss) -> None:
    x, target, options = _region_problem(loss)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.function(x, target, weight=torch.ones(8, device="cuda"), **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_region_loss
def test_cuda_graph_of_regions(loss: Loss) -> None:
    x, target, options = _region_problem(loss)
    x = x.detach()
    expected = loss.function(x, target, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss.function(x, target, **options)
    graph.replay()
    assert torch.equal(captured, expected)
