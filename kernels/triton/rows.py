"""Rows of a softmax, as every kernel over them begins: labels, statistics, what is known of a row. Names
are those of kernels/core/row_softmax.h.

Logits lie at ``n, c, l`` times their strides for row ``n * inner + l``. A kernel takes ROWS rows and a
tile of CLASSES classes at a time. A row that is one tile is read once; a longer one is read again, from
the cache where it fits, for its sums and for its gradient.
"""

import triton
import triton.language as tl

from .math import INFINITY, log1p

# What stands for u_j; the order of the kernels' enum Terms.
NONE = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
WEIGHTS = tl.constexpr(2)
PROBABILITIES = tl.constexpr(3)
# What a row leaves for backward beside its maximum and rest.
SUM_U = tl.constexpr(1)
SMOOTH = tl.constexpr(2)
CHANGED = tl.constexpr(3)


@triton.jit
def row_places(n, lane, strides):
    """Where rows begin in a tensor with these strides along n, c and l."""
    return n * strides[0] + lane * strides[2]


@triton.jit
def logits(
    x, at, x_c, column, mask, own_column, ceiling, dtype: tl.constexpr, HAS_CEILING: tl.constexpr
):  # fmt: skip
    """A tile of logits, -inf where there are none or where the call leaves them out."""
    tile = tl.load(x + (at[:, None] + column * x_c), mask=mask, other=-INFINITY).to(dtype)
    if HAS_CEILING:
        tile = tl.where((column != own_column) & (tile > ceiling), -INFINITY, tile)
    return tile


@triton.jit
def units(
    weight, probabilities, offsets, column, mask, shares, dtype: tl.constexpr,
    TERMS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """u_j of a tile."""
    if TERMS == PROBABILITIES:
        y = tl.load(probabilities + offsets, mask=mask, other=0.0).to(dtype)
        u = shares[0] * y + shares[1]
        if HAS_WEIGHT:
            u = u * tl.load(weight + column, mask=mask, other=0.0)
        u = tl.where(mask, u, 0.0)
    elif TERMS == WEIGHTS:
        u = tl.load(weight + column, mask=mask, other=0.0)
    else:
        u = tl.where(mask, 1.0, 0.0).to(dtype)
    return u


@triton.jit
def unit_of(row_weight, TERMS: tl.constexpr):
    """u_t."""
    unit = tl.zeros(row_weight.shape, row_weight.dtype)
    if TERMS == UNIFORM:
        unit = unit + 1.0
    elif TERMS == WEIGHTS:
        unit = row_weight
    return unit


@triton.jit
def labels(
    x, target, weight, weight_value, at, t_at, x_c, live, ignore_index, classes,
    dtype: tl.constexpr, TERMS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """(label or -1, its weight, its logit, whether the row counts, whether its label is none)."""
    nothing = tl.zeros(live.shape, dtype)
    if TERMS == PROBABILITIES:
        label = tl.full(live.shape, -1, tl.int64)
        counts, bad = live, label > 0
        row_weight, logit = nothing, nothing
    else:
        label = tl.load(target + t_at, mask=live, other=0).to(tl.int64)
        counts = live & (label != ignore_index)
        bad = counts & ((label < 0) | (label >= classes))
        label = tl.where(counts & ~bad, label, -1)
        row_weight = nothing + weight_value
        if HAS_WEIGHT:
            row_weight = tl.load(weight + label, mask=label >= 0, other=0.0)
        logit = tl.load(x + at + label * x_c, mask=label >= 0, other=0.0).to(dtype)
    return label, row_weight, logit, counts, bad


@triton.jit
def statistics(
    x, target, weight, at, t_at, x_c, t_c, live, label, row_weight, logit, classes, s, limit,
    shares, numbers, margins,
    TARGET: tl.constexpr, TERMS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    CHANGES_TARGET: tl.constexpr, HAS_CEILING: tl.constexpr, ROWS: tl.constexpr,
    CLASSES: tl.constexpr, ONE_TILE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """(max, rest, changed, its slope, own, smooth, sum_u, the last tile) of rows that are read."""
    columns = tl.arange(0, CLASSES)
    own_column = label[:, None]
    stop = classes
    if ONE_TILE:
        stop = 1
    # Maxima and sums are collected for each place in a tile, and over the classes at the end.
    tile = tl.zeros((ROWS, CLASSES), dtype)
    max_at = tl.full((ROWS, CLASSES), -INFINITY, dtype)
    for start in range(0, stop, CLASSES):
        column = start + columns[None, :]
        mask = live[:, None] & (column < classes)
        tile = logits(x, at, x_c, column, mask, own_column, limit, dtype, HAS_CEILING)
        others = tile
        if CHANGES_TARGET:
            others = tl.where(column == own_column, -INFINITY, tile)
        max_at = tl.maximum(max_at, others)  # NaN is passed over, as by the other engines
    max_ = tl.max(max_at, 1)
    if CHANGES_TARGET:
        max_ = tl.where(max_ == -INFINITY, 0.0, max_)
    others_at = tl.zeros((ROWS, CLASSES), dtype)
    terms_at = tl.zeros((ROWS, CLASSES), dtype)
    units_at = tl.zeros((ROWS, CLASSES), dtype)
    for start in range(0, stop, CLASSES):
        column = start + columns[None, :]
        mask = live[:, None] & (column < classes)
        if not ONE_TILE:
            tile = logits(x, at, x_c, column, mask, own_column, limit, dtype, HAS_CEILING)
        below = tile - max_[:, None]
        other = mask & (column != own_column)
        others_at += tl.where(other, tl.exp(s * below), 0.0)
        if TERMS != NONE:
            y_at = t_at[:, None] + column * t_c
            u = units(weight, target, y_at, column, mask, shares, dtype, TERMS, HAS_WEIGHT)
            # Of u = 0 too, as an eager sum has it: 0 times an infinite logit is NaN.
            terms_at += tl.where(other, u * below, 0.0)
            units_at += u
    others = tl.sum(others_at, 1)
    terms = tl.zeros((ROWS,), dtype)
    sum_u = tl.zeros((ROWS,), dtype)
    if TERMS != NONE:
        terms, sum_u = tl.sum(terms_at, 1), tl.sum(units_at, 1)
    if CHANGES_TARGET:
        max_ = tl.where(others == 0.0, -INFINITY, max_)
    if TERMS == PROBABILITIES:
        rest = others - 1.0
        changed, slope = max_, tl.zeros((ROWS,), dtype)
        own = tl.exp(s * (changed - max_))
        smooth = sum_u * log1p(rest) - s * terms
    else:
        changed, slope = TARGET(logit, label, numbers, margins)
        changed = tl.where(label >= 0, changed, logit)
        dominates = ~(max_ > changed)
        largest = tl.where(dominates, changed, max_)
        shift = tl.where(others > 0.0, s * (max_ - largest), 0.0)
        others = others * tl.exp(shift)
        own = tl.exp(s * (changed - largest))
        rest = tl.where(dominates, others + (own - 1.0), (others - 1.0) + own)
        max_ = largest
        unit = unit_of(row_weight, TERMS)
        smooth = (sum_u - unit) * (log1p(rest) - shift) - s * terms
    return max_, rest, changed, slope, own, smooth, sum_u, tile


@triton.jit
def restored(
    saved, saved_stride, rows, live, label, logit, classes, s, numbers, margins,
    TARGET: tl.constexpr, TERMS: tl.constexpr, CHANGES_TARGET: tl.constexpr, THIRD: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """The same but for the tile, of rows that forward has left numbers of."""
    max_ = tl.load(saved + rows, mask=live, other=0.0)
    rest = tl.load(saved + saved_stride + rows, mask=live, other=0.0)
    third = tl.zeros(live.shape, dtype)
    if THIRD != 0:
        third = tl.load(saved + 2 * saved_stride + rows, mask=live, other=0.0)
    changed, slope = TARGET(logit, label, numbers, margins)
    if CHANGES_TARGET:
        changed = third
    if TERMS == PROBABILITIES:
        changed = max_
    sum_u = tl.zeros(live.shape, dtype)
    if TERMS == UNIFORM:
        sum_u = sum_u + classes
    elif TERMS >= WEIGHTS:
        sum_u = third
    smooth = tl.zeros(live.shape, dtype)
    if THIRD == SMOOTH:
        smooth = third
    return max_, rest, changed, slope, tl.exp(s * (changed - max_)), smooth, sum_u


@triton.jit
def state_of(
    max_, rest, changed, slope, own, smooth, sum_u, row_weight, s, TERMS: tl.constexpr
):  # fmt: skip
    """A row as the loss's functions see it; loss/cross_entropy.py names the entries."""
    total = 1.0 + rest
    log_total = log1p(rest)
    p = own / total
    q = tl.where(changed >= max_, rest / total, 1.0 - p)
    nll = s * (max_ - changed) + log_total
    if TERMS == PROBABILITIES:
        nll = 0.0 * rest
    unit = unit_of(row_weight, TERMS)
    return nll, smooth, s * max_ + log_total, p, q, sum_u, unit, row_weight, slope


@triton.jit
def save(
    saved, saved_stride, rows, live, max_, rest, smooth, sum_u, changed, THIRD: tl.constexpr
):  # fmt: skip
    """Leaves a row's numbers for backward."""
    tl.store(saved + rows, max_, mask=live)
    tl.store(saved + saved_stride + rows, rest, mask=live)
    if THIRD == SUM_U:
        tl.store(saved + 2 * saved_stride + rows, sum_u, mask=live)
    elif THIRD == SMOOTH:
        tl.store(saved + 2 * saved_stride + rows, smooth, mask=live)
    elif THIRD == CHANGED:
        tl.store(saved + 2 * saved_stride + rows, changed, mask=live)
