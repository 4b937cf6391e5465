"""The CUDA kernels on the emulator, called with CPU tensors the way csrc/ calls them on a GPU."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fusedloss._ops import REDUCTIONS
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.int8,
    torch.bool,
)


def build_folder() -> Path:
    """Where CMake built the test modules."""
    return Path(os.environ.get("FUSEDLOSS_CMAKE_BUILD", REPOSITORY / "build" / "cmake"))


def load_module(name: str) -> ModuleType:
    """A test module that CMake built; an error that says how to build it where it is missing."""
    found = sorted(build_folder().rglob(f"{name}*.so"))
    if not found:
        raise RuntimeError(
            f"{name} is not built in {build_folder()}: run `make test`, or "
            "`cmake -S . -B build/cmake && cmake --build build/cmake`; another build folder is named "
            "by FUSEDLOSS_CMAKE_BUILD"
        )
    sys.path.insert(0, str(found[0].parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def load_testing_module() -> ModuleType:
    """The torch-free test module: emulator, CUDA launchers on it, scalar functions."""
    return load_module("fusedloss_testing")


def _span_bytes(x: Tensor) -> int:
    if x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


@contextmanager
def device_memory(module: ModuleType, *tensors: Tensor | None) -> Iterator[None]:
    """Registers exactly the bytes that the tensors span: any access beside them is an error."""
    spans: dict[int, int] = {}
    for x in tensors:
        if x is not None and x.numel():
            spans[x.data_ptr()] = max(spans.get(x.data_ptr(), 0), _span_bytes(x))
    for address, size in spans.items():
        module.register_range(address, size, "tensor")
    try:
        yield
    finally:
        for address in spans:
            module.unregister_range(address)


View = tuple[int, int, list[int]]


def _view(x: Tensor, sizes: list[int]) -> View:
    offset = len(sizes) - x.dim()
    strides = [0] * offset + [
        0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)
    ]
    return (x.data_ptr(), DTYPES.index(x.dtype), strides)


def _grad_like(x: Tensor) -> Tensor:
    """Poisoned memory in the layout that the binding allocates."""
    grad = torch.empty_like(x)
    grad.fill_(torch.nan)
    return grad


class SigmoidFocal:
    """One sigmoid focal loss on the emulator: forward, then backward, under either schedule."""

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        self.module, self.input, self.target = module, input, target
        self.gamma = float(options.get("gamma", 2.0))
        self.smoothing = float(options.get("label_smoothing", 0.0))
        self.reduction = options.get("reduction", "mean")
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        alpha = options.get("alpha", 0.25)
        self.alpha = alpha.to(self.dtype) if isinstance(alpha, Tensor) else None
        self.weight = options.get("weight")
        normalizer = options.get("normalizer")
        self.normalizer = (
            normalizer.to(self.dtype).reshape(()) if isinstance(normalizer, Tensor) else None
        )
        indexed = target.dim() != input.dim()
        sizes = list(input.shape)
        target_view = _view(target, sizes)
        if indexed:
            target_view = (target.data_ptr(), DTYPES.index(target.dtype), [*target.stride(), 0])
        self.call: dict[str, Any] = {
            "sizes": sizes,
            "class_dim": len(sizes) - 1 if indexed else -1,
            "logits": _view(input, sizes),
            "target": target_view,
            "normalizer": 0 if self.normalizer is None else self.normalizer.data_ptr(),
            "normalizer_value": 0.0
            if normalizer is None or self.normalizer is not None
            else float(normalizer),
            "side_value": -1.0 if alpha is None or self.alpha is not None else float(alpha),
            "ignore_index": options.get("ignore_index", -100),
            "num_classes": sizes[-1] if indexed else 1,
            "indexed": indexed,
            "reduction": REDUCTIONS[self.reduction],
            "workspace": 0,
        }
        if self.alpha is not None:
            self.call["side"] = _view(self.alpha, sizes)
        if self.weight is not None:
            self.call["weight"] = _view(self.weight, sizes)

    def forward(self, with_grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss, scale, grad): what the forward operator returns."""
        shape = self.input.shape if self.reduction == "none" else ()
        loss = torch.full(shape, torch.nan, dtype=self.dtype)
        if self.reduction == "none":
            loss = _grad_like(self.input.to(self.dtype)) if self.input.numel() else loss
        scale = torch.full((), torch.nan, dtype=self.dtype)
        grad = _grad_like(self.input) if with_grad else None
        call = {
            **self.call,
            "loss": _view(loss, self.call["sizes"] if self.reduction == "none" else []),
            "scale": scale.data_ptr(),
            "prescale": with_grad and self.input.dtype != torch.float16,
        }
        if grad is not None:
            call["grad"] = _view(grad, self.call["sizes"])
        workspace = torch.empty(self.module.pointwise_workspace_bytes(call), dtype=torch.uint8)
        workspace.fill_(0xFF)
        call["workspace"] = workspace.data_ptr()
        tensors = (self.input, self.target, self.alpha, self.weight, self.normalizer)
        with device_memory(self.module, *tensors, loss, scale, grad, workspace):
            self.module.sigmoid_focal_fwd(call, self.gamma, self.smoothing)
        return loss, scale, grad

    def backward(self, grad_output: Tensor, scale: Tensor) -> Tensor:
        """The gradient of the input, recomputed from the logits."""
        grad = _grad_like(self.input)
        sizes = self.call["sizes"]
        call = {
            **self.call,
            "grad_output": _view(grad_output, sizes),
            "grad": _view(grad, sizes),
            "scale": scale.data_ptr(),
            "prescale": False,
        }
        tensors = (self.input, self.target, self.alpha, self.weight)
        with device_memory(self.module, *tensors, grad_output, scale, grad):
            self.module.sigmoid_focal_bwd(call, self.gamma, self.smoothing)
        return grad

    def scaled(self, grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
        """The gradient from forward, finished in place as the backward does."""
        sizes = self.call["sizes"]
        with device_memory(self.module, grad, grad_output, scale):
            self.module.scale_gradient(
                sizes,
                _view(grad, sizes),
                _view(grad_output, sizes),
                _view(grad, sizes),
                scale.data_ptr(),
            )
        return grad

    def run(self, schedule: str, grad_output: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(loss, gradient) under a gradient schedule."""
        loss, scale, grad = self.forward(with_grad=schedule == "forward")
        upstream = torch.ones((), dtype=self.dtype) if grad_output is None else grad_output
        if self.reduction == "none" and grad_output is None:
            upstream = upstream.expand(self.input.shape)
        if grad is None:
            return loss, self.backward(upstream, scale)
        return loss, self.scaled(grad, upstream, scale)
