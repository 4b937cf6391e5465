"""The operators of losses that count their hardest rows or elements only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl

from .._mining import bits_dtype, slice_order
from .._mining_autograd import like_marks
from .calls import FINISH_BLOCK, accumulator, element_type, fewer_partials
from .launch import ELEMENT_WARPS, MINED_WARPS, elements_block
from .layout import Elements, broadcast_strides, with_strides
from .loss import binary_cross_entropy, cross_entropy
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
from .row_ops import RowLoss


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
    partials = fewer_partials(partials[:, None])
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
    upstream, u_strides = with_strides(grad_output, call.rows.strides_of_rows)
    call.launch(
        grad, mined_rows_kernel, BACKWARD=True, grad_output=upstream, u_strides=u_strides,
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


OPERATORS = (
    mined_cross_entropy_fwd,
    mined_cross_entropy_bwd,
    mined_cross_entropy_bwd_,
    mined_binary_cross_entropy_fwd,
    mined_binary_cross_entropy_bwd,
)
