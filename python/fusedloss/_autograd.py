"""Autograd around the native operators."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from ._ops import REDUCTION_NAMES, class_dim, ops

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


def differentiates(*values: object) -> bool:
    """Whether autograd records a call with these arguments."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


# The innermost hooks on saved tensors (checkpointing uses them), None without any. Where the query, a
# private one, is missing, there might be some.
_saved_tensor_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True
)


def may_overwrite(input: Tensor) -> bool:
    """Whether a backward may write the gradient over the memory of `input`.

    Not over a leaf, whose ``.grad`` it would become; not where elements share a place; and not under
    hooks on saved tensors, which hide from autograd that another operator's saved logits changed.
    """
    return (
        not input.is_leaf
        and not torch.compiler.is_compiling()
        and _saved_tensor_hooks(True) is None
        and not _overlaps_itself(input)
    )


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of `x` share a place, or its strides do not exclude it."""
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach = max(reach, stride * size)
    return False


def _is_batched(grad: Tensor) -> bool:
    return any(query(grad) for query in _BATCH_QUERIES)


def memory_is_free(grad_output: Tensor) -> bool:
    """Whether this backward may write over what forward saved: nobody will read it again."""
    return not (torch.compiler.is_compiling() or _keeps_graph() or _is_batched(grad_output))


def finish_gradient(grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
    """`grad`, computed in forward for an incoming gradient of 1, times the true one and `scale`.

    In place where the graph is not used again, and without touching memory where the product is 1.
    """
    if not memory_is_free(grad_output):
        result: Tensor = ops.scale_gradient(grad, grad_output, scale)
        return result
    ops.scale_gradient_(grad, grad_output, scale)
    return grad


class _Bound:
    """What torch asks of bound arguments."""

    kwargs: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        """There are none."""


class _Positional(inspect.Signature):
    """Binds positional arguments without matching names.

    torch looks a Function's signature up and binds to it in every call, which takes longer than the
    kernel of a small loss.
    """

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """`args` as they are."""
        return super().bind(*args, **kwargs) if kwargs else _Bound(args)


def positional(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """A Function that is only ever called with all of its arguments, by position."""
    parameters = inspect.signature(function.forward).parameters.values()
    function.forward.__signature__ = _Positional(list(parameters))  # type: ignore[attr-defined]
    return function


def reference_gradient(
    loss: Callable[[Tensor], Tensor], input: Tensor, grad_output: Tensor
) -> Tensor:
    """The gradient of `loss` at `input`, which autograd can differentiate again."""
    # vjp rather than autograd.grad: it nests inside torch.func transforms as well.
    grad: Tensor = torch.func.vjp(loss, input)[1](grad_output)[0]
    return grad


class CrossEntropyArguments(NamedTuple):
    """The numbers of a cross entropy."""

    label_smoothing: float
    smooth_others: bool
    z_loss: float
    ignore_index: int
    reduction: int


class SoftmaxFocalArguments(NamedTuple):
    """The numbers of a softmax focal loss; ``alpha`` counts where no tensor of it is given."""

    alpha: float
    gamma: float
    label_smoothing: float
    normalizer: float
    ignore_index: int
    reduction: int


class MarginArguments(NamedTuple):
    """The numbers of a margin softmax; each margin counts where no tensor of it is given."""

    scale: float
    m1: float
    m2: float
    m3: float
    easy: bool
    linear: bool
    straight_through: bool
    label_smoothing: float
    ceiling: float  # infinite without one
    ignore_index: int
    reduction: int


RowArguments = CrossEntropyArguments | SoftmaxFocalArguments | MarginArguments


@positional
class RowSoftmax(torch.autograd.Function):
    """The losses of the row-softmax engine; the type of ``arguments`` tells which.

    (input, target, first, second, third, arguments, keep, in_place) -> (loss, scale, saved, grad).
    The three are a loss's own tensors: cross entropy's class weights; focal's alpha and divisor; the
    margins m1, m2 and m3. ``keep`` says what forward leaves for backward: ``"nothing"``, ``"saved"``
    (a few numbers a row) or ``"gradient"``. ``in_place`` lets backward write the gradient over the
    logits.
    """

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        third: Tensor | None,
        arguments: RowArguments,
        keep: str,
        in_place: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wanted = (keep == "saved", keep == "gradient")
        outputs: tuple[Tensor, Tensor, Tensor, Tensor]
        if isinstance(arguments, CrossEntropyArguments):
            outputs = ops.cross_entropy_fwd(input, target, first, *arguments, *wanted)
        elif isinstance(arguments, SoftmaxFocalArguments):
            outputs = ops.softmax_focal_fwd(input, target, first, second, *arguments, *wanted)
        else:
            outputs = ops.margin_softmax_fwd(
                input, target, first, second, third, *arguments, *wanted
            )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, first, second, third, ctx.arguments, ctx.keep, ctx.in_place = inputs
        _, scale, saved, grad = output
        ctx.mark_non_differentiable(scale, saved, grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, first, second, third, scale, saved, grad)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        input, target, first, second, third, scale, saved, grad = ctx.saved_tensors
        rest = (None,) * 7
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _row_gradient(ctx, grad_output), *rest
        if ctx.keep == "gradient":
            if grad_output.dim() > 0:  # one number a row
                grad_output = grad_output.unsqueeze(class_dim(input))
            return finish_gradient(grad, grad_output, scale), *rest
        args: RowArguments = ctx.arguments
        forward = (grad_output, scale, saved)
        if isinstance(args, SoftmaxFocalArguments):
            numbers = (args.alpha, args.gamma, args.label_smoothing, args.ignore_index)
            return ops.softmax_focal_bwd(*forward, input, target, first, *numbers), *rest
        given: tuple[Any, ...]
        if isinstance(args, CrossEntropyArguments):
            apart, over = ops.cross_entropy_bwd, ops.cross_entropy_bwd_
            given = (target, first, *args[:4])
        else:
            apart, over = ops.margin_softmax_bwd, ops.margin_softmax_bwd_
            given = (target, first, second, third, *args[:10])
        if ctx.in_place and memory_is_free(grad_output):
            place = input.detach()
            over(*forward, place, *given)
            # Whoever else saved the logits is told that they are gone.
            torch.autograd.graph.increment_version(input)
            return place, *rest
        return apart(*forward, input, *given), *rest


def _row_gradient(ctx: Any, grad_output: Tensor) -> Tensor:
    """The gradient as a function that autograd can differentiate again."""
    input, target, first, second, third, _, _, _ = ctx.saved_tensors
    args: RowArguments = ctx.arguments

    def loss(x: Tensor) -> Tensor:
        if isinstance(args, CrossEntropyArguments):
            return reference.cross_entropy(
                x,
                target,
                first,
                ignore_index=args.ignore_index,
                reduction=REDUCTION_NAMES[args.reduction],
                label_smoothing=args.label_smoothing,
                smoothing="others" if args.smooth_others else "uniform",
                z_loss=args.z_loss,
            )
        if isinstance(args, SoftmaxFocalArguments):
            return reference.softmax_focal_loss(
                x,
                target,
                alpha=args.alpha if first is None else first,
                gamma=args.gamma,
                ignore_index=args.ignore_index,
                label_smoothing=args.label_smoothing,
                normalizer=second if second is not None else args.normalizer or None,
                reduction=REDUCTION_NAMES[args.reduction],
            )
        return reference.margin_softmax_loss(
            x,
            target,
            scale=args.scale,
            m1=args.m1 if first is None else first,
            m2=args.m2 if second is None else second,
            m3=args.m3 if third is None else third,
            easy_margin=args.easy,
            monotonic="linear" if args.linear else "none",
            gradient="straight_through" if args.straight_through else "exact",
            label_smoothing=args.label_smoothing,
            filter_threshold=args.ceiling if args.ceiling < math.inf else None,
            ignore_index=args.ignore_index,
            reduction=REDUCTION_NAMES[args.reduction],
        )

    return reference_gradient(loss, input, grad_output)
