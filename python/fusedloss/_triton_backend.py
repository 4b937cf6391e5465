"""When the Triton kernels serve the operators, and why not.

The operators are those of the native library, which also has their schemas. Where it holds no kernels for
a GPU, Triton's are registered for that device once; where they are asked for by name, they take the place
of whatever is registered until another backend is chosen.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from . import _ops

GPUS = ("cuda", "xpu")
DEVICES = (*GPUS, "cpu")

_forced: Any = None  # the registrations of a backend that was asked for
_permanent: dict[str, Any] = {}


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(device_type: str) -> str | None:
    """None where Triton can run kernels for this device, else the reason in words."""
    if _ops.library_path() is None:
        return "the native library of fusedloss, which has the operators' schemas, was not built"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None if device_type == "cpu" else "TRITON_INTERPRET=1 runs kernels on the CPU alone"
    if device_type == "cpu":
        return (
            "Triton has kernels for GPUs (on the CPU it interprets them, with TRITON_INTERPRET=1)"
        )
    there = {"cuda": torch.cuda.is_available, "xpu": torch.xpu.is_available}.get(device_type)
    if there is None:
        return f"fusedloss has no Triton kernels for {device_type} tensors"
    return None if there() else f"there is no {device_type} device"


def _register(device_types: tuple[str, ...]) -> Any:
    from ._triton.ops import serve

    return serve(device_types)


def serves(device_type: str) -> bool:
    """Whether tensors of a device without compiled kernels get Triton's; registers them if so."""
    if interpreted() or why_not(device_type) is not None:
        return False
    if device_type not in _permanent:
        _permanent[device_type] = _register((device_type,))
    return True


def force(enabled: bool) -> None:
    """Has the operators run Triton's kernels wherever it has some, or no longer."""
    global _forced
    if enabled and _forced is None:
        _forced = _register(tuple(device for device in DEVICES if why_not(device) is None))
    elif not enabled and _forced is not None:
        _forced._destroy()
        _forced = None
