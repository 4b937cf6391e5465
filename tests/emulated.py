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


class _EmulatedLoss:
    """One loss on the emulator: forward, then backward, under either schedule.

    A subclass fills `call`, the kernels' description of it but for the outputs, and says which
    tensors the kernels may touch (`inputs`), how they are launched and what a row's outputs are.
    """

    numbers_of_scale: tuple[int, ...] = ()

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        self.module, self.input, self.target = module, input, target
        self.reduction = options.get("reduction", "mean")
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.smoothing = float(options.get("label_smoothing", 0.0))
        normalizer = options.get("normalizer")
        self.normalizer = (
            normalizer.to(self.dtype).reshape(()) if isinstance(normalizer, Tensor) else None
        )
        self.inputs: list[Tensor | None] = [input, target, self.normalizer]
        self.call: dict[str, Any] = {
            "sizes": list(input.shape),
            "logits": _view(input, list(input.shape)),
            "normalizer": 0 if self.normalizer is None else self.normalizer.data_ptr(),
            "normalizer_value": 0.0
            if normalizer is None or self.normalizer is not None
            else float(normalizer),
            "ignore_index": options.get("ignore_index", -100),
            "reduction": REDUCTIONS[self.reduction],
            "workspace": 0,
        }

    def launch(self, direction: str, call: dict[str, Any]) -> None:
        """Runs the kernels: `direction` is fwd or bwd."""
        raise NotImplementedError

    def workspace_bytes(self, call: dict[str, Any]) -> int:
        """What the engine wants beside the outputs."""
        raise NotImplementedError

    def empty_loss(self) -> Tensor:
        """A loss of each element or row, under reduction "none"."""
        raise NotImplementedError

    def loss_view(self, loss: Tensor) -> View:
        """Losses, or gradients of them, along the logits' dimensions; one number is constant."""
        return _view(loss, self.call["sizes"])

    def saved_for_backward(self, wanted: bool) -> tuple[dict[str, Any], Tensor | None]:
        """Entries of the call, and the tensor they point to."""
        return {}, None

    def forward(
        self, with_grad: bool, in_place: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss, scale, grad): what the forward operator returns; with the gradient over the logits."""
        loss = (
            self.empty_loss()
            if self.reduction == "none"
            else torch.full((), torch.nan, dtype=self.dtype)
        )
        scale = torch.full(self.numbers_of_scale, torch.nan, dtype=self.dtype)
        grad = (self.input if in_place else _grad_like(self.input)) if with_grad else None
        saving, saved = self.saved_for_backward(wanted=not with_grad)
        call = {
            **self.call,
            **saving,
            "loss": self.loss_view(loss),
            "scale": scale.data_ptr(),
            "prescale": with_grad and self.input.dtype != torch.float16,
        }
        if grad is not None:
            call["grad"] = _view(grad, self.call["sizes"])
        workspace = torch.empty(self.workspace_bytes(call), dtype=torch.uint8)
        workspace.fill_(0xFF)
        call["workspace"] = workspace.data_ptr()
        with device_memory(self.module, *self.inputs, loss, scale, grad, saved, workspace):
            self.launch("fwd", call)
        self.saved = saved
        return loss, scale, grad

    def backward(self, grad_output: Tensor, scale: Tensor, in_place: bool = False) -> Tensor:
        """The gradient of the input, recomputed from the logits; or in their place."""
        grad = self.input if in_place else _grad_like(self.input)
        call = {
            **self.call,
            **self.saved_for_backward(wanted=False)[0],
            "grad_output": self.loss_view(grad_output),
            "grad": _view(grad, self.call["sizes"]),
            "scale": scale.data_ptr(),
            "prescale": False,
        }
        if self.saved is not None:
            call["saved"], call["saved_stride"] = self.saved_view(self.saved)
        with device_memory(self.module, *self.inputs, grad_output, scale, grad, self.saved):
            self.launch("bwd", call)
        return grad

    def saved_view(self, saved: Tensor) -> tuple[View, int]:
        """Where the numbers of a row lie: the first, and the step to the others."""
        raise NotImplementedError

    def scaled(self, grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
        """The gradient from forward, finished in place as the backward does."""
        sizes = self.call["sizes"]
        with device_memory(self.module, grad, grad_output, scale):
            self.module.scale_gradient(
                sizes,
                _view(grad, sizes),
                self.loss_view(grad_output),
                _view(grad, sizes),
                scale.data_ptr(),
            )
        return grad

    def run(self, schedule: str, grad_output: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(loss, gradient) under a gradient schedule."""
        with_grad = schedule == "forward" and self.allows_gradient_in_forward()
        loss, scale, grad = self.forward(with_grad)
        upstream = torch.ones((), dtype=self.dtype) if grad_output is None else grad_output
        if self.reduction == "none" and grad_output is None:
            upstream = upstream.expand(loss.shape)
        if grad is None:
            return loss, self.backward(upstream, scale)
        return loss, self.scaled(grad, upstream, scale)

    def allows_gradient_in_forward(self) -> bool:
        """Whether one number can finish a gradient that was written in forward."""
        return True


class _EmulatedElements(_EmulatedLoss):
    """A loss of the pointwise engine. `operator` and `numbers` are what its launchers are bound by."""

    operator: str
    numbers: tuple[float, ...]

    def __init__(
        self,
        module: ModuleType,
        input: Tensor,
        target: Tensor,
        side: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module, input, target, **options)
        indexed = target.dim() != input.dim()
        sizes = list(input.shape)
        target_view = _view(target, sizes) if not indexed else _index_view(target)
        self.call |= {
            "class_dim": len(sizes) - 1 if indexed else -1,
            "target": target_view,
            "side_value": 0.0,
            "num_classes": sizes[-1] if indexed else 1,
            "indexed": indexed,
        }
        for name, operand in (("side", side), ("weight", options.get("weight"))):
            self.inputs.append(operand)
            if operand is not None:
                self.call[name] = _view(operand, sizes)

    def launch(self, direction: str, call: dict[str, Any]) -> None:
        getattr(self.module, f"{self.operator}_{direction}")(call, *self.numbers)

    def workspace_bytes(self, call: dict[str, Any]) -> int:
        return int(self.module.pointwise_workspace_bytes(call))

    def empty_loss(self) -> Tensor:
        return _grad_like(self.input.to(self.dtype))


def _index_view(target: Tensor) -> View:
    return (target.data_ptr(), DTYPES.index(target.dtype), [*target.stride(), 0])


class SigmoidFocal(_EmulatedElements):
    """Sigmoid focal loss."""

    operator = "sigmoid_focal"

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        alpha = options.get("alpha", 0.25)
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        side = alpha.to(dtype) if isinstance(alpha, Tensor) else None
        super().__init__(module, input, target, side, **options)
        self.numbers = (float(options.get("gamma", 2.0)), self.smoothing)
        self.call["side_value"] = -1.0 if alpha is None or side is not None else float(alpha)


class SmoothL1(_EmulatedElements):
    """Smooth L1 loss; L1 loss with `beta` 0."""

    operator = "smooth_l1"

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        super().__init__(module, input, target, **options)
        self.numbers = (float(options.get("beta", 1.0)),)
        self.call["counts_all"] = True


TERMS = {"none": 0, "uniform": 1, "weights": 2, "probabilities": 3}


class _EmulatedRows(_EmulatedLoss):
    """A loss of the row-softmax engine. `class_weight` is [C] or absent."""

    numbers_of_scale = (2,)
    gradient_needs_smooth = False
    changes_target = False

    def __init__(
        self,
        module: ModuleType,
        input: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        terms: str,
        **options: Any,
    ) -> None:
        super().__init__(module, input, target, **options)
        self.class_dim = 0 if input.dim() == 1 else 1
        self.terms = TERMS[terms]
        self.class_weight = None if class_weight is None else class_weight.to(self.dtype)
        self.inputs.append(self.class_weight)
        indexed = terms != "probabilities"
        sizes = self.call["sizes"]
        self.call |= {
            "class_dim": self.class_dim,
            "target": self.row_view(target) if indexed else _view(target, sizes),
            "class_weight": 0 if self.class_weight is None else self.class_weight.data_ptr(),
            "weight_value": 1.0,
            "num_classes": sizes[self.class_dim],
            "terms": self.terms,
            "target_share": 1.0,
            "uniform_share": 0.0,
            "saved_stride": 0,
            "has_ceiling": False,
            "ceiling": 0.0,
            "weighted_mean": False,
            "nothing_is_zero": False,
        }

    def row_view(self, rows: Tensor) -> View:
        """A tensor without the class dimension along the logits' dimensions."""
        strides = [0 if n == 1 else step for n, step in zip(rows.shape, rows.stride(), strict=True)]
        strides.insert(self.class_dim, 0)
        return (rows.data_ptr(), DTYPES.index(rows.dtype), strides)

    def loss_view(self, loss: Tensor) -> View:
        return _view(loss, self.call["sizes"]) if loss.dim() == 0 else self.row_view(loss)

    def rows(self) -> list[int]:
        """The logits' shape without the classes."""
        sizes = list(self.input.shape)
        del sizes[self.class_dim]
        return sizes

    def empty_loss(self) -> Tensor:
        return torch.full(self.rows(), torch.nan, dtype=self.dtype)

    def saved_for_backward(self, wanted: bool) -> tuple[dict[str, Any], Tensor | None]:
        if not wanted:
            return {}, None
        numbers = self.module.saved_numbers(
            self.terms, self.gradient_needs_smooth, self.changes_target
        )
        saved = torch.full([numbers, *self.rows()], torch.nan, dtype=self.dtype)
        view, step = self.saved_view(saved)
        return {"saved": view, "saved_stride": step}, saved

    def saved_view(self, saved: Tensor) -> tuple[View, int]:
        return self.row_view(saved[0]), saved.stride(0)

    def workspace_bytes(self, call: dict[str, Any]) -> int:
        return int(self.module.row_softmax_workspace_bytes(call))


class CrossEntropy(_EmulatedRows):
    """Cross entropy."""

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        weight = options.get("weight")
        probabilities = target.dim() == input.dim()
        smoothing = float(options.get("label_smoothing", 0.0))
        smoothed = "uniform" if weight is None else "weights"
        terms = "probabilities" if probabilities else smoothed if smoothing > 0 else "none"
        super().__init__(module, input, target, weight, terms, **options)
        self.smooth_others = options.get("smoothing", "uniform") == "others"
        self.z_loss = float(options.get("z_loss", 0.0))
        target_share, uniform_share = module.cross_entropy_shares(
            smoothing, self.smooth_others, self.call["num_classes"]
        )
        self.call |= {
            "weighted_mean": weight is not None and not probabilities,
            "target_share": target_share,
            "uniform_share": uniform_share,
        }

    def launch(self, direction: str, call: dict[str, Any]) -> None:
        run = getattr(self.module, f"cross_entropy_{direction}")
        run(call, self.smoothing, self.smooth_others, self.z_loss)

    def allows_gradient_in_forward(self) -> bool:
        # The mean divides the two parts of the loss by different numbers.
        return not (self.call["weighted_mean"] and self.z_loss and self.reduction == "mean")


class SoftmaxFocal(_EmulatedRows):
    """Softmax focal loss."""

    gradient_needs_smooth = True

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        alpha = options.get("alpha")
        smoothed = float(options.get("label_smoothing", 0.0)) > 0
        weight = alpha if isinstance(alpha, Tensor) else None
        super().__init__(
            module, input, target, weight, "uniform" if smoothed else "none", **options
        )
        self.gamma = float(options.get("gamma", 2.0))
        self.call["nothing_is_zero"] = True
        if alpha is not None and weight is None:
            self.call["weight_value"] = float(alpha)

    def launch(self, direction: str, call: dict[str, Any]) -> None:
        getattr(self.module, f"softmax_focal_{direction}")(call, self.gamma, self.smoothing)


class MarginSoftmax(_EmulatedRows):
    """Margin softmax."""

    changes_target = True

    def __init__(self, module: ModuleType, input: Tensor, target: Tensor, **options: Any) -> None:
        options.setdefault("ignore_index", -1)
        smoothed = float(options.get("label_smoothing", 0.0)) > 0
        terms = "uniform" if smoothed else "none"
        super().__init__(module, input, target, None, terms, **options)
        threshold = options.get("filter_threshold")
        self.call |= {
            "nothing_is_zero": True,
            "has_ceiling": threshold is not None,
            "ceiling": 0.0 if threshold is None else float(threshold),
        }
        self.margin_options: dict[str, Any] = {
            "scale": float(options.get("scale", 64.0)),
            "easy": options.get("easy_margin", False),
            "linear": options.get("monotonic", "linear") == "linear",
            "straight_through": options.get("gradient", "exact") == "straight_through",
            "label_smoothing": self.smoothing,
        }
        for name, none in (("m1", 1.0), ("m2", 0.0), ("m3", 0.0)):
            margin = options.get(name, none)
            by_class = None
            if isinstance(margin, Tensor):
                by_class = margin.to(self.dtype).expand(self.call["num_classes"]).contiguous()
                margin = none
                self.inputs.append(by_class)
            self.margin_options[name] = float(margin)
            self.margin_options[f"{name}_by_class"] = 0 if by_class is None else by_class.data_ptr()

    def launch(self, direction: str, call: dict[str, Any]) -> None:
        getattr(self.module, f"margin_softmax_{direction}")(call, self.margin_options)
