"""Memory of a loss: bytes saved for backward, and peak bytes above its inputs. All in bytes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def _storage(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def saved_bytes(loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> int:
    """Bytes that the forward keeps for the backward, the inputs themselves left out.

    Distinct storages count once, whole. Tensors that a Function keeps as attributes, past
    `save_for_backward`, are not seen here; the peak shows them.
    """
    known = {_storage(tensor) for tensor in inputs}
    kept: dict[tuple[str, int], Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and _storage(tensor) not in known:
            # Holding the tensor keeps its address from being used again while we count.
            kept[_storage(tensor)] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's library writes log lines straight to file descriptor 2."""
    sys.stderr.flush()
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _peak_cpu(run: Callable[[], object]) -> int | None:
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        result = run()
    results = taken.profiler.kineto_results if taken.profiler is not None else None
    if results is None:
        return None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    ]
    del result
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak


def _peak_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Highest sum of live bytes that `run` adds to what was there before, results included.

    From the records of torch's own allocator: on the CPU through the profiler, on CUDA from its
    counters. Memory that a library takes behind torch's back is not in it. None: no records.
    """
    return _peak_cuda(run, device) if device.type == "cuda" else _peak_cpu(run)
