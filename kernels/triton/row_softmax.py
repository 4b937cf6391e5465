"""The row-softmax engine in Triton: losses and gradients of rows. What a row's numbers are: rows.py."""

import triton
import triton.language as tl

from .math import INFINITY, number
from .rows import (
    NONE,
    PROBABILITIES,
    labels,
    logits,
    restored,
    row_places,
    save,
    state_of,
    statistics,
    units,
)

# What a program leaves for the finish: the loss's two parts, rows that count, their weights.
PARTIALS = tl.constexpr(4)


@triton.jit
def leave_partials(partials, main, by_row, counts, weights):
    """A program's sums."""
    to = partials + tl.program_id(0) * PARTIALS
    tl.store(to, tl.sum(main, 0).to(tl.float64))
    tl.store(to + 1, tl.sum(by_row, 0).to(tl.float64))
    tl.store(to + 2, tl.sum(counts.to(tl.int32), 0).to(tl.float64))
    tl.store(to + 3, tl.sum(weights, 0).to(tl.float64))


@triton.jit
def row_kernel(
    x, target, weight, loss, partials, saved, grad, grad_output, scale_of_grad,
    margins,
    n0: "fp64", n1: "fp64", n2: "fp64", n3: "fp64", n4: "fp64", n5: "fp64", n6: "fp64", n7: "fp64",
    n8: "fp64", n9: "fp64", n10: "fp64", n11: "fp64", n12: "fp64", n13: "fp64", n14: "fp64",
    n15: "fp64", target_share: "fp64", uniform_share: "fp64",
    logit_scale: "fp64", ceiling: "fp64", weight_value: "fp64",
    scale_main: "fp64", scale_by_row: "fp64", ignore_index,
    num_rows, classes, inner, saved_stride,
    x_strides, t_strides, g_strides, u_strides,
    VALUE: tl.constexpr, GRADIENT: tl.constexpr, TARGET: tl.constexpr,
    TERMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, CHANGES_TARGET: tl.constexpr,
    HAS_CEILING: tl.constexpr, THIRD: tl.constexpr, BACKWARD: tl.constexpr,
    WITH_GRAD: tl.constexpr, WITH_SAVED: tl.constexpr, WITH_LOSSES: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, ONE_TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Forward: losses, sums, saved numbers, and the gradient where wanted. BACKWARD: the gradient from
    the saved numbers.
    """
    s = number(logit_scale, DTYPE)
    numbers = (
        number(n0, DTYPE), number(n1, DTYPE), number(n2, DTYPE), number(n3, DTYPE),
        number(n4, DTYPE), number(n5, DTYPE), number(n6, DTYPE), number(n7, DTYPE),
        number(n8, DTYPE), number(n9, DTYPE), number(n10, DTYPE), number(n11, DTYPE),
        number(n12, DTYPE), number(n13, DTYPE), number(n14, DTYPE), number(n15, DTYPE),
    )  # fmt: skip
    shares = (number(target_share, DTYPE), number(uniform_share, DTYPE))
    limit = number(ceiling, DTYPE)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < num_rows
    n = rows // inner
    lane = rows - n * inner
    x_c, t_c = x_strides[1], t_strides[1]
    at = row_places(n, lane, x_strides)
    t_at = row_places(n, lane, t_strides)
    label, row_weight, logit, counts, bad = labels(
        x, target, weight, number(weight_value, DTYPE), at, t_at, x_c, live, ignore_index, classes,
        DTYPE, TERMS, HAS_WEIGHT,
    )  # fmt: skip
    valid = label >= 0
    if TERMS == PROBABILITIES:
        valid = live

    # --- Statistics and the loss.
    if BACKWARD:
        max_, rest, changed, slope, own, smooth, sum_u = restored(
            saved, saved_stride, rows, live, label, logit, classes, s, numbers, margins,
            TARGET, TERMS, CHANGES_TARGET, THIRD, DTYPE,
        )  # fmt: skip
    else:
        max_, rest, changed, slope, own, smooth, sum_u, tile = statistics(
            x, target, weight, at, t_at, x_c, t_c, live, label, row_weight, logit, classes, s,
            limit, shares, numbers, margins, TARGET, TERMS, HAS_WEIGHT, CHANGES_TARGET,
            HAS_CEILING, ROWS, CLASSES, ONE_TILE, DTYPE,
        )  # fmt: skip
    state = state_of(max_, rest, changed, slope, own, smooth, sum_u, row_weight, s, TERMS)
    if not BACKWARD:
        main, by_row = VALUE(state, numbers)
        main = tl.where(valid, main, tl.where(bad, float("nan"), 0.0))
        by_row = tl.where(valid, by_row, 0.0)
        if WITH_LOSSES:
            tl.store(loss + rows, main + by_row, mask=live)
        leave_partials(partials, main, by_row, counts, tl.where(valid, row_weight, 0.0))
        if WITH_SAVED:
            save(saved, saved_stride, rows, live, max_, rest, smooth, sum_u, changed, THIRD)

    # --- The gradient.
    if WITH_GRAD or BACKWARD:
        by_main = number(scale_main, DTYPE) + tl.zeros((ROWS,), DTYPE)
        by_rows = number(scale_by_row, DTYPE) + tl.zeros((ROWS,), DTYPE)
        if BACKWARD:
            upstream = tl.load(
                grad_output + n * u_strides[0] + lane * u_strides[1], mask=live, other=0.0
            )
            by_main = upstream * tl.load(scale_of_grad)
            by_rows = upstream * tl.load(scale_of_grad + 1)
        softmax, slope_of_terms, own_gradient = GRADIENT(state, numbers, by_main, by_rows)
        softmax = tl.where(bad, float("nan"), softmax / (1.0 + rest))
        columns = tl.arange(0, CLASSES)
        own_column = label[:, None]
        stop = classes
        if ONE_TILE:
            stop = 1
        for start in range(0, stop, CLASSES):
            column = start + columns[None, :]
            mask = live[:, None] & (column < classes)
            if BACKWARD or not ONE_TILE:
                tile = logits(x, at, x_c, column, mask, own_column, limit, DTYPE, HAS_CEILING)
            below = tile - max_[:, None]
            if CHANGES_TARGET:  # nothing but the target: e^(-inf - -inf)
                below = tl.where(tile == -INFINITY, -INFINITY, below)
            g = softmax[:, None] * tl.exp(s * below)
            if TERMS != NONE:
                y_at = t_at[:, None] + column * t_c
                u = units(weight, target, y_at, column, mask, shares, DTYPE, TERMS, HAS_WEIGHT)
                g += slope_of_terms[:, None] * u
            g = tl.where(column == own_column, own_gradient[:, None], g)
            g = tl.where((valid | bad)[:, None], g, 0.0)
            to = row_places(n, lane, g_strides)[:, None] + column * g_strides[1]
            tl.store(grad + to, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def finish_kernel(
    partials, num_partials, loss, scale, normalizer, normalizer_value: "fp64",
    expected: "fp64",
    MEAN: tl.constexpr, WITH_LOSS: tl.constexpr, WEIGHTED: tl.constexpr,
    HAS_NORMALIZER: tl.constexpr, NORMALIZER_VALUE: tl.constexpr, ZERO: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """From the programs' sums, added in their order, to the loss and what backward multiplies by."""
    columns = tl.arange(0, BLOCK)
    main = tl.zeros((BLOCK,), tl.float64)
    by_row = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    weight = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, num_partials, BLOCK):
        mask = start + columns < num_partials
        at = partials + (start + columns) * PARTIALS
        main += tl.load(at, mask=mask, other=0.0)
        by_row += tl.load(at + 1, mask=mask, other=0.0)
        count += tl.load(at + 2, mask=mask, other=0.0)
        weight += tl.load(at + 3, mask=mask, other=0.0)
    total, total_by_row = tl.sum(main, 0), tl.sum(by_row, 0)
    rows, weights = tl.sum(count, 0), tl.sum(weight, 0)
    divisor, divisor_by_row = 1.0 + 0.0 * rows, 1.0 + 0.0 * rows
    nothing = rows < 0.0
    if MEAN:
        divisor, divisor_by_row = rows, rows
        if WEIGHTED:
            divisor = weights
        if HAS_NORMALIZER:
            divisor = tl.load(normalizer).to(tl.float64)
        elif NORMALIZER_VALUE:
            divisor = 0.0 * rows + normalizer_value
        nothing = rows == 0.0
    if WITH_LOSS:
        extra = tl.where(total_by_row == 0.0, 0.0, total_by_row / divisor_by_row)
        value = total / divisor + extra
        if ZERO:
            value = tl.where(nothing, 0.0, value)
        tl.store(loss, value.to(loss.dtype.element_ty))
    carried = 0.0 * rows + expected
    left = tl.where(carried == divisor, 1.0, carried / divisor)
    left_by_row = tl.where(carried == divisor_by_row, 1.0, carried / divisor_by_row)
    tl.store(scale, tl.where(nothing, 0.0, left).to(scale.dtype.element_ty))
    tl.store(scale + 1, tl.where(nothing, 0.0, left_by_row).to(scale.dtype.element_ty))
