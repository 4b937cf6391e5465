"""Autograd around the native operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from ._ops import REDUCTION_NAMES, ops

# Whether the running backward keeps its graph for another one. Without the query (a private one) a
# graph is taken to be kept, which costs a copy of the gradient.
_keeps_graph: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)
# Whether a gradient is a batch in disguise (`is_grads_batched`, vmap): no rule can batch an operator that
# works in place.
_BATCH_QUERIES: list[Callable[[Tensor], bool]] = [
    getattr(torch._C._functorch, name)
    for name in ("is_batchedtensor", "is_legacy_batchedtensor")
    if hasattr(torch._C._functorch, name)
]


def _is_batched(grad: Tensor) -> bool:
    return any(query(grad) for query in _BATCH_QUERIES)


def finish_gradient(grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
    """`grad`, computed in forward for an incoming gradient of 1, times the true one and `scale`.

    In place where the graph is not used again, and without touching memory where the product is 1.
    """
    if torch.compiler.is_compiling() or _keeps_graph() or _is_batched(grad_output):
        result: Tensor = ops.scale_gradient(grad, grad_output, scale)
        return result
    ops.scale_gradient_(grad, grad_output, scale)
    return grad


class FocalArguments(NamedTuple):
    """The numbers of a sigmoid focal loss; ``alpha`` counts where no tensor of it is given."""

    alpha: float
    gamma: float
    ignore_index: int
    label_smoothing: float
    normalizer: float
    reduction: int


class SigmoidFocal(torch.autograd.Function):
    """(input, target, alpha, weight, normalizer, arguments, with_grad) -> (loss, scale, grad)."""

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        alpha: Tensor | None,
        weight: Tensor | None,
        normalizer: Tensor | None,
        arguments: FocalArguments,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = ops.sigmoid_focal_fwd(
            input, target, alpha, weight, normalizer, *arguments, with_grad
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, alpha, weight, normalizer, ctx.arguments, ctx.with_grad = inputs
        _, scale, grad = output
        ctx.mark_non_differentiable(scale, grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, alpha, weight, normalizer, scale, grad)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        input, target, alpha, weight, _, scale, grad = ctx.saved_tensors
        rest = (None,) * 6
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _differentiable_gradient(ctx, grad_output), *rest
        if ctx.with_grad:
            return finish_gradient(grad, grad_output, scale), *rest
        args: FocalArguments = ctx.arguments
        return ops.sigmoid_focal_bwd(
            grad_output, scale, input, target, alpha, weight, *args[:4]
        ), *rest


def _differentiable_gradient(ctx: Any, grad_output: Tensor) -> Tensor:
    """The gradient as a function that autograd can differentiate again."""
    input, target, alpha, weight, normalizer, _, _ = ctx.saved_tensors
    args: FocalArguments = ctx.arguments

    def loss(x: Tensor) -> Tensor:
        return reference.sigmoid_focal_loss(
            x,
            target,
            alpha=args.alpha if alpha is None else alpha,
            gamma=args.gamma,
            weight=weight,
            ignore_index=args.ignore_index,
            label_smoothing=args.label_smoothing,
            normalizer=normalizer if normalizer is not None else args.normalizer or None,
            reduction=REDUCTION_NAMES[args.reduction],
        )

    # vjp rather than autograd.grad: it nests inside torch.func transforms as well.
    grad: Tensor = torch.func.vjp(loss, input)[1](grad_output)[0]
    return grad
