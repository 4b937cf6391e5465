"""Hard example mining on a real GPU, beside its rows of the table in test_cuda.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu

ROW_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ohem": ("ohem_cross_entropy_loss", {"threshold": 0.2, "min_kept": 500}),
    "ohem, few above": ("ohem_cross_entropy_loss", {"threshold": 0.001, "min_kept": 3000}),
    "topk": ("topk_cross_entropy_loss", {"k": 0.1}),
    "topk number": ("topk_cross_entropy_loss", {"k": 777}),
}
ELEMENT_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "balanced": ("balanced_bce_loss", {}),
    "of images": ("hard_negative_mining_loss", {"dim": (1, 2, 3)}),
}
BOTH = {**ROW_LOSSES, **ELEMENT_LOSSES}
each_loss = pytest.mark.parametrize("loss", BOTH)


def _problem(loss: str, *pixels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = 8 if loss in ROW_LOSSES else 1
    x = torch.randn(3, classes, *pixels, generator=generator).to("cuda", dtype).requires_grad_()
    if loss in ROW_LOSSES:
        return x, torch.randint(0, 8, (3, *pixels), generator=generator).cuda()
    return x, (torch.rand(x.shape, generator=generator) < 0.05).cuda()


def _function(loss: str) -> Callable[..., Tensor]:
    name, options = BOTH[loss]
    function = getattr(fusedloss, name)
    return lambda *args, **more: function(*args, **options, **more)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("last", [False, True])
def test_as_the_reference(loss: str, dtype: torch.dtype, reduction: str, last: bool) -> None:
    x, target = _problem(loss, 61, 67, dtype=dtype)
    if last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    value = _function(loss)(x, target, reduction=reduction)
    (grad,) = torch.autograd.grad(value.sum(), x)
    wide = x.detach().double().requires_grad_()
    with fusedloss.backend("reference"):
        exact = _function(loss)(wide, target, reduction=reduction)
    (exact_grad,) = torch.autograd.grad(exact.sum(), wide)
    # In float32 two losses at the cut may change places.
    differs = (grad != 0) != (exact_grad != 0)
    assert int(differs.sum()) <= (0 if dtype == torch.float64 else 4 * x.size(1))
    scale = float(exact_grad.abs().max())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    error = (grad.double() - exact_grad).abs().masked_fill(differs, 0.0)
    assert float(error.max()) <= tolerance * scale
    if reduction != "none":
        relative = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(value.double(), exact, rtol=relative, atol=0)


@each_loss
def test_no_host_synchronisation(loss: str) -> None:
    x, target = _problem(loss, 64, 64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _function(loss)(x, target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


@each_loss
def test_cuda_graph(loss: str) -> None:
    """Loss and gradient are captured, and replayed over new logits: counts are cleared each time."""
    x, target = _problem(loss, 64, 64)

    def step() -> tuple[Tensor, Tensor]:
        value = _function(loss)(x, target)
        return value, *torch.autograd.grad(value, x)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


@each_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits_in_every_run(loss: str, reduction: str) -> None:
    x, target = _problem(loss, 601, 607)
    weight = {"weight": torch.rand(8, device="cuda") + 0.5} if loss in ROW_LOSSES else {}
    results = []
    for _ in range(5):
        value = _function(loss)(x, target, reduction=reduction, **weight)
        results.append((value, *torch.autograd.grad(value.sum(), x)))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("loss", ROW_LOSSES)
def test_out_of_range_label_raises_in_debug_only(loss: str) -> None:
    x, target = _problem(loss, 64, 64)
    target[1, 3, 5] = 9
    assert torch.isnan(_function(loss)(x, target))
    with fusedloss.debug(True), pytest.raises(IndexError, match="target holds label 9"):
        _function(loss)(x, target)


@pytest.mark.parametrize("loss", ["ohem", "topk", "balanced"])
def test_memory_beside_the_gradient(loss: str) -> None:
    """At most 12 bytes a pixel, and the workspace."""
    x, target = _problem(loss, 1024, 1024)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (grad,) = torch.autograd.grad(_function(loss)(x, target), x)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= grad.numel() * grad.element_size() + 12 * target.numel() + 2**20
