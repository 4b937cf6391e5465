"""The region engine in Triton: sums over regions, and the gradient; see kernels/core/region.h.

A group is a sample, or the pooled batch. A program takes ROWS rows: a part of one group, or GROUPS whole
groups where they are short. It leaves sums for each class of each; a group's parts are added in their
order, so no run differs from another.
"""

import triton
import triton.language as tl

from .math import logistic, number
from .row_softmax import PARTIALS, leave_partials
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

SUMS = tl.constexpr(3)  # I, P, T


@triton.jit
def _group_rows(num_rows, group_rows, parts, inner, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """(places of the groups' sums, groups, rows, their n and l, whether they live) of a program's rows.
    Groups are given for each row, or once where there is one.
    """
    program = tl.program_id(0).to(tl.int64)
    places = program * GROUPS + tl.arange(0, GROUPS)
    EACH: tl.constexpr = ROWS // GROUPS
    row = tl.arange(0, ROWS)
    if GROUPS == 1:
        group = program // parts + tl.zeros((1,), tl.int64)
        within = (program - group * parts) * ROWS + row
    else:
        group = program * GROUPS + row // EACH
        within = row % EACH
    rows = group * group_rows + within
    live = within < group_rows
    if GROUPS > 1:
        live = live & (rows < num_rows)
    n = rows // inner
    return places, group, rows, n, rows - n * inner, live


@triton.jit
def _sum_of_groups(x, GROUPS: tl.constexpr):
    EACH: tl.constexpr = x.shape[0] // GROUPS
    if GROUPS == 1:
        x = tl.sum(x, 0)[None, :]
    elif EACH > 1:
        x = tl.sum(tl.reshape(x, (GROUPS, EACH, x.shape[1])), 1)
    return x


@triton.jit
def _store_sums(
    sums, places, num_places, classes, column, p, t, SQUARED: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """Of probabilities and truths to the places of their groups."""
    at = sums + (places[:, None] * classes + column[None, :]) * SUMS
    mask = (column < classes)[None, :]
    if GROUPS > 1:
        mask = mask & (places < num_places)[:, None]
    tl.store(at, _sum_of_groups(p * t, GROUPS).to(tl.float64), mask=mask)
    tl.store(at + 1, _sum_of_groups(_power(p, SQUARED), GROUPS).to(tl.float64), mask=mask)
    tl.store(at + 2, _sum_of_groups(_power(t, SQUARED), GROUPS).to(tl.float64), mask=mask)


@triton.jit
def _power(x, SQUARED: tl.constexpr):
    return x * x if SQUARED else x


@triton.jit
def _slopes(
    slopes, upstream, group, column, mask, classes, first_class, u_strides, dtype: tl.constexpr,
):  # fmt: skip
    """(dL/dI, dL/dP) of groups' classes, times what comes in."""
    if group.shape[0] == 1:
        mask = column < classes
    mask = mask & (column >= first_class)
    at = slopes + (group[:, None] * classes + column) * 2
    incoming = tl.load(
        upstream + group[:, None] * u_strides[0] + (column - first_class) * u_strides[1],
        mask=mask,
        other=0.0,
    )
    overlap = tl.load(at, mask=mask, other=0.0) * incoming
    mass = tl.load(at + 1, mask=mask, other=0.0) * incoming
    return tl.where(mask, overlap, 0.0).to(dtype), tl.where(mask, mass, 0.0).to(dtype)


@triton.jit
def region_rows_kernel(
    x, target, weight, loss, partials, saved, grad, grad_output, scale_of_grad,
    margins,
    n0: "fp64", n1: "fp64", n2: "fp64", n3: "fp64", n4: "fp64", n5: "fp64", n6: "fp64", n7: "fp64",
    n8: "fp64", n9: "fp64", n10: "fp64", n11: "fp64", n12: "fp64", n13: "fp64", n14: "fp64",
    n15: "fp64", target_share: "fp64", uniform_share: "fp64",
    logit_scale: "fp64", ceiling: "fp64", weight_value: "fp64",
    scale_main: "fp64", scale_by_row: "fp64", ignore_index,
    num_rows, classes, inner, saved_stride,
    x_strides, t_strides, g_strides, u_strides,
    sums, slopes, group_rows, parts, num_places, first_class,
    VALUE: tl.constexpr, GRADIENT: tl.constexpr, TARGET: tl.constexpr,
    TERMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, CHANGES_TARGET: tl.constexpr,
    HAS_CEILING: tl.constexpr, THIRD: tl.constexpr, BACKWARD: tl.constexpr,
    WITH_GRAD: tl.constexpr, WITH_SAVED: tl.constexpr, WITH_LOSSES: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, ONE_TILE: tl.constexpr, DTYPE: tl.constexpr,
    JOINED: tl.constexpr, SQUARED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Over rows of a softmax. Forward: the regions' sums, what is joined, saved numbers. BACKWARD: the
    gradient.
    """
    s = number(logit_scale, DTYPE)
    numbers = (
        number(n0, DTYPE), number(n1, DTYPE), number(n2, DTYPE), number(n3, DTYPE),
    )  # fmt: skip
    shares = (number(target_share, DTYPE), number(uniform_share, DTYPE))
    plain = (number(1.0, DTYPE), number(0.0, DTYPE))  # of targets as they are
    limit = number(ceiling, DTYPE)
    places, group, rows, n, lane, live = _group_rows(
        num_rows, group_rows, parts, inner, ROWS, GROUPS
    )
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
    if BACKWARD:
        max_, rest, changed, slope, own, smooth, sum_u = restored(
            saved, saved_stride, rows, live, label, logit, classes, s, numbers, margins,
            TARGET, TERMS, CHANGES_TARGET, THIRD, DTYPE,
        )  # fmt: skip
        tile = tl.zeros((ROWS, CLASSES), DTYPE)
    else:
        max_, rest, changed, slope, own, smooth, sum_u, tile = statistics(
            x, target, weight, at, t_at, x_c, t_c, live, label, row_weight, logit, classes, s,
            limit, shares, numbers, margins, TARGET, TERMS, HAS_WEIGHT, CHANGES_TARGET,
            HAS_CEILING, ROWS, CLASSES, ONE_TILE, DTYPE,
        )  # fmt: skip
    state = state_of(max_, rest, changed, slope, own, smooth, sum_u, row_weight, s, TERMS)
    share = tl.where(valid, 1.0 / (1.0 + rest), 0.0)
    columns = tl.arange(0, CLASSES)
    own_column = label[:, None]
    stop = classes
    if ONE_TILE:
        stop = 1

    if not BACKWARD:
        main, _by_row = VALUE(state, numbers)
        main = tl.where(valid, main, tl.where(bad, float("nan"), 0.0))
        leave_partials(partials, main, 0.0 * main, counts, tl.where(valid, row_weight, 0.0))
        if WITH_SAVED:
            save(saved, saved_stride, rows, live, max_, rest, smooth, sum_u, changed, THIRD)
        for start in range(0, stop, CLASSES):
            column = start + columns[None, :]
            mask = live[:, None] & (column < classes)
            if not ONE_TILE:
                tile = logits(x, at, x_c, column, mask, own_column, limit, DTYPE, HAS_CEILING)
            inside = mask & valid[:, None]
            p = tl.where(inside, tl.exp(tile - max_[:, None]) * share[:, None], 0.0)
            p = tl.where(bad[:, None] & mask, float("nan"), p)
            if TERMS == PROBABILITIES:
                y_at = t_at[:, None] + column * t_c
                t = units(weight, target, y_at, column, mask, plain, DTYPE, TERMS, False)
            else:
                # 1 by way of p: made of the label alone, Triton 3.6 would make it anew in the layout
                # of its sum, all rows in every thread.
                t = tl.where(inside & (column == own_column), 1.0 + 0.0 * p, 0.0).to(DTYPE)
            _store_sums(
                sums, places, num_places, classes, start + columns, p, t, SQUARED, GROUPS
            )  # fmt: skip

    if BACKWARD:
        by_main = tl.zeros((ROWS,), DTYPE)
        if JOINED:
            by_main = by_main + tl.load(scale_of_grad) * tl.load(grad_output)
        softmax, slope_of_terms, own_gradient = GRADIENT(state, numbers, by_main, by_main)
        # The sum of p_k h_k, the label's apart: h_t - sum p_k h_k is q h_t less the others' part.
        dots = tl.zeros((ROWS, CLASSES), DTYPE)
        own_h = tl.zeros((ROWS, CLASSES), DTYPE)
        for start in range(0, stop, CLASSES):
            column = start + columns[None, :]
            mask = live[:, None] & (column < classes)
            overlap, mass = _slopes(
                slopes, grad_output, group, column, mask, classes, first_class, u_strides,
                DTYPE,
            )  # fmt: skip
            tile = logits(x, at, x_c, column, mask, own_column, limit, DTYPE, HAS_CEILING)
            p = tl.exp(tile - max_[:, None]) * share[:, None]
            is_own = column == own_column
            if TERMS == PROBABILITIES:
                y_at = t_at[:, None] + column * t_c
                t = units(weight, target, y_at, column, mask, plain, DTYPE, TERMS, False)
            else:
                t = tl.where(is_own, 1.0, 0.0).to(DTYPE)
            h = overlap * t + mass * (2.0 * p if SQUARED else 1.0)
            dots += tl.where(mask & ~is_own, p * h, 0.0)
            own_h += tl.where(mask & is_own, h, 0.0)
        dot = tl.sum(dots, 1)
        h_t = tl.sum(own_h, 1)
        p_t = state[3]
        own_gradient = p_t * (state[4] * h_t - dot) + own_gradient
        if TERMS != PROBABILITIES:
            dot = dot + p_t * h_t
        for start in range(0, stop, CLASSES):
            column = start + columns[None, :]
            mask = live[:, None] & (column < classes)
            if not ONE_TILE:
                tile = logits(x, at, x_c, column, mask, own_column, limit, DTYPE, HAS_CEILING)
            overlap, mass = _slopes(
                slopes, grad_output, group, column, mask, classes, first_class, u_strides,
                DTYPE,
            )  # fmt: skip
            p = tl.exp(tile - max_[:, None]) * share[:, None]
            t = tl.zeros((ROWS, CLASSES), DTYPE)
            y_at = t_at[:, None] + column * t_c
            if TERMS == PROBABILITIES:
                t = units(weight, target, y_at, column, mask, plain, DTYPE, TERMS, False)
            h = overlap * t + mass * (2.0 * p if SQUARED else 1.0)
            g = p * (h - dot[:, None] + softmax[:, None])
            if TERMS != NONE:
                u = units(weight, target, y_at, column, mask, shares, DTYPE, TERMS, HAS_WEIGHT)
                g += slope_of_terms[:, None] * u
            g = tl.where(column == own_column, own_gradient[:, None], g)
            g = tl.where(valid[:, None], g, tl.where(bad[:, None], float("nan"), 0.0))
            to = row_places(n, lane, g_strides)[:, None] + column * g_strides[1]
            tl.store(grad + to, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def region_elements_kernel(
    x, target, side, partials, sums, slopes, grad, grad_output, scale_of_grad,
    n0: "fp64", n1: "fp64", n2: "fp64", n3: "fp64", side_value: "fp64", ignored_target: "fp64",
    ignore_index, num_rows, classes, inner, group_rows, parts, num_places, first_class,
    x_strides, t_strides, g_strides, u_strides,
    ELEMENT: tl.constexpr, SIGMOID: tl.constexpr, JOINED: tl.constexpr, INDEXED: tl.constexpr,
    HAS_SIDE: tl.constexpr, SQUARED: tl.constexpr, GROUPS: tl.constexpr, BACKWARD: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, ONE_TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Over elements: a sigmoid, or the input itself; rows are the places that share a class index."""
    numbers = (number(n0, DTYPE), number(n1, DTYPE), number(n2, DTYPE), number(n3, DTYPE))
    places, group, _rows, n, lane, live = _group_rows(
        num_rows, group_rows, parts, inner, ROWS, GROUPS
    )
    columns = tl.arange(0, CLASSES)
    x_c, t_c = x_strides[1], t_strides[1]
    at = row_places(n, lane, x_strides)[:, None]
    t_at = row_places(n, lane, t_strides)[:, None]
    joined_at = tl.zeros((ROWS, CLASSES), DTYPE)
    counted = tl.zeros((ROWS, CLASSES), tl.int32)
    stop = classes
    if ONE_TILE:
        stop = 1
    for start in range(0, stop, CLASSES):
        column = start + columns[None, :]
        mask = live[:, None] & (column < classes)
        value = tl.load(x + (at + column * x_c), mask=mask, other=0.0).to(DTYPE)
        bad = mask & (column < 0)
        if INDEXED:
            label = tl.load(target + t_at, mask=live[:, None], other=0).to(tl.int64)
            ignored = (label == ignore_index) & mask
            bad = mask & ~ignored & ((label < 0) | (label >= classes))
            t = (label == column).to(DTYPE)
        else:
            t = tl.load(target + (t_at + column * t_c), mask=mask, other=0.0).to(DTYPE)
            ignored = t == number(ignored_target, DTYPE)
        keep = mask & ~ignored
        value = tl.where(keep, value, 0.0)
        t = tl.where(keep, t, 0.0)
        p, slope = value, tl.full((ROWS, CLASSES), 1.0, DTYPE)
        if SIGMOID:
            _, small, large, _ = logistic(value)
            p = tl.where(value >= 0.0, large, small * large)
            slope = small * large * large
        one = tl.full((ROWS, CLASSES), 1.0, DTYPE)
        loss, joined_slope = tl.zeros((ROWS, CLASSES), DTYPE), tl.zeros((ROWS, CLASSES), DTYPE)
        if JOINED:
            alpha = number(side_value, DTYPE) + tl.zeros((ROWS, CLASSES), DTYPE)
            if HAS_SIDE:
                alpha = alpha * 0.0 + tl.load(side + column, mask=column < classes, other=0.0)
            loss, joined_slope = ELEMENT(value, t, alpha, one, numbers)
        if BACKWARD:
            overlap, mass = _slopes(
                slopes, grad_output, group, column, mask, classes, first_class, u_strides,
                DTYPE,
            )  # fmt: skip
            h = overlap * t + mass * (2.0 * p if SQUARED else 1.0)
            g = h * slope
            if JOINED:
                g += tl.load(scale_of_grad) * tl.load(grad_output) * joined_slope
            g = tl.where(keep, tl.where(bad, float("nan"), g), 0.0)
            to = row_places(n, lane, g_strides)[:, None] + column * g_strides[1]
            tl.store(grad + to, g.to(grad.dtype.element_ty), mask=mask)
        else:
            p = tl.where(keep, tl.where(bad, float("nan"), p), 0.0)
            joined_at += tl.where(keep, loss, 0.0)
            counted += keep.to(tl.int32)
            _store_sums(
                sums, places, num_places, classes, start + columns, p, t, SQUARED, GROUPS
            )  # fmt: skip
    if not BACKWARD:
        to = partials + tl.program_id(0) * PARTIALS
        tl.store(to, tl.sum(tl.sum(joined_at, 1), 0).to(tl.float64))
        tl.store(to + 1, 0.0)
        tl.store(to + 2, tl.sum(tl.sum(counted, 1), 0).to(tl.float64))
        tl.store(to + 3, 0.0)
