"""Autograd around the operators of the region losses, and what these return for fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._autograd import LossFunction, memory_is_free, positional, reference_gradient
from ._ops import REDUCTIONS, accumulator_dtype, library_path, ops
from ._regions import (
    JOINED,
    ElementRegionArguments,
    RegionArguments,
    SoftmaxRegionArguments,
)


@positional
class Regions(LossFunction):
    """The region losses; the type of ``arguments`` tells which operators serve.

    (input, target, region_weight, side, arguments, with_saved, begin_grad) -> (loss, what backward
    needs...). The input has a batch and a class dimension; `side` is cross entropy's class weights or
    focal's alpha. With ``begin_grad`` forward leaves the exponentials where the gradient will be.
    """

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        region_weight: Tensor | None,
        side: Tensor | None,
        arguments: RegionArguments,
        with_saved: bool,
        begin_grad: bool,
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...]
        given = (input, target, region_weight, side, *arguments)
        if isinstance(arguments, SoftmaxRegionArguments):
            outputs = ops.softmax_regions_fwd(*given, with_saved, begin_grad)
        else:
            outputs = ops.element_regions_fwd(*given)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, region_weight, side, ctx.arguments, _, ctx.begun = inputs
        _, *rest = output
        ctx.mark_non_differentiable(*rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, region_weight, side, *rest)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        input, target, region_weight, side, *forward = ctx.saved_tensors
        args: RegionArguments = ctx.arguments
        rest = (None,) * 6
        if grad_output is None:
            return None, *rest
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():

            def loss(x: Tensor) -> Tensor:
                return reference.region_loss(x, target, region_weight, side, args)

            return reference_gradient(loss, input, grad_output), *rest
        if isinstance(args, SoftmaxRegionArguments):
            *forward, begun = forward
        given = (grad_output, *forward, input, target, side, *args.backward())
        if ctx.begun and memory_is_free(grad_output):
            ops.softmax_regions_finish_(begun, *given)
            return begun, *rest
        if ctx.begun:
            return ops.softmax_regions_finish(begun, *given), *rest
        if isinstance(args, SoftmaxRegionArguments):
            return ops.softmax_regions_bwd(*given), *rest
        return ops.element_regions_bwd(*given), *rest


def _fake_loss(input: Tensor, args: RegionArguments) -> Tensor:
    groups = [] if args.batch else [input.size(0)]
    shape = [*groups, input.size(1) - args.first_class]
    if args.weighting:
        shape = [1] if args.batch else groups
    if args.reduction != REDUCTIONS["none"]:
        shape = []
    return input.new_empty(shape, dtype=accumulator_dtype(input.dtype))


def _fake_slopes(input: Tensor, args: RegionArguments) -> Tensor:
    regions = input.size(1) if args.batch else input.size(0) * input.size(1)
    return input.new_empty([regions, 2], dtype=accumulator_dtype(input.dtype))


def _begun_holds_all(input: Tensor, args: SoftmaxRegionArguments, third: bool) -> bool:
    """Whether a begun gradient holds all that backward needs, `few_classes_hold_all()` of the kernels."""
    plain = not (third or args.squared or args.label_smoothing or JOINED[args.joined] == "focal")
    return plain and 2 <= input.size(1) <= 4 and input.dtype == torch.float32


def _fake_softmax_fwd(
    input: Tensor,
    target: Tensor,
    region_weight: Tensor | None,
    class_weight: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *numbers, with_saved, begin_grad = rest
    args = SoftmaxRegionArguments(*numbers)
    dtype = accumulator_dtype(input.dtype)
    smoothed = args.label_smoothing > 0
    third = JOINED[args.joined] == "focal" and smoothed
    third = third or (class_weight is not None and smoothed) or target.dim() == input.dim()
    rows = [input.size(0), *input.shape[2:]]
    if not with_saved or (begin_grad and _begun_holds_all(input, args, third)):
        rows = []
    saved = input.new_empty([3 if third else 2, *rows] if rows else [0], dtype=dtype)
    scale = input.new_empty(2, dtype=dtype)
    begun = torch.empty_like(input) if begin_grad else input.new_empty([0])
    return _fake_loss(input, args), scale, saved, _fake_slopes(input, args), begun


def _fake_element_fwd(
    input: Tensor,
    target: Tensor,
    region_weight: Tensor | None,
    alpha: Tensor | None,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    args = ElementRegionArguments(*numbers)
    scale = input.new_empty(2, dtype=accumulator_dtype(input.dtype))
    return _fake_loss(input, args), scale, _fake_slopes(input, args)


def _fake_softmax_bwd(
    grad_output: Tensor, scale: Tensor, saved: Tensor, slopes: Tensor, input: Tensor, *_: object
) -> Tensor:
    return torch.empty_like(input)


def _fake_softmax_finish(begun: Tensor, *_: object) -> Tensor:
    return torch.empty_like(begun)


def _fake_softmax_finish_(*_: object) -> None:
    return None


def _fake_element_bwd(
    grad_output: Tensor, scale: Tensor, slopes: Tensor, input: Tensor, *_: object
) -> Tensor:
    return torch.empty_like(input)


if library_path() is not None:
    for _name, _fake in (
        ("softmax_regions_fwd", _fake_softmax_fwd),
        ("softmax_regions_bwd", _fake_softmax_bwd),
        ("softmax_regions_finish", _fake_softmax_finish),
        ("softmax_regions_finish_", _fake_softmax_finish_),
        ("element_regions_fwd", _fake_element_fwd),
        ("element_regions_bwd", _fake_element_bwd),
    ):
        torch.library.register_fake(f"fusedloss::{_name}")(_fake)
