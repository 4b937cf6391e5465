"""The pointwise engine in Triton: a loss of single elements, over tensors of any layout; see
kernels/core/pointwise.h.

Elements are numbered in the order of the logits' memory; coordinates in merged dimensions give an
operand's place by its strides.
"""

import triton
import triton.language as tl

from .math import number
from .row_softmax import leave_partials


@triton.jit
def place(i, sizes, strides, NDIM: tl.constexpr):
    """Where element i of an operand lies."""
    if NDIM == 1:
        offset = i * strides[0]
    else:
        offset = 0 * i
        rest = i
        for d in tl.static_range(NDIM - 1, 0, -1):
            quotient = rest // sizes[d]
            offset += (rest - quotient * sizes[d]) * strides[d]
            rest = quotient
        offset += rest * strides[0]
    return offset


@triton.jit
def pointwise_kernel(
    x, target, side, weight, grad_output, loss, partials, grad, scale_of_grad,
    numel, sizes, x_strides, target_strides, side_strides, weight_strides, grad_output_strides,
    loss_strides, grad_strides, class_strides,
    n0: "fp64", n1: "fp64", n2: "fp64", n3: "fp64", side_value: "fp64", scale: "fp64",
    ignored_target: "fp64", ignore_index, classes,
    ELEMENT: tl.constexpr, NDIM: tl.constexpr, INDEXED: tl.constexpr, HAS_SIDE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BACKWARD: tl.constexpr, WITH_GRAD: tl.constexpr,
    WITH_LOSSES: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Forward: losses, sums, and the gradient where wanted. BACKWARD: the gradient."""
    numbers = (number(n0, DTYPE), number(n1, DTYPE), number(n2, DTYPE), number(n3, DTYPE))
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    logit = tl.load(x + place(i, sizes, x_strides, NDIM), mask=mask, other=0.0).to(DTYPE)
    t_at = target + place(i, sizes, target_strides, NDIM)
    bad = i < 0
    if INDEXED:
        label = tl.load(t_at, mask=mask, other=0).to(tl.int64)
        ignored = label == ignore_index
        bad = mask & ~ignored & ((label < -1) | (label > classes))
        t = (label == place(i, sizes, class_strides, NDIM)).to(DTYPE)
    else:
        t = tl.load(t_at, mask=mask, other=0.0).to(DTYPE)
        ignored = t == number(ignored_target, DTYPE)
    factor = tl.full((BLOCK,), 1.0, DTYPE)
    if HAS_WEIGHT:
        at = weight + place(i, sizes, weight_strides, NDIM)
        factor = tl.load(at, mask=mask, other=0.0).to(DTYPE)
    alpha = number(side_value, DTYPE) + tl.zeros((BLOCK,), DTYPE)
    if HAS_SIDE:
        alpha = tl.load(side + place(i, sizes, side_strides, NDIM), mask=mask, other=0.0)
        alpha = alpha.to(DTYPE)
    counts = mask & ~ignored
    # What is ignored has no effect, NaN included.
    logit = tl.where(counts, logit, 0.0)
    t = tl.where(counts, t, 0.0)
    value, slope = ELEMENT(logit, t, alpha, factor, numbers)
    value = tl.where(counts, tl.where(bad, float("nan"), value), 0.0)
    slope = tl.where(counts, tl.where(bad, float("nan"), slope), 0.0)
    if not BACKWARD:
        if WITH_LOSSES:
            tl.store(loss + place(i, sizes, loss_strides, NDIM), value, mask=mask)
        leave_partials(partials, value, 0.0 * value, counts, 0.0 * value)
    if BACKWARD:
        at = grad_output + place(i, sizes, grad_output_strides, NDIM)
        slope *= tl.load(at, mask=mask, other=0.0) * tl.load(scale_of_grad)
    else:
        slope *= number(scale, DTYPE)
    if BACKWARD or WITH_GRAD:
        at = grad + place(i, sizes, grad_strides, NDIM)
        tl.store(at, slope.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def scale_kernel(
    grad, grad_output, out, scale, numel, sizes, grad_strides, grad_output_strides, out_strides,
    NDIM: tl.constexpr, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Out = grad * grad_output * scale; memory is left alone where out is grad and the factor 1."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    at = grad_output + place(i, sizes, grad_output_strides, NDIM)
    factor = tl.load(at, mask=mask, other=1.0).to(DTYPE) * tl.load(scale)
    needed = mask
    if IN_PLACE:
        needed = mask & (factor != 1.0)
    g = tl.load(grad + place(i, sizes, grad_strides, NDIM), mask=needed, other=0.0).to(DTYPE)
    to = out + place(i, sizes, out_strides, NDIM)
    tl.store(to, (g * factor).to(out.dtype.element_ty), mask=needed)
