"""Autograd around the operators of hard example mining, and what these return for fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._autograd import LossFunction, memory_is_free, positional, reference_gradient
from ._mining import (
    MinedBinaryCrossEntropyArguments,
    MinedCrossEntropyArguments,
    bits_dtype,
    shares,
    slice_order,
)
from ._ops import REDUCTIONS, accumulator_dtype, class_dim, library_path, ops


@positional
class MinedCrossEntropy(LossFunction):
    """(input, target, weight, arguments, begin_grad) -> (loss, scale, marks, selection, grad).

    With ``begin_grad`` forward writes the gradient of the always selected, which backward completes.
    """

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        arguments: MinedCrossEntropyArguments,
        begin_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = ops.mined_cross_entropy_fwd(
            input, target, weight, *arguments, begin_grad
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, weight, ctx.arguments, ctx.begun = inputs
        _, scale, marks, selection, grad = output
        ctx.mark_non_differentiable(scale, marks, selection, grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, weight, scale, marks, selection, grad)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        input, target, weight, scale, marks, selection, grad = ctx.saved_tensors
        args: MinedCrossEntropyArguments = ctx.arguments
        rest = (None,) * 4
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The selection is what forward made it: a step function, whose derivative is 0.
            share = shares(marks, selection)

            def loss(x: Tensor) -> Tensor:
                return reference.mined_cross_entropy(x, target, weight, share, scale, args)

            return reference_gradient(loss, input, grad_output), *rest
        call = (grad_output, scale, marks, selection, input, target, weight, args.ignore_index)
        if ctx.begun and memory_is_free(grad_output):
            ops.mined_cross_entropy_bwd_(grad, *call)
            return grad, *rest
        return ops.mined_cross_entropy_bwd(*call), *rest


@positional
class MinedBinaryCrossEntropy(LossFunction):
    """(input, target, mask, arguments) -> (loss, scale, marks, selection)."""

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        mask: Tensor | None,
        arguments: MinedBinaryCrossEntropyArguments,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = ops.mined_binary_cross_entropy_fwd(
            input, target, mask, *arguments
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, _, ctx.arguments = inputs
        _, scale, marks, selection = output
        ctx.mark_non_differentiable(scale, marks, selection)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, scale, marks, selection)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        input, target, scale, marks, selection = ctx.saved_tensors
        args: MinedBinaryCrossEntropyArguments = ctx.arguments
        rest = (None,) * 3
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            share = shares(marks, selection, args.mined_dims)

            def loss(x: Tensor) -> Tensor:
                return reference.mined_binary_cross_entropy(x, target, share, scale, args)

            return reference_gradient(loss, input, grad_output), *rest
        grad = ops.mined_binary_cross_entropy_bwd(
            grad_output, scale, marks, selection, input, target, args.from_logits, args.mined_dims
        )
        return grad, *rest


def _fake_rows_fwd(
    input: Tensor, target: Tensor, weight: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *numbers, begin_grad = rest
    args = MinedCrossEntropyArguments(*numbers)
    dtype, dim = accumulator_dtype(input.dtype), class_dim(input)
    rows = [*input.shape[:dim], *input.shape[dim + 1 :]]
    return (
        input.new_empty(rows if args.reduction == REDUCTIONS["none"] else [], dtype=dtype),
        input.new_empty([], dtype=dtype),
        input.new_empty(rows, dtype=bits_dtype(input)),
        input.new_empty([1, 2], dtype=bits_dtype(input)),
        torch.empty_like(input) if begin_grad else input.new_empty([0]),
    )


def like_marks(input: Tensor, mined_dims: int, dtype: torch.dtype) -> Tensor:
    """Slices lie one after the other; a single one lies as the input does."""
    others, mined = slice_order(input.dim(), mined_dims)
    if not others:
        return torch.empty_like(input, dtype=dtype)
    order = others + mined
    memory = input.new_empty([input.size(d) for d in order], dtype=dtype)
    return memory.permute([order.index(d) for d in range(input.dim())])


def _fake_elements_fwd(
    input: Tensor, target: Tensor, mask: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = MinedBinaryCrossEntropyArguments(*numbers)
    dtype = accumulator_dtype(input.dtype)
    slices = 1
    for d in slice_order(input.dim(), args.mined_dims)[0]:
        slices *= input.size(d)
    none = args.reduction == REDUCTIONS["none"]
    return (
        like_marks(input, args.mined_dims, dtype) if none else input.new_empty([], dtype=dtype),
        input.new_empty([], dtype=dtype),
        like_marks(input, args.mined_dims, bits_dtype(input)),
        input.new_empty([slices, 2], dtype=bits_dtype(input)),
    )


def _fake_bwd_(*_: object) -> None:
    return None


def _fake_bwd(
    grad_output: Tensor, scale: Tensor, marks: Tensor, selection: Tensor, input: Tensor, *_: object
) -> Tensor:
    return torch.empty_like(input)


if library_path() is not None:
    for _name, _fake in (
        ("mined_cross_entropy_fwd", _fake_rows_fwd),
        ("mined_cross_entropy_bwd", _fake_bwd),
        ("mined_cross_entropy_bwd_", _fake_bwd_),
        ("mined_binary_cross_entropy_fwd", _fake_elements_fwd),
        ("mined_binary_cross_entropy_bwd", _fake_bwd),
    ):
        torch.library.register_fake(f"fusedloss::{_name}")(_fake)
