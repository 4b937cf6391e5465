"""Autograd of the row-softmax engine: cross entropy, softmax focal loss, margins."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from ._autograd import (
    LossFunction,
    finish_gradient,
    memory_is_free,
    positional,
    reference_gradient,
)
from ._ops import REDUCTION_NAMES, class_dim, ops

Tensors = tuple[Tensor | None, Tensor | None, Tensor | None]
"""A loss's own: class weights; focal's alpha and divisor; the margins m1, m2 and m3."""
Operation = tuple[str, tuple[Any, ...]]
"""An operator's name, and its arguments after input and target."""


class CrossEntropyArguments(NamedTuple):
    """The numbers of a cross entropy."""

    label_smoothing: float
    smooth_others: bool
    z_loss: float
    ignore_index: int
    reduction: int

    def forward(self, tensors: Tensors) -> Operation:
        """The forward operator; its last two arguments say what is to be kept."""
        return "cross_entropy_fwd", (tensors[0], *self)

    def backward(self, tensors: Tensors) -> Operation:
        """The backward operator."""
        return "cross_entropy_bwd", (tensors[0], *self[:4])

    def options(self) -> dict[str, Any]:
        """What the eager forms are given by keyword."""
        return {
            "ignore_index": self.ignore_index,
            "reduction": REDUCTION_NAMES[self.reduction],
            "label_smoothing": self.label_smoothing,
            "smoothing": "others" if self.smooth_others else "uniform",
            "z_loss": self.z_loss,
        }

    def reference(self, x: Tensor, target: Tensor, tensors: Tensors) -> Tensor:
        """The eager form."""
        return reference.cross_entropy(x, target, tensors[0], **self.options())


class SoftmaxFocalArguments(NamedTuple):
    """The numbers of a softmax focal loss; ``alpha`` counts where no tensor of it is given."""

    alpha: float
    gamma: float
    label_smoothing: float
    normalizer: float
    ignore_index: int
    reduction: int

    def forward(self, tensors: Tensors) -> Operation:
        """As of CrossEntropyArguments."""
        return "softmax_focal_fwd", (*tensors[:2], *self)

    def backward(self, tensors: Tensors) -> Operation:
        """As of CrossEntropyArguments."""
        numbers = (self.alpha, self.gamma, self.label_smoothing, self.ignore_index)
        return "softmax_focal_bwd", (tensors[0], *numbers)

    def reference(self, x: Tensor, target: Tensor, tensors: Tensors) -> Tensor:
        """The eager form."""
        alpha, normalizer, _ = tensors
        return reference.softmax_focal_loss(
            x,
            target,
            alpha=self.alpha if alpha is None else alpha,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            normalizer=normalizer if normalizer is not None else self.normalizer or None,
            reduction=REDUCTION_NAMES[self.reduction],
        )


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

    def forward(self, tensors: Tensors) -> Operation:
        """As of CrossEntropyArguments."""
        return "margin_softmax_fwd", (*tensors, *self)

    def backward(self, tensors: Tensors) -> Operation:
        """As of CrossEntropyArguments."""
        return "margin_softmax_bwd", (*tensors, *self[:10])

    def options(self, tensors: Tensors) -> dict[str, Any]:
        """What the eager forms are given by keyword."""
        m1, m2, m3 = tensors
        return {
            "scale": self.scale,
            "m1": self.m1 if m1 is None else m1,
            "m2": self.m2 if m2 is None else m2,
            "m3": self.m3 if m3 is None else m3,
            "easy_margin": self.easy,
            "monotonic": "linear" if self.linear else "none",
            "gradient": "straight_through" if self.straight_through else "exact",
            "label_smoothing": self.label_smoothing,
            "filter_threshold": self.ceiling if self.ceiling < math.inf else None,
            "ignore_index": self.ignore_index,
            "reduction": REDUCTION_NAMES[self.reduction],
        }

    def reference(self, x: Tensor, target: Tensor, tensors: Tensors) -> Tensor:
        """The eager form."""
        return reference.margin_softmax_loss(x, target, **self.options(tensors))


RowArguments = CrossEntropyArguments | SoftmaxFocalArguments | MarginArguments


@positional
class RowSoftmax(LossFunction):
    """The losses of the row-softmax engine; ``arguments`` tell which.

    (input, target, first, second, third, arguments, keep, in_place) -> (loss, scale, saved, grad).
    The three are a loss's own Tensors. ``keep`` says what forward leaves for backward: ``"nothing"``,
    ``"saved"`` (a few numbers a row) or ``"gradient"``. ``in_place`` lets backward write the gradient
    over the logits.
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
        name, given = arguments.forward((first, second, third))
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = getattr(ops, name)(
            input, target, *given, keep == "saved", keep == "gradient"
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
        arguments: RowArguments = ctx.arguments
        tensors = (first, second, third)
        rest = (None,) * 7
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():

            def loss(x: Tensor) -> Tensor:
                return arguments.reference(x, target, tensors)

            return reference_gradient(loss, input, grad_output), *rest
        if ctx.keep == "gradient":
            if grad_output.dim() > 0:  # one number a row
                grad_output = grad_output.unsqueeze(class_dim(input))
            return finish_gradient(grad, grad_output, scale), *rest
        name, given = arguments.backward(tensors)
        forward = (grad_output, scale, saved)
        if ctx.in_place and memory_is_free(grad_output):
            place = input.detach()
            getattr(ops, name + "_")(*forward, place, target, *given)
            # Whoever else saved the logits is told that they are gone.
            torch.autograd.graph.increment_version(input)
            return place, *rest
        return getattr(ops, name)(*forward, input, target, *given), *rest
