"""The process-wide switches: which implementation runs, how gradients are scheduled, debug checks."""

from __future__ import annotations

import inspect
import os
import warnings
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from . import _ops, _triton_backend

T = TypeVar("T")


class _Setting(Generic[T]):
    """A process-wide value. ``set`` returns an undo that also works as a context manager."""

    def __init__(self, value: T) -> None:
        self.value = value

    def set(self, value: T) -> _Restore[T]:
        previous = self.value
        self.assign(value)
        return _Restore(self, previous)

    def assign(self, value: T) -> None:
        """Makes it the value from here on."""
        self.value = value


class _BackendSetting(_Setting[str]):
    """The backend. Choosing Triton has the operators run its kernels."""

    def assign(self, value: str) -> None:
        _triton_backend.force(value == "triton")
        super().assign(value)


class _Restore(Generic[T]):
    """Puts the earlier value of a switch back when its ``with`` block ends."""

    def __init__(self, setting: _Setting[T], previous: T) -> None:
        self._setting = setting
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._setting.assign(self._previous)


_backend_setting: _Setting[str] = _BackendSetting("auto")
_schedule_setting: _Setting[str] = _Setting("auto")
_debug_setting: _Setting[bool] = _Setting(False)


def backend(name: str) -> _Restore[str]:
    """Choose the implementation of every loss, for the whole process.

    Args:
        name: ``"native"`` (the compiled CPU and CUDA kernels), ``"triton"`` (kernels that Triton compiles
            for the GPU at hand), ``"reference"`` (eager PyTorch), or ``"auto"`` (the default: native
            where the tensor's device has compiled kernels, else Triton where it serves the device, else
            the reference with one warning).

    Takes effect at once; used in a ``with`` statement, the earlier choice returns at its end. Backward
    runs on the backend that is chosen when it runs; all keep the same numbers between the passes (but a
    region loss's gradient that the CPU's native forward has begun is finished by native kernels).

    Raises:
        ValueError: for another name.
        RuntimeError: where the named implementation is not there.
    """
    if name not in ("auto", "native", "triton", "reference"):
        raise ValueError(
            f"backend: got {name!r}, accepted are 'auto', 'native', 'triton' and 'reference'"
        )
    if name == "native" and _ops.library_path() is None:
        raise RuntimeError("backend: the native library of fusedloss was not built")
    if name == "triton":
        reasons = [_triton_backend.why_not(device) for device in _triton_backend.DEVICES]
        if all(reasons):
            why = "; ".join(dict.fromkeys(str(reason) for reason in reasons))
            raise RuntimeError(f"backend: 'triton' was asked for, but {why}")
    return _backend_setting.set(name)


def gradient_schedule(name: str) -> _Restore[str]:
    """Choose when gradients are computed, for the whole process.

    Args:
        name: ``"recompute"`` (forward keeps nothing of the logits' size; backward reads the logits
            again), ``"forward"`` (the gradient is written while the logits are hot; backward scales
            it, and only where the scale is not 1), or ``"auto"`` (the default: forward, except for
            float16, and on a GPU for softmax losses whose gradient would probably have to be scaled,
            such as means over images, of which some pixels are ignored). Region losses need their
            sums before any gradient and recompute, but on the CPU: there, unless told not to, forward
            over a softmax in float32 or float64 leaves its exponentials in the gradient's memory.

    Takes effect at once; used in a ``with`` statement, the earlier choice returns at its end.

    Raises:
        ValueError: for another name.
    """
    if name not in ("auto", "recompute", "forward"):
        raise ValueError(
            f"gradient_schedule: got {name!r}, accepted are 'auto', 'recompute' and 'forward'"
        )
    return _schedule_setting.set(name)


def debug(enabled: bool = True) -> _Restore[bool]:
    """Turn checks on that cost a device synchronisation, for the whole process.

    Without them an out-of-range label on a GPU gives its row a NaN loss; with them it raises the
    ``IndexError`` that the CPU always raises.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"debug: enabled must be a bool, got {type(enabled).__name__}")
    return _debug_setting.set(enabled)


def debugging() -> bool:
    """Whether ``debug`` is on."""
    return _debug_setting.value


def gradient_in_forward(input: Tensor) -> bool:
    """Whether the gradient of `input` is to be computed in the forward pass."""
    if _schedule_setting.value == "auto":
        return input.dtype != torch.float16
    return _schedule_setting.value == "forward"


# Rows up to this size are still in the cache of a GPU when their gradient follows.
LONGEST_ROW_BYTES = 32 * 1024


def on_native_cpu(input: Tensor) -> bool:
    """Whether the CPU engine runs, which looks at all labels before it writes a gradient."""
    return input.device.type == "cpu" and _backend_setting.value != "triton"


def row_gradient_in_forward(input: Tensor, classes: int, reduction: str, divisor: str) -> bool:
    """The same for a softmax loss over rows of `classes`, whose mean has a `divisor` that is
    ``"known"`` before the walk, or counts ``"rows"`` that are not ignored or their ``"weights"``.

    A GPU does not count before it walks: where the divisor was not the number of rows, backward
    scales the gradient, which costs more than the gradient in forward had saved. Rows of images and
    of long vocabularies are often ignored, those of a classification seldom.
    """
    if _schedule_setting.value != "auto" or on_native_cpu(input):
        return gradient_in_forward(input)
    known = reduction == "sum" or divisor == "known" or (divisor == "rows" and input.dim() <= 2)
    short = classes * input.element_size() <= LONGEST_ROW_BYTES
    return gradient_in_forward(input) and known and short and reduction != "none"


def recomputes() -> bool:
    """Whether gradients are not to be computed in forward, wherever there is a choice."""
    return _schedule_setting.value == "recompute"


def why_not_native(device_type: str) -> str | None:
    """None where compiled kernels serve this device, else the reason in words."""
    if _ops.library_path() is None:
        return "the native library of fusedloss was not built"
    if device_type == "cpu" or (device_type == "cuda" and _ops.has_cuda_kernels()):
        return None
    if device_type == "cuda":
        return "this build of fusedloss holds no CUDA kernels"
    return f"fusedloss has no kernels for {device_type} tensors"


_warned: set[str] = set()


def _caller_level() -> int:
    """The stack level, for a warning of the calling function, of the code that called the library, be it
    through a module of it.
    """
    ours = (os.path.dirname(__file__) + os.sep, torch.nn.modules.module.__file__)
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(ours):
        level, frame = level + 1, frame.f_back
    return level


def use_kernels(input: Tensor) -> bool:
    """Whether the operators serve this call, by the setting and the tensor's device: with compiled
    kernels or with Triton's.
    """
    setting, device = _backend_setting.value, input.device.type
    if setting == "reference":
        return False
    reason = why_not_native(device)
    if setting == "triton":
        reason = _triton_backend.why_not(device)
        if reason is not None:
            raise RuntimeError(f"backend: 'triton' was asked for, but {reason}")
        return True
    if reason is None:
        return True
    if setting == "native":
        raise RuntimeError(f"backend: 'native' was asked for, but {reason}")
    if _triton_backend.serves(device):
        return True
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        nor_triton = _triton_backend.why_not(device) if device in _triton_backend.GPUS else None
        why = reason if nor_triton is None else f"{reason}, and {nor_triton}"
        message = f"{why}; using the eager reference"
        warnings.warn(message, RuntimeWarning, stacklevel=_caller_level())
    return False
