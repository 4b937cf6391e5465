"""What is installed and what is in use, as text."""

from __future__ import annotations

import torch

from . import _backend, _ops, _triton_backend
from ._version import __version__


def show_config() -> str:
    """Versions, the backends that are built, the CPU level in use, CUDA architectures, threads."""
    lines = [("fusedloss", __version__), ("torch", torch.__version__)]
    path = _ops.library_path()
    lines.append(("native library", str(path) if path else "not built"))
    if path is not None:
        facts = _ops.build_facts()
        cuda = f"yes, for {facts['cuda_architectures']}" if facts["cuda"] else "no"
        lines += [
            ("compiler", facts["compiler"]),
            ("CPU level", facts["cpu_level"]),
            ("CUDA kernels", cuda),
        ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines += [
        ("GPU", gpu),
        ("threads", str(torch.get_num_threads())),
        ("CPU tensors use", _used("cpu")),
        ("CUDA tensors use", _used("cuda")),
        ("backend", _backend._backend_setting.value),
        ("gradient schedule", _backend._schedule_setting.value),
        ("debug", str(_backend.debugging())),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _used(device_type: str) -> str:
    setting = _backend._backend_setting.value
    reason = _backend.why_not_native(device_type)
    without_triton = _triton_backend.why_not(device_type)
    if setting == "reference":
        return "eager reference (the backend that is set)"
    if setting == "triton":
        return "Triton kernels" if without_triton is None else f"nothing ({without_triton})"
    if reason is None:
        return "native kernels"
    if setting == "native":
        return f"nothing ({reason})"
    if without_triton is None and device_type != "cpu":
        return f"Triton kernels ({reason})"
    return f"eager reference ({reason}; {without_triton})"
