"""Time and memory of a loss, measured inside the training."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from .task import Loss, LossMemory


def now(device: torch.device) -> float:
    """Seconds on a clock, after the work that was queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed_gradient(
    loss: Loss, logits: Tensor, arguments: tuple[Tensor, ...]
) -> tuple[float, Tensor, float]:
    """Value of the loss, its gradient (as ``logits``), and the seconds both took."""
    leaf = logits.detach().requires_grad_()
    start = now(leaf.device)
    value = loss(leaf, *arguments)
    (gradient,) = torch.autograd.grad(value, leaf)
    seconds = now(leaf.device) - start
    return value.item(), gradient, seconds


def relative_error(value: Tensor, reference: Tensor) -> float:
    """L2 norm of the difference over that of the reference, in double precision."""
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm().clamp(min=1e-300))


def loss_memory(loss: Loss, logits: Tensor, arguments: tuple[Tensor, ...]) -> LossMemory:
    """Memory of one forward and backward of the loss; see ``LossMemory``."""
    leaf = logits.detach().requires_grad_()
    loss(leaf, *arguments)  # what is set up once and kept is not the loss's working memory
    saved = _saved_bytes(loss, leaf, arguments)
    if leaf.device.type == "cuda":
        return LossMemory(saved, _cuda_peak(loss, leaf, arguments))
    return LossMemory(saved, _cpu_peak(loss, leaf, arguments))


def _saved_bytes(loss: Loss, leaf: Tensor, arguments: tuple[Tensor, ...]) -> int:
    given = {tensor.untyped_storage().data_ptr() for tensor in (leaf, *arguments)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(leaf, *arguments)
    del value  # up to here the graph held every storage, so no address was used twice
    return sum(kept.values())


def _cuda_peak(loss: Loss, leaf: Tensor, arguments: tuple[Tensor, ...]) -> int:
    torch.cuda.synchronize(leaf.device)
    torch.cuda.reset_peak_memory_stats(leaf.device)
    before = torch.cuda.memory_allocated(leaf.device)
    torch.autograd.grad(loss(leaf, *arguments), leaf)
    return torch.cuda.max_memory_allocated(leaf.device) - before


def _cpu_peak(loss: Loss, leaf: Tensor, arguments: tuple[Tensor, ...]) -> int:
    cpu = [ProfilerActivity.CPU]
    with _quiet_profiler(), profile(activities=cpu, profile_memory=True) as recorded:
        torch.autograd.grad(loss(leaf, *arguments), leaf)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Ev Idx"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]"
    )
    allocated = peak = 0
    for _, _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler's library from printing log lines into the demo's output.

    Where CUDA is built in but there is no device it reports an error that is none. It reads the
    level when it is first used; a level that the user has set is left alone.
    """
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        del os.environ[name]
