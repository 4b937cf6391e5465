"""The operators of losses over regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton

from .calls import FINISH_BLOCK, accumulator, add_parts, element_type, fewer_partials
from .launch import REGION_WARPS, rows_launch
from .layout import Rows, to_write, with_strides
from .loss import nothing, sigmoid_focal
from .pointwise_ops import focal_call
from .region_finish import region_finish_kernel
from .regions import SUMS, region_elements_kernel, region_rows_kernel
from .row_ops import (
    NONE,
    NOTHING,
    PROBABILITIES,
    SUM_U,
    RowLoss,
    cross_entropy_call,
    softmax_focal_call,
)
from .row_softmax import PARTIALS

OVERLAP = 10  # numbers and switches that the operators have on how sums become losses


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
        shape = [groups.count, groups.parts, self.rows.classes * int(SUMS)]
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
        totals = add_parts(sums, 1)
        partials = fewer_partials(partials)
        loss, scale, slopes = outputs
        region_finish_kernel[(1,)](
            totals, partials, partials.size(0), totals if region_weight is None else region_weight,
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
        return cross_entropy_call(
            input, target, class_weight, label_smoothing, smooth_others, 0.0, ignore_index,
            reduction,
        )  # fmt: skip
    if joined == 2:
        return softmax_focal_call(
            input, target, class_weight, alpha_value, focal_gamma, label_smoothing, ignore_index,
            reduction,
        )  # fmt: skip
    soft = target.dim() == input.dim()
    return RowLoss(
        nothing, input, target, (), ignore_index=ignore_index, reduction=reduction,
        terms=PROBABILITIES if soft else NONE, third=SUM_U if soft else NOTHING,
    )  # fmt: skip


def softmax_regions_fwd(
    input: Tensor, target: Tensor, region_weight: Tensor | None, class_weight: Tensor | None,
    *args: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See csrc/softmax_regions.cpp."""
    overlap, first_class = args[:OVERLAP], args[OVERLAP]
    (
        factor, joined, joined_factor, label_smoothing, smooth_others, focal_gamma, alpha_value,
        squared, batch, ignore_index, reduction, with_saved, begin_grad,
    ) = args[OVERLAP + 1 :]  # fmt: skip
    if begin_grad:
        raise ValueError("fusedloss: only the CPU's forward begins the gradient")
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
            None, region_rows_kernel, regions.groups.programs, partials=partials, saved=saved,
            saved_stride=call.rows.num_rows, WITH_SAVED=with_saved, sums=sums, slopes=slopes,
            **regions.arguments(),
        )  # fmt: skip
        regions.finish(
            sums, partials, outputs, region_weight, overlap, factor, joined_factor,
            call.weighted_mean, reduction,
        )  # fmt: skip
    return loss, scale, saved, slopes, input.new_empty([0])


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
    u_strides = regions.upstream(grad_output, generalized)
    call.launch(
        grad, region_rows_kernel, regions.groups.programs, BACKWARD=True, saved=saved.contiguous(),
        saved_stride=call.rows.num_rows, grad_output=grad_output, u_strides=u_strides,
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
        self.focal = focal_call(
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
        written, g_strides = to_write(grad, rows)
        launch = groups.launch
        arguments = {"grad_output": x, "scale_of_grad": x, "partials": x, "u_strides": (0, 0),
                     "BACKWARD": False, **given}  # fmt: skip
        n0, n1, n2, n3 = map(float, focal_call.numbers)
        region_elements_kernel[(groups.programs,)](
            x=x, target=target, side=x if self.alpha is None else self.alpha,
            grad=x if written is None else written,
            n0=n0, n1=n1, n2=n2, n3=n3, side_value=float(focal_call.side_value),
            ignored_target=focal_call.ignored_target(), ignore_index=focal_call.ignore_index,
            num_rows=rows.num_rows, classes=rows.classes, inner=rows.inner,
            x_strides=x_strides, t_strides=t_strides, g_strides=g_strides,
            ELEMENT=sigmoid_focal.element, SIGMOID=self.sigmoid, INDEXED=focal_call.indexed,
            HAS_SIDE=self.alpha is not None, ROWS=launch.rows, CLASSES=launch.classes,
            ONE_TILE=launch.one_tile, DTYPE=element_type(focal_call.dtype),
            **self.regions.arguments(), **arguments,
        )  # fmt: skip
        if grad is not None and written is not None and written is not grad:
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
    u_strides = call.regions.upstream(grad_output, generalized)
    call.launch(
        grad, BACKWARD=True, grad_output=grad_output, u_strides=u_strides,
        scale_of_grad=scale, slopes=slopes, sums=slopes,
    )  # fmt: skip
    return grad


OPERATORS = (
    softmax_regions_fwd,
    softmax_regions_bwd,
    element_regions_fwd,
    element_regions_bwd,
)
