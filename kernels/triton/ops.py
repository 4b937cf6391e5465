"""The operators of fusedloss as launches of Triton kernels: the same arguments and results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl

from .._mining import bits_dtype, slice_order
from .._mining_autograd import like_marks
from .launch import ELEMENT_WARPS, MINED_WARPS, REGION_WARPS, elements_block, rows_launch
from .layout import Elements, Rows, broadcast_strides, with_strides
from .loss import binary_cross_entropy, cross_entropy, focal, margin_softmax, nothing, softmax_focal
from .mining import (
    BINS,
    STATE,
    choose_kernel,
    count_kernel,
    digit_kernel,
    mined_elements_kernel,
    mined_finish_kernel,
    mined_rows_kernel,
    selection_kernel,
    sum_kernel,
    want_kernel,
)
from .pointwise import pointwise_kernel, scale_kernel
from .regions import (
    SUMS,
    add_sums_kernel,
    region_elements_kernel,
    region_finish_kernel,
    region_rows_kernel,
)
from .row_softmax import PARTIALS, finish_kernel, row_kernel

NONE, UNIFORM, WEIGHTS, PROBABILITIES = range(4)
NOTHING, SUM_U, SMOOTH, CHANGED = range(4)  # a row's third saved number
FINISH_BLOCK = 1024
NUMBERS = 16  # that a loss's functions can have


def accumulator(input: Tensor) -> torch.dtype:
    """The arithmetic's type."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def element_type(dtype: torch.dtype) -> tl.dtype:
    """The arithmetic's type as kernels name it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def finish(
    partials: Tensor, programs: int, loss: Tensor, scale: Tensor, reduction: int, expected: float,
    normalizer: Tensor | None, normalizer_value: float, weighted_mean: bool, nothing_is_zero: bool,
) -> None:  # fmt: skip
    """From the programs' sums to the loss and the two numbers of `scale`."""
    finish_kernel[(1,)](
        partials, programs, loss, scale, partials if normalizer is None else normalizer,
        float(normalizer_value), expected,
        MEAN=reduction == 2, WITH_LOSS=reduction != 0, WEIGHTED=weighted_mean,
        HAS_NORMALIZER=normalizer is not None, NORMALIZER_VALUE=normalizer_value > 0,
        ZERO=nothing_is_zero, BLOCK=FINISH_BLOCK,
    )  # fmt: skip


class Groups:
    """How regions' programs share the rows: a group, which is a sample or the pooled batch, takes several
    programs, or a program several whole groups.
    """

    def __init__(self, rows: Rows, samples: int, pooled: bool) -> None:
        self.count = 1 if pooled else samples
        self.rows = rows.num_rows // max(1, self.count)
        self.launch = rows_launch(rows.num_rows, rows.classes)
        of_group = min(self.launch.rows, triton.next_power_of_2(max(1, self.rows)))
        self.of_program = self.launch.rows // of_group
        self.parts = triton.cdiv(self.rows, of_group)
        self.programs = triton.cdiv(self.count, self.of_program) * self.parts


class RowLoss:
    """One call of the row-softmax engine, but for its outputs."""

    def __init__(
        self,
        loss: Any,
        input: Tensor,
        target: Tensor,
        numbers: tuple[float, ...],
        *,
        ignore_index: int,
        reduction: int = 0,
        target_function: Any = None,
        terms: int = NONE,
        third: int = NOTHING,
        weight: Tensor | None = None,
        weight_value: float = 1.0,
        shares: tuple[float, float] = (1.0, 0.0),
        logit_scale: float = 1.0,
        ceiling: float = math.inf,
        margins: tuple[Tensor, ...] = (),
        normalizer: Tensor | None = None,
        normalizer_value: float = 0.0,
        weighted_mean: bool = False,
        nothing_is_zero: bool = False,
    ) -> None:
        self.loss, self.input, self.target = loss, input, target
        self.target_function = target_function or loss.target
        self.numbers, self.shares, self.margins = numbers, shares, margins
        self.ignore_index, self.reduction = ignore_index, reduction
        self.terms, self.third = terms, third
        self.weight, self.weight_value = weight, weight_value
        self.logit_scale, self.ceiling = logit_scale, ceiling
        self.normalizer, self.normalizer_value = normalizer, normalizer_value
        self.weighted_mean, self.nothing_is_zero = weighted_mean, nothing_is_zero
        self.rows = Rows(input)
        self.dtype = accumulator(input)
        self.changes_target = third == CHANGED

    @property
    def saved_numbers(self) -> int:
        """What forward keeps of a row."""
        return 2 if self.third == NOTHING else 3

    def launch(
        self, grad: Tensor | None, kernel: Any = row_kernel, groups: Groups | None = None,
        **given: Any,
    ) -> None:  # fmt: skip
        """The kernel with what the call gives, the outputs and what backward adds."""
        rows = self.rows
        if rows.num_rows == 0:
            return
        x, x_strides = with_strides(self.input, rows.strides)
        if self.terms == PROBABILITIES:
            t, t_strides = with_strides(self.target, rows.strides)
        else:
            t, (t_n, t_l) = with_strides(self.target, rows.strides_of_rows)
            t_strides = (t_n, 0, t_l)
        written = grad
        if grad is not None and rows.strides(grad) is None:
            written = torch.empty_like(grad, memory_format=torch.contiguous_format)
        g_strides = (0, 0, 0) if written is None else rows.strides(written)
        launch = rows_launch(rows.num_rows, rows.classes)
        programs = triton.cdiv(rows.num_rows, launch.rows) if groups is None else groups.programs
        padded = self.numbers + (0.0,) * (NUMBERS - len(self.numbers))
        numbers = {f"n{i}": float(value) for i, value in enumerate(padded)}
        arguments: dict[str, Any] = {
            "loss": x, "partials": x, "saved": x, "grad_output": x, "scale_of_grad": x,
            "scale_main": 1.0, "scale_by_row": 1.0, "u_n": 0, "u_l": 0, "saved_stride": 0,
            "BACKWARD": False, "WITH_SAVED": False, "WITH_LOSSES": False, "num_warps": launch.warps,
            **given,
        }  # fmt: skip
        kernel[(programs,)](
            x=x, target=t, weight=x if self.weight is None else self.weight,
            grad=x if written is None else written,
            margins=self.margins, **numbers, target_share=self.shares[0],
            uniform_share=self.shares[1],
            logit_scale=float(self.logit_scale), ceiling=float(self.ceiling),
            weight_value=float(self.weight_value), ignore_index=self.ignore_index,
            num_rows=rows.num_rows, classes=rows.classes, inner=rows.inner,
            x_n=x_strides[0], x_c=x_strides[1], x_l=x_strides[2],
            t_n=t_strides[0], t_c=t_strides[1], t_l=t_strides[2],
            g_n=g_strides[0], g_c=g_strides[1], g_l=g_strides[2],
            VALUE=self.loss.value, GRADIENT=self.loss.gradient, TARGET=self.target_function,
            TERMS=self.terms, HAS_WEIGHT=self.weight is not None,
            CHANGES_TARGET=self.changes_target, HAS_CEILING=self.ceiling < math.inf,
            THIRD=self.third, WITH_GRAD=grad is not None,
            ROWS=launch.rows, CLASSES=launch.classes, ONE_TILE=launch.one_tile,
            DTYPE=element_type(self.dtype),
            **arguments,
        )  # fmt: skip
        if grad is not None and written is not grad:
            grad.copy_(written)

    def forward(self, with_saved: bool, grad: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, scale, saved), and the gradient into `grad` where there is one."""
        x, rows = self.input, self.rows
        sizes = [x.size(d) for d in range(x.dim()) if d != rows.class_dim]
        none, mean = self.reduction == 0, self.reduction == 2
        loss = x.new_empty(sizes if none else [], dtype=self.dtype)
        scale = x.new_empty([2], dtype=self.dtype)
        saved = x.new_empty([self.saved_numbers, *sizes] if with_saved else [0], dtype=self.dtype)
        launch = rows_launch(rows.num_rows, rows.classes)
        programs = triton.cdiv(rows.num_rows, launch.rows)
        partials = x.new_empty([max(1, programs), int(PARTIALS)], dtype=torch.float64)
        # The divisor that the gradient is written with, before the true one is known. A float16
        # gradient divided by millions would vanish before a loss scale can lift it.
        expected = 1.0
        if mean and grad is not None and x.dtype != torch.float16:
            expected = float(self.normalizer_value or max(1, rows.num_rows))
        self.launch(
            grad, loss=loss, partials=partials, saved=saved, WITH_SAVED=with_saved,
            WITH_LOSSES=none, saved_stride=rows.num_rows,
            scale_main=1.0 / expected, scale_by_row=1.0 / expected,
        )  # fmt: skip
        finish(
            partials, programs, loss, scale, self.reduction, expected, self.normalizer,
            self.normalizer_value, self.weighted_mean, self.nothing_is_zero,
        )  # fmt: skip
        return loss, scale, saved

    def backward(self, grad_output: Tensor, scale: Tensor, saved: Tensor, grad: Tensor) -> None:
        """The gradient into `grad`, which may be the logits."""
        upstream, (u_n, u_l) = with_strides(grad_output, self.rows.strides_of_rows)
        self.launch(
            grad, BACKWARD=True, grad_output=upstream, u_n=u_n, u_l=u_l, scale_of_grad=scale,
            saved=saved.contiguous(), saved_stride=self.rows.num_rows,
        )  # fmt: skip


def _grad(input: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor]:
    """Where the gradient goes, if anywhere, and what the operator returns of it."""
    if not wanted:
        return None, input.new_empty(0)
    grad = torch.empty_like(input)
    return grad, grad


def _cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float,
    smooth_others: bool, z_loss: float, ignore_index: int, reduction: int = 0,
) -> RowLoss:  # fmt: skip
    classes = input.size(0 if input.dim() == 1 else 1)
    indexed = target.dim() != input.dim()
    terms, third = NONE, NOTHING
    if not indexed:
        terms, third = PROBABILITIES, SUM_U
    elif label_smoothing > 0:
        terms, third = (UNIFORM, NOTHING) if weight is None else (WEIGHTS, SUM_U)
    how = (classes, label_smoothing, smooth_others)
    return RowLoss(
        cross_entropy, input, target,
        cross_entropy.numbers(classes, indexed, label_smoothing, smooth_others, z_loss),
        ignore_index=ignore_index, reduction=reduction, terms=terms, third=third, weight=weight,
        shares=(cross_entropy.target_share(*how), cross_entropy.uniform_share(*how)),
        weighted_mean=indexed and weight is not None,
    )  # fmt: skip


def cross_entropy_fwd(*args: Any) -> tuple[Tensor, ...]:
    """See csrc/cross_entropy.cpp."""
    *given, with_saved, with_grad = args
    grad, returned = _grad(args[0], with_grad)
    return (*_cross_entropy(*given).forward(with_saved, grad), returned)


def cross_entropy_fwd_(*args: Any) -> tuple[Tensor, Tensor]:
    """With the gradient in the logits' place."""
    return _cross_entropy(*args).forward(False, args[0])[:2]


def cross_entropy_bwd(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> Tensor:
    """The gradient from what forward saved."""
    grad = torch.empty_like(args[0])
    _cross_entropy(*args).backward(grad_output, scale, saved, grad)
    return grad


def cross_entropy_bwd_(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> None:
    """The same over the logits."""
    _cross_entropy(*args).backward(grad_output, scale, saved, args[0])


def _softmax_focal(
    input: Tensor, target: Tensor, alpha: Tensor | None, alpha_value: float, gamma: float,
    label_smoothing: float, ignore_index: int, reduction: int = 0,
    normalizer: Tensor | None = None, normalizer_value: float = 0.0,
) -> RowLoss:  # fmt: skip
    classes = input.size(0 if input.dim() == 1 else 1)
    smooth = label_smoothing > 0
    return RowLoss(
        softmax_focal, input, target, softmax_focal.numbers(classes, gamma, label_smoothing),
        ignore_index=ignore_index, reduction=reduction, terms=UNIFORM if smooth else NONE,
        third=SMOOTH if smooth else NOTHING, weight=alpha, weight_value=alpha_value,
        normalizer=normalizer, normalizer_value=normalizer_value, nothing_is_zero=True,
    )  # fmt: skip


def softmax_focal_fwd(
    input: Tensor, target: Tensor, alpha: Tensor | None, normalizer: Tensor | None,
    alpha_value: float, gamma: float, label_smoothing: float, normalizer_value: float,
    ignore_index: int, reduction: int, with_saved: bool, with_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See csrc/softmax_focal.cpp."""
    grad, returned = _grad(input, with_grad)
    call = _softmax_focal(
        input, target, alpha, alpha_value, gamma, label_smoothing, ignore_index, reduction,
        normalizer, normalizer_value,
    )  # fmt: skip
    return (*call.forward(with_saved, grad), returned)


def softmax_focal_bwd(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> Tensor:
    """The gradient from what forward saved."""
    grad = torch.empty_like(args[0])
    _softmax_focal(*args).backward(grad_output, scale, saved, grad)
    return grad


def _margin_softmax(
    input: Tensor, target: Tensor, m1: Tensor | None, m2: Tensor | None, m3: Tensor | None,
    logit_scale: float, m1_value: float, m2_value: float, m3_value: float, easy: bool,
    linear: bool, straight_through: bool, label_smoothing: float, ceiling: float,
    ignore_index: int, reduction: int = 0,
) -> RowLoss:  # fmt: skip
    classes = input.size(0 if input.dim() == 1 else 1)
    function, margins = margin_softmax.target, (input, input, input)
    if m1_value != 1:
        function = margin_softmax.target_by_angle
    if m1 is not None or m2 is not None or m3 is not None:
        function = margin_softmax.target_by_class
        dtype = accumulator(input)
        margins = tuple(
            given if given is not None else input.new_full([classes], value, dtype=dtype)
            for given, value in ((m1, m1_value), (m2, m2_value), (m3, m3_value))
        )
    return RowLoss(
        margin_softmax, input, target,
        margin_softmax.numbers(
            classes, input.dtype, logit_scale, m1_value, m2_value, m3_value, easy, linear,
            straight_through, label_smoothing,
        ),
        ignore_index=ignore_index, reduction=reduction, target_function=function,
        terms=UNIFORM if label_smoothing > 0 else NONE, third=CHANGED, margins=margins,
        logit_scale=logit_scale, ceiling=ceiling, nothing_is_zero=True,
    )  # fmt: skip


def margin_softmax_fwd(*args: Any) -> tuple[Tensor, ...]:
    """See csrc/margin_softmax.cpp."""
    *given, with_saved, with_grad = args
    grad, returned = _grad(args[0], with_grad)
    return (*_margin_softmax(*given).forward(with_saved, grad), returned)


def margin_softmax_fwd_(*args: Any) -> tuple[Tensor, Tensor]:
    """With the gradient in the cosines' place."""
    return _margin_softmax(*args).forward(False, args[0])[:2]


def margin_softmax_bwd(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> Tensor:
    """The gradient from what forward saved."""
    grad = torch.empty_like(args[0])
    _margin_softmax(*args).backward(grad_output, scale, saved, grad)
    return grad


def margin_softmax_bwd_(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> None:
    """The same over the cosines."""
    _margin_softmax(*args).backward(grad_output, scale, saved, args[0])


class Regions:
    """What regions add to a call: the arguments of the operators of kernels/core/region.h."""

    def __init__(
        self, input: Tensor, rows: Rows, batch: bool, squared: bool, first_class: int, joined: int
    ) -> None:  # fmt: skip
        self.input, self.rows = input, rows
        self.batch, self.squared, self.first_class = batch, squared, first_class
        self.joined = joined != 0
        self.groups = Groups(rows, input.size(0), batch)
        self.dtype = accumulator(input)

    def arguments(self) -> dict[str, Any]:
        """Of both walks."""
        return {
            "group_rows": self.groups.rows,
            "parts": self.groups.parts,
            "num_places": self.groups.count * self.groups.parts,
            "first_class": self.first_class,
            "JOINED": self.joined,
            "SQUARED": self.squared,
            "GROUPS": self.groups.of_program,
            "num_warps": REGION_WARPS,
        }

    def outputs(self, weighting: int, reduction: int) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, scale, slopes); zeros where there are no elements and so nothing to compute."""
        x, classes = self.input, self.rows.classes
        sizes = []
        if reduction == 0:
            if weighting or not self.batch:
                sizes.append(self.groups.count)
            if not weighting:
                sizes.append(classes - self.first_class)
        make = x.new_zeros if x.numel() == 0 else x.new_empty
        return (
            make(sizes, dtype=self.dtype),
            make([2], dtype=self.dtype),
            make([self.groups.count * classes, 2], dtype=self.dtype),
        )

    def workspaces(self) -> tuple[Tensor, Tensor]:
        """The sums of each group's parts, and each program's partials of what is joined."""
        x, groups = self.input, self.groups
        shape = [groups.count, groups.parts, self.rows.classes, int(SUMS)]
        return (
            x.new_empty(shape, dtype=torch.float64),
            x.new_empty([groups.programs, int(PARTIALS)], dtype=torch.float64),
        )

    def finish(
        self, sums: Tensor, partials: Tensor, outputs: tuple[Tensor, Tensor, Tensor],
        region_weight: Tensor | None, overlap: tuple[Any, ...], factor: float,
        joined_factor: float, weighted_mean: bool, reduction: int,
    ) -> None:  # fmt: skip
        """From the programs' sums to the outputs."""
        *numbers, log, weighting, skip_absent = overlap
        classes, groups = self.rows.classes, self.groups
        totals = sums
        if groups.parts > 1:
            totals = self.input.new_empty([groups.count, classes, int(SUMS)], dtype=torch.float64)
            width = min(64, triton.next_power_of_2(classes))
            add_sums_kernel[(groups.count, triton.cdiv(classes, width))](
                sums, totals, classes, groups.parts, CLASSES=width, PARTS=max(1, 1024 // width)
            )
        loss, scale, slopes = outputs
        region_finish_kernel[(1,)](
            totals, partials, groups.programs, totals if region_weight is None else region_weight,
            loss, scale, slopes, *(float(number) for number in numbers), float(factor),
            float(joined_factor), groups.count, classes, self.first_class,
            LOG=log, WEIGHTING=weighting, HAS_WEIGHT=region_weight is not None,
            SKIP_ABSENT=skip_absent, JOINED=self.joined, WEIGHTED=weighted_mean,
            REDUCTION=reduction, BLOCK=FINISH_BLOCK,
        )  # fmt: skip

    def upstream(self, grad_output: Tensor, generalized: bool) -> tuple[int, int]:
        """Its strides along groups and classes."""
        if grad_output.dim() == 0:
            return 0, 0
        strides = list(grad_output.stride())
        group = strides.pop(0) if generalized or not self.batch else 0
        return group, strides.pop(0) if not generalized else 0


def _region_rows(
    input: Tensor, target: Tensor, class_weight: Tensor | None, joined: int,
    label_smoothing: float, smooth_others: bool, focal_gamma: float, alpha_value: float,
    ignore_index: int, reduction: int = 1,
) -> RowLoss:  # fmt: skip
    if joined == 1:
        return _cross_entropy(
            input, target, class_weight, label_smoothing, smooth_others, 0.0, ignore_index,
            reduction,
        )  # fmt: skip
    if joined == 2:
        return _softmax_focal(
            input, target, class_weight, alpha_value, focal_gamma, label_smoothing, ignore_index,
            reduction,
        )  # fmt: skip
    soft = target.dim() == input.dim()
    return RowLoss(
        nothing, input, target, (), ignore_index=ignore_index, reduction=reduction,
        terms=PROBABILITIES if soft else NONE, third=SUM_U if soft else NOTHING,
    )  # fmt: skip


OVERLAP = 10  # numbers and switches that the operators have on how sums become losses


def softmax_regions_fwd(
    input: Tensor, target: Tensor, region_weight: Tensor | None, class_weight: Tensor | None,
    *args: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See csrc/softmax_regions.cpp."""
    overlap, first_class = args[:OVERLAP], args[OVERLAP]
    (
        factor, joined, joined_factor, label_smoothing, smooth_others, focal_gamma, alpha_value,
        squared, batch, ignore_index, reduction, with_saved,
    ) = args[OVERLAP + 1 :]  # fmt: skip
    call = _region_rows(
        input, target, class_weight, joined, label_smoothing, smooth_others, focal_gamma,
        alpha_value, ignore_index, reduction,
    )  # fmt: skip
    regions = Regions(input, call.rows, batch, squared, first_class, joined)
    outputs = regions.outputs(overlap[8], reduction)
    loss, scale, slopes = outputs
    sizes = [call.saved_numbers, input.size(0), *input.shape[2:]] if with_saved else [0]
    saved = input.new_empty(sizes, dtype=call.dtype)
    if input.numel() > 0:
        sums, partials = regions.workspaces()
        call.launch(
            None, region_rows_kernel, regions.groups, partials=partials, saved=saved,
            saved_stride=call.rows.num_rows, WITH_SAVED=with_saved, sums=sums, slopes=slopes,
            **regions.arguments(),
        )  # fmt: skip
        regions.finish(
            sums, partials, outputs, region_weight, overlap, factor, joined_factor,
            call.weighted_mean, reduction,
        )  # fmt: skip
    return loss, scale, saved, slopes


def softmax_regions_bwd(
    grad_output: Tensor, scale: Tensor, saved: Tensor, slopes: Tensor, input: Tensor,
    target: Tensor, class_weight: Tensor | None, generalized: bool, first_class: int,
    joined: int, label_smoothing: float, smooth_others: bool, focal_gamma: float,
    alpha_value: float, squared: bool, batch: bool, ignore_index: int,
) -> Tensor:  # fmt: skip
    """The gradient."""
    grad = torch.empty_like(input)
    call = _region_rows(
        input, target, class_weight, joined, label_smoothing, smooth_others, focal_gamma,
        alpha_value, ignore_index,
    )  # fmt: skip
    regions = Regions(input, call.rows, batch, squared, first_class, joined)
    group, this_class = regions.upstream(grad_output, generalized)
    call.launch(
        grad, region_rows_kernel, regions.groups, BACKWARD=True, saved=saved.contiguous(),
        saved_stride=call.rows.num_rows, grad_output=grad_output, u_n=group, u_l=this_class,
        scale_of_grad=scale, sums=slopes, slopes=slopes, **regions.arguments(),
    )  # fmt: skip
    return grad


class RegionElements:
    """One call of regions over elements, but for its outputs."""

    def __init__(
        self, input: Tensor, target: Tensor, alpha: Tensor | None, activation: int, joined: int,
        label_smoothing: float, focal_gamma: float, alpha_value: float, squared: bool, batch: bool,
        first_class: int, ignore_index: int,
    ) -> None:  # fmt: skip
        is_focal = joined == 2
        self.focal = FocalCall(
            input, target, alpha, None, alpha_value if is_focal else -1.0,
            focal_gamma if is_focal else 0.0, ignore_index, label_smoothing,
        )  # fmt: skip
        self.rows = Rows(input)
        self.sigmoid, self.alpha = activation == 1, alpha
        self.regions = Regions(input, self.rows, batch, squared, first_class, joined)

    def launch(self, grad: Tensor | None, **given: Any) -> None:
        """With the outputs, or what backward adds."""
        focal_call, rows, groups = self.focal, self.rows, self.regions.groups
        x, x_strides = with_strides(focal_call.input, rows.strides)
        target = focal_call.target
        if focal_call.indexed:
            target, (t_n, t_l) = with_strides(target, rows.strides_of_rows)
            t_strides = (t_n, 0, t_l)
        else:
            target, t_strides = with_strides(target, rows.strides)
        written = grad
        if grad is not None and rows.strides(grad) is None:
            written = torch.empty_like(grad, memory_format=torch.contiguous_format)
        g_strides = (0, 0, 0) if written is None else rows.strides(written)
        launch = groups.launch
        arguments = {"grad_output": x, "scale_of_grad": x, "partials": x, "u_group": 0,
                     "u_class": 0, "BACKWARD": False, **given}  # fmt: skip
        n0, n1, n2 = focal_call.numbers
        region_elements_kernel[(groups.programs,)](
            x=x, target=target, side=x if self.alpha is None else self.alpha,
            grad=x if written is None else written,
            n0=n0, n1=n1, n2=float(n2), n3=0.0, side_value=float(focal_call.alpha_value),
            ignored_target=focal_call.ignored_target(), ignore_index=focal_call.ignore_index,
            num_rows=rows.num_rows, classes=rows.classes, inner=rows.inner,
            x_n=x_strides[0], x_c=x_strides[1], x_l=x_strides[2],
            t_n=t_strides[0], t_c=t_strides[1], t_l=t_strides[2],
            g_n=g_strides[0], g_c=g_strides[1], g_l=g_strides[2],
            ELEMENT=focal.element, SIGMOID=self.sigmoid, INDEXED=focal_call.indexed,
            HAS_SIDE=self.alpha is not None, ROWS=launch.rows, CLASSES=launch.classes,
            ONE_TILE=launch.one_tile, DTYPE=element_type(focal_call.dtype),
            **self.regions.arguments(), **arguments,
        )  # fmt: skip
        if grad is not None and written is not grad:
            grad.copy_(written)


def element_regions_fwd(
    input: Tensor, target: Tensor, region_weight: Tensor | None, alpha: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """See csrc/element_regions.cpp."""
    overlap, first_class = args[:OVERLAP], args[OVERLAP]
    (
        factor, activation, joined, joined_factor, label_smoothing, focal_gamma, alpha_value,
        squared, batch, ignore_index, reduction,
    ) = args[OVERLAP + 1 :]  # fmt: skip
    call = RegionElements(
        input, target, alpha, activation, joined, label_smoothing, focal_gamma, alpha_value,
        squared, batch, first_class, ignore_index,
    )  # fmt: skip
    outputs = call.regions.outputs(overlap[8], reduction)
    if input.numel() > 0:
        sums, partials = call.regions.workspaces()
        call.launch(None, sums=sums, partials=partials, slopes=outputs[2])
        call.regions.finish(
            sums, partials, outputs, region_weight, overlap, factor, joined_factor, False, reduction
        )
    return outputs


def element_regions_bwd(
    grad_output: Tensor, scale: Tensor, slopes: Tensor, input: Tensor, target: Tensor,
    alpha: Tensor | None, generalized: bool, first_class: int, activation: int, joined: int,
    label_smoothing: float, focal_gamma: float, alpha_value: float, squared: bool, batch: bool,
    ignore_index: int,
) -> Tensor:  # fmt: skip
    """The gradient."""
    grad = torch.empty_like(input)
    if input.numel() == 0:
        return grad
    call = RegionElements(
        input, target, alpha, activation, joined, label_smoothing, focal_gamma, alpha_value,
        squared, batch, first_class, ignore_index,
    )  # fmt: skip
    group, this_class = call.regions.upstream(grad_output, generalized)
    call.launch(
        grad, BACKWARD=True, grad_output=grad_output, u_group=group, u_class=this_class,
        scale_of_grad=scale, slopes=slopes, sums=slopes,
    )  # fmt: skip
    return grad


class FocalCall:
    """One call of the pointwise engine with the sigmoid focal loss, but for its outputs."""

    def __init__(
        self, input: Tensor, target: Tensor, alpha: Tensor | None, weight: Tensor | None,
        alpha_value: float, gamma: float, ignore_index: int, label_smoothing: float,
    ) -> None:  # fmt: skip
        self.input, self.target, self.alpha, self.weight = input, target, alpha, weight
        self.alpha_value, self.ignore_index = alpha_value, ignore_index
        self.numbers = focal.numbers(gamma, label_smoothing)
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
        operands = [x, target, self.alpha, self.weight, arguments["grad_output"]]
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
            x=x, target=target, side=x if self.alpha is None else self.alpha,
            weight=x if self.weight is None else self.weight, grad=x if grad is None else grad,
            numel=x.numel(), sizes=elements.sizes,
            **{f"{name}_strides": of for name, of in zip(names, elements.strides, strict=True)},
            n0=self.numbers[0], n1=self.numbers[1], n2=float(self.numbers[2]), n3=0.0,
            side_value=float(self.alpha_value), ignored_target=self.ignored_target(),
            ignore_index=self.ignore_index, classes=x.size(-1) if self.indexed else 1,
            ELEMENT=focal.element, NDIM=elements.ndim, INDEXED=self.indexed,
            HAS_SIDE=self.alpha is not None, HAS_WEIGHT=self.weight is not None,
            WITH_GRAD=grad is not None, BLOCK=block, DTYPE=element_type(self.dtype),
            num_warps=ELEMENT_WARPS, **arguments,
        )  # fmt: skip

    def ignored_target(self) -> float:
        """What a dense target holds where somebody filled in the ignored value."""
        if self.indexed or not self.target.is_floating_point():
            return float(self.ignore_index)
        return float(torch.tensor(float(self.ignore_index)).to(self.target.dtype))


def sigmoid_focal_fwd(
    input: Tensor, target: Tensor, alpha: Tensor | None, weight: Tensor | None,
    normalizer: Tensor | None, alpha_value: float, gamma: float, ignore_index: int,
    label_smoothing: float, normalizer_value: float, reduction: int, with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See csrc/sigmoid_focal.cpp."""
    call = FocalCall(
        input, target, alpha, weight, alpha_value, gamma, ignore_index, label_smoothing
    )
    grad, returned = _grad(input, with_grad)
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
        partials, programs, loss, scale, reduction, expected, normalizer, normalizer_value, False,
        True,
    )  # fmt: skip
    return loss, scale[0].clone(), returned


def sigmoid_focal_bwd(grad_output: Tensor, scale: Tensor, input: Tensor, *args: Any) -> Tensor:
    """The gradient."""
    grad = torch.empty_like(input)
    call = FocalCall(input, *args)
    call.launch(grad, BACKWARD=True, grad_output=grad_output, scale_of_grad=scale)
    return grad


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


def _bits(dtype: torch.dtype) -> tl.dtype:
    """The integers that hold the arithmetic's numbers, as kernels name them."""
    return tl.int64 if dtype == torch.float64 else tl.int32


def select(
    marks: Tensor, values: Tensor | None, loss: Tensor, scale: Tensor, selection: Tensor,
    slices: int, slice_size: int, wanted: int, number: int, factor: float, whole_ties: bool,
    epsilon: float, reduction: int,
) -> None:  # fmt: skip
    """The selection among the marks of each slice, its losses or their sum."""
    dtype = torch.float64 if marks.dtype == torch.int64 else torch.float32
    types = {"BITS": _bits(dtype), "DTYPE": element_type(dtype)}
    block = elements_block(slice_size)
    grid = (triton.cdiv(slice_size, block), slices)
    counts = marks.new_zeros([slices, 2], dtype=torch.int32)
    state = marks.new_empty([slices, int(STATE)], dtype=torch.int64)
    bins = marks.new_zeros([slices, int(BINS)], dtype=torch.int32)
    count_kernel[grid](marks, counts, slice_size, BLOCK=block)
    want_kernel[(slices,)](counts, state, number, float(factor), RULE=wanted)
    for shift in range(56 if dtype == torch.float64 else 24, -1, -8):
        digit_kernel[grid](marks, state, bins, slice_size, SHIFT=shift, BLOCK=block)
        choose_kernel[(slices,)](state, bins)
    selection_kernel[(slices,)](state, selection, WHOLE_TIES=whole_ties, **types)
    partials = marks.new_empty([grid[0] * slices], dtype=torch.float64)
    sum_kernel[grid](
        marks, marks if values is None else values, selection, loss, partials, slice_size,
        HAS_VALUES=values is not None, WITH_LOSSES=reduction == 0, BLOCK=block, **types,
    )  # fmt: skip
    mined_finish_kernel[(1,)](
        partials, partials.numel(), state, slices, loss, scale, float(epsilon),
        WHOLE_TIES=whole_ties, MEAN=reduction == 2, WITH_LOSS=reduction != 0, BLOCK=FINISH_BLOCK,
    )  # fmt: skip


def _select_nothing(loss: Tensor, scale: Tensor, selection: Tensor) -> None:
    """Of an input without elements."""
    nan = 0x7FF8000000000000 if selection.dtype == torch.int64 else 0x7FC00000
    loss.zero_()
    scale.zero_()
    selection[:, 0] = nan
    selection[:, 1] = 0


def _mined_rows(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> RowLoss:
    return RowLoss(
        cross_entropy, input, target, (1.0, 0.0, 0.0, 0.0), ignore_index=ignore_index, weight=weight
    )


def mined_cross_entropy_fwd(
    input: Tensor, target: Tensor, weight: Tensor | None, threshold: float, wanted: int,
    number: int, factor: float, whole_ties: bool, ignore_index: int, reduction: int,
    begin_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See csrc/mined_cross_entropy.cpp. The gradient is never begun here."""
    call = _mined_rows(input, target, weight, ignore_index)
    bits = bits_dtype(input)
    sizes = [input.size(d) for d in range(input.dim()) if d != call.rows.class_dim]
    marks = input.new_empty(sizes, dtype=bits)
    loss = input.new_empty(sizes if reduction == 0 else [], dtype=call.dtype)
    scale = input.new_empty([], dtype=call.dtype)
    selection = input.new_empty([1, 2], dtype=bits)
    outputs = loss, scale, marks, selection, input.new_empty(0)
    if input.numel() == 0:
        _select_nothing(loss, scale, selection)
        return outputs
    values = None if weight is None else input.new_empty(sizes, dtype=call.dtype)
    call.launch(
        None, mined_rows_kernel, marks=marks, values=marks if values is None else values,
        selection=selection, threshold=float(threshold), BITS=_bits(call.dtype),
    )  # fmt: skip
    select(
        marks, values, loss, scale, selection, 1, call.rows.num_rows, wanted, number, factor,
        whole_ties, 0.0, reduction,
    )  # fmt: skip
    return outputs


def mined_cross_entropy_bwd(
    grad_output: Tensor, scale: Tensor, marks: Tensor, selection: Tensor, input: Tensor,
    target: Tensor, weight: Tensor | None, ignore_index: int,
) -> Tensor:  # fmt: skip
    """The gradient of what is selected."""
    grad = torch.empty_like(input)
    call = _mined_rows(input, target, weight, ignore_index)
    upstream, (u_n, u_l) = with_strides(grad_output, call.rows.strides_of_rows)
    call.launch(
        grad, mined_rows_kernel, BACKWARD=True, grad_output=upstream, u_n=u_n, u_l=u_l,
        scale_of_grad=scale, marks=marks.contiguous(), values=marks, selection=selection,
        threshold=0.0, BITS=_bits(call.dtype), num_warps=MINED_WARPS,
    )  # fmt: skip
    return grad


def mined_cross_entropy_bwd_(grad: Tensor, *args: Any) -> None:
    """The same over a gradient that another backend's forward has begun."""
    grad.copy_(mined_cross_entropy_bwd(*args))


def _launch_elements(
    input: Tensor, target: Tensor, mask: Tensor | None, marks: Tensor, selection: Tensor,
    from_logits: bool, mined_dims: int, grad_output: Tensor | None = None,
    scale: Tensor | None = None, grad: Tensor | None = None,
) -> None:  # fmt: skip
    shape = input.shape
    slice_strides, stride = [0] * input.dim(), 1
    for d in reversed(slice_order(input.dim(), mined_dims)[0]):
        slice_strides[d] = stride
        stride *= input.size(d)
    strides = [broadcast_strides(x, shape) for x in (input, target, mask, marks)]
    strides.append(tuple(slice_strides))
    strides += [broadcast_strides(x, shape) for x in (grad_output, grad)]
    elements = Elements(shape, strides)
    block = elements_block(input.numel())
    dtype = accumulator(input)
    names = ("x", "target", "mask", "marks", "slice", "grad_output", "grad")
    loss = binary_cross_entropy.of_logits if from_logits else binary_cross_entropy.of_probabilities
    mined_elements_kernel[(triton.cdiv(input.numel(), block),)](
        input, target, input if mask is None else mask, marks, selection,
        input if grad is None else grad, input if grad_output is None else grad_output,
        input if scale is None else scale, input.numel(), elements.sizes,
        **{f"{name}_strides": of for name, of in zip(names, elements.strides, strict=True)},
        ELEMENT=loss, NDIM=elements.ndim, HAS_MASK=mask is not None, BACKWARD=grad is not None,
        BLOCK=block, DTYPE=element_type(dtype), BITS=_bits(dtype), num_warps=ELEMENT_WARPS,
    )  # fmt: skip


def mined_binary_cross_entropy_fwd(
    input: Tensor, target: Tensor, mask: Tensor | None, from_logits: bool, mined_dims: int,
    ratio: float, fallback: int, epsilon: float, reduction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See csrc/mined_binary_cross_entropy.cpp."""
    dtype, bits = accumulator(input), bits_dtype(input)
    slices = math.prod(input.size(d) for d in slice_order(input.dim(), mined_dims)[0])
    marks = like_marks(input, mined_dims, bits)
    loss = input.new_empty([], dtype=dtype)
    if reduction == 0:
        loss = like_marks(input, mined_dims, dtype)
    scale = input.new_empty([], dtype=dtype)
    selection = input.new_empty([slices, 2], dtype=bits)
    if input.numel() == 0:
        _select_nothing(loss, scale, selection)
    else:
        _launch_elements(input, target, mask, marks, selection, from_logits, mined_dims)
        select(
            marks, None, loss, scale, selection, slices, input.numel() // slices, 3, fallback,
            ratio, False, epsilon, reduction,
        )  # fmt: skip
    return loss, scale, marks, selection


def mined_binary_cross_entropy_bwd(
    grad_output: Tensor, scale: Tensor, marks: Tensor, selection: Tensor, input: Tensor,
    target: Tensor, from_logits: bool, mined_dims: int,
) -> Tensor:  # fmt: skip
    """The gradient of what is selected."""
    grad = torch.empty_like(input)
    if input.numel() > 0:
        _launch_elements(
            input, target, None, marks, selection, from_logits, mined_dims, grad_output, scale, grad
        )
    return grad


OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        cross_entropy_fwd,
        cross_entropy_fwd_,
        cross_entropy_bwd,
        cross_entropy_bwd_,
        softmax_focal_fwd,
        softmax_focal_bwd,
        margin_softmax_fwd,
        margin_softmax_fwd_,
        margin_softmax_bwd,
        margin_softmax_bwd_,
        sigmoid_focal_fwd,
        sigmoid_focal_bwd,
        scale_gradient,
        scale_gradient_,
        softmax_regions_fwd,
        softmax_regions_bwd,
        element_regions_fwd,
        element_regions_bwd,
        mined_cross_entropy_fwd,
        mined_cross_entropy_bwd,
        mined_cross_entropy_bwd_,
        mined_binary_cross_entropy_fwd,
        mined_binary_cross_entropy_bwd,
    )
}


def serve(device_types: tuple[str, ...]) -> torch.library.Library:
    """Has fusedloss's operators run these kernels for tensors of these devices, until the library that is
    returned is destroyed.
    """
    library = torch.library.Library("fusedloss", "IMPL")
    for name, function in OPERATORS.items():
        for device_type in device_types:
            library.impl(name, function, device_type.upper(), allow_override=True)
    return library
