"""The operators of losses over rows of a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import triton

from .calls import accumulator, element_type, finish, grad_to_write
from .launch import rows_launch
from .layout import Rows, to_write, with_strides
from .loss import cross_entropy, margin_softmax, softmax_focal
from .row_softmax import PARTIALS, row_kernel

NONE, UNIFORM, WEIGHTS, PROBABILITIES = range(4)
NOTHING, SUM_U, SMOOTH, CHANGED = range(4)  # a row's third saved number
NUMBERS = 16  # that a loss's functions can have


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
        self, grad: Tensor | None, kernel: Any = row_kernel, programs: int | None = None,
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
        written, g_strides = to_write(grad, rows)
        launch = rows_launch(rows.num_rows, rows.classes)
        if programs is None:
            programs = triton.cdiv(rows.num_rows, launch.rows)
        padded = self.numbers + (0.0,) * (NUMBERS - len(self.numbers))
        numbers = {f"n{i}": float(value) for i, value in enumerate(padded)}
        arguments: dict[str, Any] = {
            "loss": x, "partials": x, "saved": x, "grad_output": x, "scale_of_grad": x,
            "scale_main": 1.0, "scale_by_row": 1.0, "u_strides": (0, 0), "saved_stride": 0,
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
            x_strides=x_strides, t_strides=t_strides, g_strides=g_strides,
            VALUE=self.loss.value, GRADIENT=self.loss.gradient, TARGET=self.target_function,
            TERMS=self.terms, HAS_WEIGHT=self.weight is not None,
            CHANGES_TARGET=self.changes_target, HAS_CEILING=self.ceiling < math.inf,
            THIRD=self.third, WITH_GRAD=grad is not None,
            ROWS=launch.rows, CLASSES=launch.classes, ONE_TILE=launch.one_tile,
            DTYPE=element_type(self.dtype),
            **arguments,
        )  # fmt: skip
        if grad is not None and written is not None and written is not grad:
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
            partials[:programs], loss, scale, self.reduction, expected, self.normalizer,
            self.normalizer_value, self.weighted_mean, self.nothing_is_zero,
        )  # fmt: skip
        return loss, scale, saved

    def backward(self, grad_output: Tensor, scale: Tensor, saved: Tensor, grad: Tensor) -> None:
        """The gradient into `grad`, which may be the logits."""
        upstream, u_strides = with_strides(grad_output, self.rows.strides_of_rows)
        self.launch(
            grad, BACKWARD=True, grad_output=upstream, u_strides=u_strides, scale_of_grad=scale,
            saved=saved.contiguous(), saved_stride=self.rows.num_rows,
        )  # fmt: skip


def cross_entropy_call(
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
    grad, returned = grad_to_write(args[0], with_grad)
    return (*cross_entropy_call(*given).forward(with_saved, grad), returned)


def cross_entropy_fwd_(*args: Any) -> tuple[Tensor, Tensor]:
    """With the gradient in the logits' place."""
    return cross_entropy_call(*args).forward(False, args[0])[:2]


def cross_entropy_bwd(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> Tensor:
    """The gradient from what forward saved."""
    grad = torch.empty_like(args[0])
    cross_entropy_call(*args).backward(grad_output, scale, saved, grad)
    return grad


def cross_entropy_bwd_(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> None:
    """The same over the logits."""
    cross_entropy_call(*args).backward(grad_output, scale, saved, args[0])


def softmax_focal_call(
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
    grad, returned = grad_to_write(input, with_grad)
    call = softmax_focal_call(
        input, target, alpha, alpha_value, gamma, label_smoothing, ignore_index, reduction,
        normalizer, normalizer_value,
    )  # fmt: skip
    return (*call.forward(with_saved, grad), returned)


def softmax_focal_bwd(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> Tensor:
    """The gradient from what forward saved."""
    grad = torch.empty_like(args[0])
    softmax_focal_call(*args).backward(grad_output, scale, saved, grad)
    return grad


def margin_softmax_call(
    input: Tensor, target: Tensor, m1: Tensor | None, m2: Tensor | None, m3: Tensor | None,
    logit_scale: float, m1_value: float, m2_value: float, m3_value: float, easy: bool,
    linear: bool, straight_through: bool, label_smoothing: float, ceiling: float,
    ignore_index: int, reduction: int = 0,
) -> RowLoss:  # fmt: skip
    classes = input.size(0 if input.dim() == 1 else 1)
    function = margin_softmax.target
    margins: tuple[Tensor, ...] = (input, input, input)
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
    grad, returned = grad_to_write(args[0], with_grad)
    return (*margin_softmax_call(*given).forward(with_saved, grad), returned)


def margin_softmax_fwd_(*args: Any) -> tuple[Tensor, Tensor]:
    """With the gradient in the cosines' place."""
    return margin_softmax_call(*args).forward(False, args[0])[:2]


def margin_softmax_bwd(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> Tensor:
    """The gradient from what forward saved."""
    grad = torch.empty_like(args[0])
    margin_softmax_call(*args).backward(grad_output, scale, saved, grad)
    return grad


def margin_softmax_bwd_(grad_output: Tensor, scale: Tensor, saved: Tensor, *args: Any) -> None:
    """The same over the cosines."""
    margin_softmax_call(*args).backward(grad_output, scale, saved, args[0])


OPERATORS = (
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
)
