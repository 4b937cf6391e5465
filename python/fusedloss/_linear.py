"""Linear layers with their loss: the operators over the walk of `_chunks.py`, and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks, reference
from ._autograd import LossFunction, finish_gradient
from ._chunks import PLAIN, Head, Walk
from ._ops import REDUCTIONS, accumulator_dtype, ops
from ._row_autograd import CrossEntropyArguments, MarginArguments

LinearArguments = CrossEntropyArguments | MarginArguments


def _check_labels(function: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """On the CPU a bad label is found before any product is made; a GPU's kernels make its row NaN."""
    if target.device.type != "cpu":
        return
    target = target.long()
    found = target[_checks.is_bad_label(target, classes, ignore_index)]
    if found.numel():
        raise _checks.label_error(function, int(found[0]), classes, called="weight")


def _run(
    function: str,
    walk: Callable[[], Walk],
    features: Tensor,
    target: Tensor,
    classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_labels(function, target, classes, ignore_index)
    with torch.autocast(features.device.type, enabled=False), torch.no_grad():
        return walk().run(target, ignore_index)


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: Tensor | None,
    label_smoothing: float,
    smooth_others: bool,
    z_loss: float,
    ignore_index: int,
    chunk: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [N] and gradients of the arguments that are `wanted`, each row's times `factor`."""
    numbers = (label_smoothing, smooth_others, z_loss, ignore_index, REDUCTIONS["none"])

    def loss(x: Tensor, label: Tensor, with_grad: bool) -> Tensor:
        if with_grad:
            result: Tensor = ops.cross_entropy_fwd_(x, label, None, *numbers)[0]
        else:
            result = ops.cross_entropy_fwd(x, label, None, *numbers, False, False)[0]
        return result

    return _run(
        "linear_cross_entropy",
        lambda: Walk(features, weight, bias, factor, PLAIN, loss, chunk, wanted),
        features,
        target,
        weight.size(0),
        ignore_index,
    )


def linear_margin_softmax(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: Tensor | None,
    m1: Tensor | None,
    m2: Tensor | None,
    m3: Tensor | None,
    scale: float,
    m1_value: float,
    m2_value: float,
    m3_value: float,
    easy: bool,
    linear: bool,
    straight_through: bool,
    label_smoothing: float,
    ceiling: float,
    ignore_index: int,
    normalize_features: bool,
    normalize_weight: bool,
    sub_centers: int,
    chunk: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [N] and gradients of the arguments that are `wanted`, each row's times `factor`."""
    margins = (m1, m2, m3, scale, m1_value, m2_value, m3_value, easy, linear, straight_through)
    numbers = (*margins, label_smoothing, ceiling, ignore_index, REDUCTIONS["none"])

    def loss(x: Tensor, label: Tensor, with_grad: bool) -> Tensor:
        if with_grad:
            result: Tensor = ops.margin_softmax_fwd_(x, label, *numbers)[0]
        else:
            result = ops.margin_softmax_fwd(x, label, *numbers, False, False)[0]
        return result

    head = Head(normalize_features, normalize_weight, sub_centers)
    return _run(
        "linear_margin_softmax_loss",
        lambda: Walk(features, weight, bias, factor, head, loss, chunk, wanted),
        features,
        target,
        weight.size(0) // sub_centers,
        ignore_index,
    )


def _fake(features: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted, bias = rest[-1], rest[0]
    losses = features.new_empty(features.size(0), dtype=accumulator_dtype(features.dtype))
    none = features.new_empty(0)
    return (
        losses,
        torch.empty_like(features) if wanted[0] else none,
        torch.empty_like(weight) if wanted[1] else none.clone(),
        torch.empty_like(bias) if wanted[2] else none.clone(),
    )


# Operators, so that torch.compile takes the walk for one node of its graph.
_GIVEN = "(Tensor features, Tensor weight, Tensor? bias, Tensor target, Tensor? factor, "
_HOW = ", int chunk, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"
_ENTROPY = "float label_smoothing, bool smooth_others, float z_loss, int ignore_index"
_MARGIN = (
    "Tensor? m1, Tensor? m2, Tensor? m3, float scale, float m1_value, float m2_value, float m3_value, "
    "bool easy, bool linear, bool straight_through, float label_smoothing, float ceiling, "
    "int ignore_index, bool normalize_features, bool normalize_weight, int sub_centers"
)
for _function, _options in ((linear_cross_entropy, _ENTROPY), (linear_margin_softmax, _MARGIN)):
    torch.library.custom_op(
        f"fusedloss::{_function.__name__}",
        _function,
        mutates_args=(),
        schema=_GIVEN + _options + _HOW,
    ).register_fake(_fake)


class LinearLoss(LossFunction):
    """A linear layer and its loss; the type of ``arguments`` tells which.

    (features, weight, bias, target, m1, m2, m3, arguments, head, chunk, wanted) -> (loss, scale,
    gradient of features, of weight, of bias). Gradients are made in forward for those that are
    ``wanted``, those of a mean except in float16 with its divisor in them; with none ``wanted``,
    backward makes them from the start.
    """

    @staticmethod
    def forward(
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        m1: Tensor | None,
        m2: Tensor | None,
        m3: Tensor | None,
        arguments: LinearArguments,
        head: Head,
        chunk: int,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        dtype = accumulator_dtype(features.dtype)
        given = (features, weight, bias, target)
        factor, scale = None, torch.ones((), dtype=dtype, device=features.device)
        if arguments.reduction == REDUCTIONS["mean"]:
            count = (target.long() != arguments.ignore_index).sum().to(dtype)
            scale = count.clamp(min=1).reciprocal()
            # Divided by many rows a float16 gradient would vanish before a loss scale lifts it.
            if any(wanted) and features.dtype != torch.float16:
                factor, scale = scale, torch.ones_like(scale)
        losses, of_features, of_weight, of_bias = _walk(
            given, factor, (m1, m2, m3), arguments, head, chunk, wanted
        )
        loss = losses
        if arguments.reduction != REDUCTIONS["none"]:
            loss = losses.sum()
        if arguments.reduction == REDUCTIONS["mean"]:
            # A mean over nothing is NaN for cross entropy, as in torch, and 0 with margins.
            loss /= count if isinstance(arguments, CrossEntropyArguments) else count.clamp(min=1)
        return loss, scale, of_features, of_weight, of_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.arguments, ctx.head, ctx.chunk, ctx.wanted = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        *given, m1, m2, m3, scale, of_features, of_weight, of_bias = ctx.saved_tensors
        rest = (None,) * 8
        if grad_output is None:
            return None, None, None, *rest
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_gradient(ctx, grad_output, needed), *rest
        grads: tuple[Tensor, ...] = (of_features, of_weight, of_bias)
        if any(ctx.wanted):
            grads = tuple(
                finish_gradient(grad, grad_output, scale) if need else grad
                for grad, need in zip(grads, needed, strict=True)
            )
        else:
            factor = grad_output * scale
            how = (ctx.arguments, ctx.head, ctx.chunk, needed)
            grads = _walk(given, factor, (m1, m2, m3), *how)[1:]
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *rest


def _walk(
    given: Any,
    factor: Tensor | None,
    margins: tuple[Tensor | None, Tensor | None, Tensor | None],
    arguments: LinearArguments,
    head: Head,
    chunk: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    numbers, how = arguments[:-1], (chunk, list(wanted))  # all but the reduction
    result: tuple[Tensor, Tensor, Tensor, Tensor]
    if isinstance(arguments, CrossEntropyArguments):
        result = ops.linear_cross_entropy(*given, factor, *numbers, *how)
    else:
        result = ops.linear_margin_softmax(*given, factor, *margins, *numbers, *head, *how)
    return result


def _differentiable_gradient(
    ctx: Any, grad_output: Tensor, needed: tuple[bool, bool, bool]
) -> list[Tensor | None]:
    """The gradients as functions that autograd can differentiate again; the logits exist whole."""
    features, weight, bias, target, m1, m2, m3, *_ = ctx.saved_tensors
    args: LinearArguments = ctx.arguments
    head: Head = ctx.head
    given = [features, weight, bias]

    def loss(*changed: Tensor) -> Tensor:
        values = iter(changed)
        f, w, b = (next(values) if need else same for need, same in zip(needed, given, strict=True))
        if isinstance(args, CrossEntropyArguments):
            return reference.linear_cross_entropy(f, w, target, b, **args.options())
        return reference.linear_margin_softmax_loss(
            f,
            w,
            target,
            sub_centers=head.sub_centers,
            normalize_features=head.normalize_features,
            normalize_weight=head.normalize_weight,
            **args.options((m1, m2, m3)),
        )

    wrt = [value for value, need in zip(given, needed, strict=True) if need]
    grads = iter(torch.func.vjp(loss, *wrt)[1](grad_output))
    return [next(grads) if need else None for need in needed]
