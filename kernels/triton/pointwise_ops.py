"""The operators of the pointwise engine's losses, and the scaling of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton

from .calls import accumulator, element_type, finish, grad_to_write
from .launch import ELEMENT_WARPS, elements_block
from .layout import Elements, broadcast_strides
from .loss import sigmoid_focal, smooth_l1
from .pointwise import pointwise_kernel, scale_kernel
from .row_softmax import PARTIALS


class PointwiseCall:
    """One call of the pointwise engine, but for its outputs. Without an ``ignore_index`` every element
    counts.
    """

    def __init__(
        self, element: Any, numbers: tuple[float, ...], input: Tensor, target: Tensor,
        weight: Tensor | None, side: Tensor | None = None, side_value: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:  # fmt: skip
        self.element, self.numbers = element, (*numbers, 0.0, 0.0, 0.0, 0.0)[:4]
        self.input, self.target, self.weight = input, target, weight
        self.side, self.side_value, self.ignore_index = side, side_value, ignore_index
        self.dtype = accumulator(input)
        self.indexed = target.dim() != input.dim()

    def launch(self, grad: Tensor | None, **given: Any) -> None:
        """With the outputs, or what backward adds."""
        x, shape = self.input, self.input.shape
        if x.numel() == 0:
            return
        target = self.target.unsqueeze(-1) if self.indexed else self.target
        arguments: dict[str, Any] = {
            "grad_output": None, "loss": None, "partials": x, "scale_of_grad": x, "scale": 1.0,
            "BACKWARD": False, "WITH_LOSSES": False,
            **given,
        }  # fmt: skip
        operands = [x, target, self.side, self.weight, arguments["grad_output"]]
        operands += [arguments["loss"] if arguments["WITH_LOSSES"] else None, grad]
        strides = [broadcast_strides(operand, shape) for operand in operands]
        # Numbers the classes; keeps their dimension from being merged with others.
        strides.append((0,) * (x.dim() - 1) + (1,) if self.indexed else (0,) * x.dim())
        elements = Elements(shape, strides)
        for name in ("grad_output", "loss"):
            if arguments[name] is None:
                arguments[name] = x
        block = elements_block(x.numel())
        names = ("x", "target", "side", "weight", "grad_output", "loss", "grad", "class")
        pointwise_kernel[(triton.cdiv(x.numel(), block),)](
            x=x, target=target, side=x if self.side is None else self.side,
            weight=x if self.weight is None else self.weight, grad=x if grad is None else grad,
            numel=x.numel(), sizes=elements.sizes,
            **{f"{name}_strides": of for name, of in zip(names, elements.strides, strict=True)},
            **{f"n{i}": float(number) for i, number in enumerate(self.numbers)},
            side_value=float(self.side_value), ignored_target=self.ignored_target(),
            ignore_index=self.ignore_index or 0, classes=x.size(-1) if self.indexed else 1,
            ELEMENT=self.element, NDIM=elements.ndim, INDEXED=self.indexed,
            HAS_SIDE=self.side is not None, HAS_WEIGHT=self.weight is not None,
            WITH_GRAD=grad is not None, BLOCK=block, DTYPE=element_type(self.dtype),
            num_warps=ELEMENT_WARPS, **arguments,
        )  # fmt: skip

    def ignored_target(self) -> float:
        """What a dense target holds where somebody filled in the ignored value."""
        if self.ignore_index is None:
            return math.nan
        if self.indexed or not self.target.is_floating_point():
            return float(self.ignore_index)
        return float(torch.tensor(float(self.ignore_index)).to(self.target.dtype))


def forward(
    call: PointwiseCall, normalizer: Tensor | None, normalizer_value: float, reduction: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, scale and gradient; see csrc/pointwise.h."""
    input = call.input
    grad, returned = grad_to_write(input, with_grad)
    none = reduction == 0
    loss = torch.empty_like(input, dtype=call.dtype)
    if not none:
        loss = input.new_empty([], dtype=call.dtype)
    scale = input.new_empty([2], dtype=call.dtype)
    programs = triton.cdiv(input.numel(), elements_block(input.numel()))
    partials = input.new_empty([max(1, programs), int(PARTIALS)], dtype=torch.float64)
    expected = 1.0
    if reduction == 2 and with_grad and input.dtype != torch.float16:
        expected = float(normalizer_value or max(1, input.numel()))
    call.launch(grad, loss=loss, partials=partials, WITH_LOSSES=none, scale=1.0 / expected)
    finish(
        partials[:programs], loss, scale, reduction, expected, normalizer, normalizer_value, False,
        call.ignore_index is not None,
    )  # fmt: skip
    return loss, scale[0].clone(), returned


def backward(call: PointwiseCall, grad_output: Tensor, scale: Tensor) -> Tensor:
    """The gradient."""
    grad = torch.empty_like(call.input)
    call.launch(grad, BACKWARD=True, grad_output=grad_output, scale_of_grad=scale)
    return grad


def focal_call(
    input: Tensor, target: Tensor, alpha: Tensor | None, weight: Tensor | None,
    alpha_value: float, gamma: float, ignore_index: int, label_smoothing: float,
) -> PointwiseCall:  # fmt: skip
    numbers = sigmoid_focal.numbers(gamma, label_smoothing)
    return PointwiseCall(
        sigmoid_focal.element, numbers, input, target, weight, alpha, alpha_value, ignore_index
    )


def sigmoid_focal_fwd(
    input: Tensor, target: Tensor, alpha: Tensor | None, weight: Tensor | None,
    normalizer: Tensor | None, alpha_value: float, gamma: float, ignore_index: int,
    label_smoothing: float, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See csrc/sigmoid_focal.cpp."""
    call = focal_call(
        input, target, alpha, weight, alpha_value, gamma, ignore_index, label_smoothing
    )
    return forward(call, normalizer, *rest)


def sigmoid_focal_bwd(grad_output: Tensor, scale: Tensor, *args: Any) -> Tensor:
    """The gradient."""
    return backward(focal_call(*args), grad_output, scale)


def dense_loss(name: str, element: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The operators of a loss that ``DenseLoss`` of csrc/pointwise.h binds; `element` takes the same
    numbers.
    """

    def fwd(
        input: Tensor, target: Tensor, weight: Tensor | None, normalizer: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *numbers, normalizer_value, reduction, with_grad = rest
        call = PointwiseCall(element, tuple(numbers), input, target, weight)
        return forward(call, normalizer, normalizer_value, reduction, with_grad)

    def bwd(
        grad_output: Tensor, scale: Tensor, input: Tensor, target: Tensor, weight: Tensor | None,
        *numbers: float,
    ) -> Tensor:  # fmt: skip
        return backward(PointwiseCall(element, numbers, input, target, weight), grad_output, scale)

    fwd.__name__, bwd.__name__ = f"{name}_fwd", f"{name}_bwd"
    return fwd, bwd


def _scale_into(grad: Tensor, grad_output: Tensor, scale: Tensor, out: Tensor) -> None:
    if grad.numel() == 0:
        return
    shape = grad.shape
    elements = Elements(shape, [broadcast_strides(x, shape) for x in (grad, grad_output, out)])
    block = elements_block(grad.numel())
    scale_kernel[(triton.cdiv(grad.numel(), block),)](
        grad, grad_output, out, scale, grad.numel(), elements.sizes, *elements.strides,
        NDIM=elements.ndim, IN_PLACE=out is grad, BLOCK=block,
        DTYPE=element_type(accumulator(grad)), num_warps=ELEMENT_WARPS,
    )  # fmt: skip


def scale_gradient(grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
    """See csrc/scale_gradient.cpp."""
    out = torch.empty_like(grad)
    _scale_into(grad, grad_output, scale, out)
    return out


def scale_gradient_(grad: Tensor, grad_output: Tensor, scale: Tensor) -> None:
    """In place."""
    _scale_into(grad, grad_output, scale, grad)


OPERATORS = (
    sigmoid_focal_fwd,
    sigmoid_focal_bwd,
    *dense_loss("smooth_l1", smooth_l1.element),
    scale_gradient,
    scale_gradient_,
)
