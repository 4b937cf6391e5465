"""The region losses on a real GPU, beside their rows of the table in test_cuda.py."""

from __future__ import annotations

from typing import Any

import fusedloss
import pytest
import torch
from cases import REGION_LOSSES, Loss
from torch import Tensor

pytestmark = pytest.mark.gpu
each_region_loss = pytest.mark.parametrize("loss", REGION_LOSSES, ids=lambda loss: loss.name)


def _problem(loss: Loss, *pixels: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    x = torch.randn(3, 8, *pixels, device="cuda", requires_grad=True)
    if "softmax" in loss.name:
        return x, torch.randint(0, 8, (3, *pixels), device="cuda"), {}
    return x, torch.rand(x.shape, device="cuda") < 0.3, {"mode": "multilabel"}


@pytest.mark.parametrize("loss", [x for x in REGION_LOSSES if "softmax" in x.name])
def test_out_of_range_label_raises_in_debug_only(loss: Loss) -> None:
    x, target, _ = _problem(loss, 64)
    target[1, 3] = 9
    assert torch.isnan(loss.function(x, target))
    name = loss.function.__name__
    with fusedloss.debug(True), pytest.raises(IndexError, match=f"{name}: target holds label 9"):
        loss.function(x, target)


@each_region_loss
def test_no_host_synchronisation(loss: Loss) -> None:
    x, target, options = _problem(loss, 64)
    weight = torch.ones(8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.function(x, target, weight=weight, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


@each_region_loss
def test_cuda_graph(loss: Loss) -> None:
    """Loss and gradient are captured, and replayed over new logits."""
    x, target, options = _problem(loss, 64)

    def step() -> tuple[Tensor, Tensor]:
        value = loss.function(x, target, **options)
        return value, *torch.autograd.grad(value, x)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)


@each_region_loss
def test_same_bits_in_every_run(loss: Loss) -> None:
    x, target, options = _problem(loss, 301, 307)
    results = []
    for _ in range(5):
        value = loss.function(x, target, **options)
        results.append((value, *torch.autograd.grad(value, x)))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])
