"""The losses of the pointwise engine: what each is made of, and autograd around their operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _backend, reference
from ._autograd import (
    LossFunction,
    differentiates,
    evaluate,
    finish_gradient,
    positional,
    reference_gradient,
)
from ._ops import REDUCTION_NAMES, REDUCTIONS, accumulator_dtype, as_divisor, ops


def ending(normalizer: float | Tensor | None, reduction: str) -> tuple[float, int]:
    """The two numbers that arguments end with; 0 where the divisor is a tensor, or the count."""
    number = 0.0 if normalizer is None or isinstance(normalizer, Tensor) else normalizer
    return number, REDUCTIONS[reduction]


Operands = tuple[str, tuple[Tensor | None, ...]]


class FocalArguments(NamedTuple):
    """The numbers of a sigmoid focal loss; ``alpha`` counts where no tensor of it is given."""

    alpha: float
    gamma: float
    ignore_index: int
    label_smoothing: float
    normalizer: float
    reduction: int

    def operands(self, side: Tensor | None, weight: Tensor | None) -> Operands:
        """The operators' name, and which of the two they take."""
        return "sigmoid_focal", (side, weight)

    def reference(self, input: Tensor, target: Tensor, side: Any, **shared: Any) -> Tensor:
        """The same in eager PyTorch; ``side`` is a tensor of alpha."""
        return reference.sigmoid_focal_loss(
            input,
            target,
            alpha=self.alpha if side is None else side,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            **shared,
        )


class SmoothL1Arguments(NamedTuple):
    """The numbers of a smooth L1 loss."""

    beta: float
    normalizer: float
    reduction: int

    def operands(self, side: Tensor | None, weight: Tensor | None) -> Operands:
        """The operators' name, and which of the two they take."""
        return "smooth_l1", (weight,)

    def reference(self, input: Tensor, target: Tensor, side: Any, **shared: Any) -> Tensor:
        """The same in eager PyTorch."""
        return reference.smooth_l1_loss(input, target, beta=self.beta, **shared)


PointwiseArguments = FocalArguments | SmoothL1Arguments


def evaluate_reference(
    input: Tensor,
    target: Tensor,
    side: Tensor | None,
    weight: Tensor | None,
    normalizer: Tensor | None,
    arguments: PointwiseArguments,
) -> Tensor:
    """The loss in eager PyTorch, which autograd can differentiate by every tensor, and again."""
    return arguments.reference(
        input,
        target,
        side,
        weight=weight,
        normalizer=normalizer if normalizer is not None else arguments.normalizer or None,
        reduction=REDUCTION_NAMES[arguments.reduction],
    )


@positional
class Pointwise(LossFunction):
    """(input, target, side, weight, normalizer, arguments, with_grad) -> (loss, scale, grad)."""

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        side: Tensor | None,
        weight: Tensor | None,
        normalizer: Tensor | None,
        arguments: PointwiseArguments,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        name, sides = arguments.operands(side, weight)
        operator = getattr(ops, name + "_fwd")
        outputs: tuple[Tensor, Tensor, Tensor] = operator(
            input, target, *sides, normalizer, *arguments, with_grad
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, side, weight, normalizer, ctx.arguments, ctx.with_grad = inputs
        _, scale, grad = output
        ctx.mark_non_differentiable(scale, grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, side, weight, normalizer, scale, grad)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        input, target, side, weight, normalizer, scale, grad = ctx.saved_tensors
        arguments: PointwiseArguments = ctx.arguments
        rest = (None,) * 6
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():

            def loss(x: Tensor) -> Tensor:
                return evaluate_reference(x, target, side, weight, normalizer, arguments)

            return reference_gradient(loss, input, grad_output), *rest
        if ctx.with_grad:
            return finish_gradient(grad, grad_output, scale), *rest
        name, sides = arguments.operands(side, weight)
        operator = getattr(ops, name + "_bwd")
        return operator(grad_output, scale, input, target, *sides, *arguments[:-2]), *rest


def pointwise_loss(
    input: Tensor,
    target: Tensor,
    side: Tensor | None,
    weight: Tensor | None,
    normalizer: float | Tensor | None,
    arguments: PointwiseArguments,
) -> Tensor:
    """The loss of checked arguments; called by the public function itself, whose caller is warned."""
    divisor = as_divisor(normalizer, input)
    divisor = divisor if isinstance(divisor, Tensor) else None
    if differentiates(target, side, weight, divisor) or not _backend.use_kernels(input):
        return evaluate_reference(input, target, side, weight, divisor, arguments)
    if side is not None:  # tiny; in the arithmetic's own dtype it takes the fast path
        side = side.to(accumulator_dtype(input.dtype))
    with_grad = differentiates(input) and _backend.gradient_in_forward(input)
    return evaluate(Pointwise, input, target, side, weight, divisor, arguments, with_grad)
