"""Hard example mining in Triton: marks, the selection among them, gradients of what is selected; see
kernels/core/mining.h, whose marks these are.

The k-th largest mark is found by its bits, eight at a time: a launch counts what still agrees with the
digits found, the next one chooses the digit. Counts are integers, so their order has no effect.
"""

import triton
import triton.language as tl

from .math import number
from .pointwise import place
from .rows import labels, logits, row_places, state_of, statistics

BINS = tl.constexpr(256)
# A slice's state: candidates wanted, the digits found, how many are above them, how many agree with
# them, whether a search is needed, the always selected, all candidates.
WANTED = tl.constexpr(0)
FOUND = tl.constexpr(1)
ABOVE = tl.constexpr(2)
TIED = tl.constexpr(3)
SEARCH = tl.constexpr(4)
ALWAYS = tl.constexpr(5)
CANDIDATES = tl.constexpr(6)
STATE = tl.constexpr(8)


@triton.jit
def candidate(loss, BITS: tl.constexpr):
    """A loss as a mark: its bits, NaN the largest."""
    positive = tl.where(loss > 0.0, loss, 0.0)
    positive = tl.where(loss == loss, positive, float("nan"))
    nan: tl.constexpr = 0x7FC00000 if tl.int32 == BITS else 0x7FF8000000000000
    return tl.where(loss == loss, positive.to(BITS, bitcast=True), nan)


@triton.jit
def always(mark, BITS: tl.constexpr):
    """The same mark of what is selected in any case."""
    sign: tl.constexpr = -0x80000000 if tl.int32 == BITS else -0x8000000000000000
    return mark | sign


@triton.jit
def share_of(mark, cut, share):
    """Which part of a mark's loss counts. `cut` is a mark, above which candidates count whole."""
    of_candidate = tl.where(mark > cut, 1.0, tl.where(mark == cut, share, 0.0))
    return tl.where(mark >= 0, of_candidate, tl.where(mark == -1, 0.0, 1.0))


@triton.jit
def _loss_of(mark, BITS: tl.constexpr, DTYPE: tl.constexpr):
    largest: tl.constexpr = 0x7FFFFFFF if tl.int32 == BITS else 0x7FFFFFFFFFFFFFFF
    return (mark & largest).to(DTYPE, bitcast=True)


@triton.jit
def mined_rows_kernel(
    x, target, weight, loss, partials, saved, grad, grad_output, scale_of_grad,
    margins,
    n0: "fp64", n1: "fp64", n2: "fp64", n3: "fp64", n4: "fp64", n5: "fp64", n6: "fp64", n7: "fp64",
    n8: "fp64", n9: "fp64", n10: "fp64", n11: "fp64", n12: "fp64", n13: "fp64", n14: "fp64",
    n15: "fp64", target_share: "fp64", uniform_share: "fp64",
    logit_scale: "fp64", ceiling: "fp64", weight_value: "fp64",
    scale_main: "fp64", scale_by_row: "fp64", ignore_index,
    num_rows, classes, inner, saved_stride,
    x_strides, t_strides, g_strides, u_strides,
    marks, values, selection, threshold: "fp64",
    VALUE: tl.constexpr, GRADIENT: tl.constexpr, TARGET: tl.constexpr,
    TERMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, CHANGES_TARGET: tl.constexpr,
    HAS_CEILING: tl.constexpr, THIRD: tl.constexpr, BACKWARD: tl.constexpr,
    WITH_GRAD: tl.constexpr, WITH_SAVED: tl.constexpr, WITH_LOSSES: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, ONE_TILE: tl.constexpr, DTYPE: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Forward: a mark of every row, and its loss with the class weight. BACKWARD: the gradient of the
    selected rows, whose statistics are taken again; of a program without any the logits stay unread.
    """
    s = number(logit_scale, DTYPE)
    numbers = (
        number(n0, DTYPE), number(n1, DTYPE), number(n2, DTYPE), number(n3, DTYPE),
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
    wanted = live
    share = tl.zeros((ROWS,), DTYPE)
    if BACKWARD:
        mark = tl.load(marks + rows, mask=live, other=-1)
        cut = tl.load(selection)
        part = tl.load(selection + 1).to(DTYPE, bitcast=True)
        share = share_of(mark, cut, part).to(DTYPE)
        wanted = live & (share > 0.0)
    label, row_weight, logit, _counts, bad = labels(
        x, target, weight, number(weight_value, DTYPE), at, t_at, x_c, wanted, ignore_index,
        classes, DTYPE, TERMS, HAS_WEIGHT,
    )  # fmt: skip
    max_, rest, changed, slope, own, smooth, sum_u, tile = statistics(
        x, target, weight, at, t_at, x_c, t_c, wanted, label, row_weight, logit, classes, s,
        limit, shares, numbers, margins, TARGET, TERMS, HAS_WEIGHT, CHANGES_TARGET,
        HAS_CEILING, ROWS, CLASSES, ONE_TILE, DTYPE,
    )  # fmt: skip
    state = state_of(max_, rest, changed, slope, own, smooth, sum_u, row_weight, s, TERMS)
    valid = label >= 0
    if not BACKWARD:
        nll = tl.where(bad, float("nan"), state[0])
        mark = candidate(nll, BITS)
        above = ~(nll <= number(threshold, DTYPE))  # a NaN is above every threshold
        mark = tl.where(above, always(mark, BITS), mark)
        tl.store(marks + rows, tl.where(valid | bad, mark, -1), mask=live)
        if HAS_WEIGHT:
            tl.store(values + rows, tl.where(bad, float("nan"), row_weight * nll), mask=live)
    else:
        upstream = tl.load(
            grad_output + n * u_strides[0] + lane * u_strides[1], mask=wanted, other=0.0
        )
        factor = share * tl.load(scale_of_grad) * upstream * row_weight
        softmax = factor / (1.0 + rest)
        own_gradient = -factor * state[4]
        columns = tl.arange(0, CLASSES)
        own_column = label[:, None]
        stop = classes
        if ONE_TILE:
            stop = 1
        for start in range(0, stop, CLASSES):
            column = start + columns[None, :]
            mask = live[:, None] & (column < classes)
            if not ONE_TILE:
                inside = wanted[:, None] & (column < classes)
                tile = logits(x, at, x_c, column, inside, own_column, limit, DTYPE, HAS_CEILING)
            g = softmax[:, None] * tl.exp(tile - max_[:, None])
            g = tl.where(column == own_column, own_gradient[:, None], g)
            g = tl.where((wanted & valid)[:, None], g, 0.0)
            g = tl.where((wanted & bad)[:, None], float("nan"), g)
            to = row_places(n, lane, g_strides)[:, None] + column * g_strides[1]
            tl.store(grad + to, g.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def mined_elements_kernel(
    x, target, mask_of, marks, selection, grad, grad_output, scale_of_grad,
    numel, sizes, x_strides, target_strides, mask_strides, marks_strides, slice_strides,
    grad_output_strides, grad_strides,
    ELEMENT: tl.constexpr, NDIM: tl.constexpr, HAS_MASK: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The same over elements."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < numel
    wanted = live
    share = tl.zeros((BLOCK,), DTYPE)
    m_at = marks + place(i, sizes, marks_strides, NDIM)
    if BACKWARD:
        mark = tl.load(m_at, mask=live, other=-1)
        at = selection + 2 * place(i, sizes, slice_strides, NDIM)
        cut = tl.load(at, mask=live, other=0)
        part = tl.load(at + 1, mask=live, other=0).to(DTYPE, bitcast=True)
        share = share_of(mark, cut, part).to(DTYPE)
        wanted = live & (share > 0.0)
    value = tl.load(x + place(i, sizes, x_strides, NDIM), mask=wanted, other=0.0).to(DTYPE)
    t = tl.load(target + place(i, sizes, target_strides, NDIM), mask=wanted, other=0.0).to(DTYPE)
    loss, slope = ELEMENT(value, t)
    if BACKWARD:
        at = grad_output + place(i, sizes, grad_output_strides, NDIM)
        factor = share * tl.load(scale_of_grad) * tl.load(at, mask=wanted, other=0.0)
        g = tl.where(wanted & (factor != 0.0), slope * factor, 0.0)
        to = grad + place(i, sizes, grad_strides, NDIM)
        tl.store(to, g.to(grad.dtype.element_ty), mask=live)
    else:
        mark = candidate(loss, BITS)
        mark = tl.where(t > 0.5, always(mark, BITS), mark)
        if HAS_MASK:
            kept = tl.load(mask_of + place(i, sizes, mask_strides, NDIM), mask=live, other=0)
            mark = tl.where(kept.to(DTYPE) == 0.0, -1, mark)
        tl.store(m_at, mark, mask=live)


@triton.jit
def count_kernel(marks, counts, slice_size, BLOCK: tl.constexpr):
    """How many of a slice's marks are always selected, and how many are candidates."""
    one = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mark = tl.load(marks + one * slice_size + i, mask=i < slice_size, other=-1)
    tl.atomic_add(counts + one * 2, tl.sum(((mark < 0) & (mark != -1)).to(tl.int32), 0))
    tl.atomic_add(counts + one * 2 + 1, tl.sum((mark >= 0).to(tl.int32), 0))


@triton.jit
def want_kernel(
    counts, state, number_wanted, factor: "fp64", RULE: tl.constexpr
):  # fmt: skip
    """How many candidates of a slice are selected, and whether that takes a search."""
    one = tl.program_id(0)
    selected = tl.load(counts + one * 2).to(tl.int64)
    candidates = tl.load(counts + one * 2 + 1).to(tl.int64)
    wanted = candidates * 0 + number_wanted
    most = candidates.to(tl.float64)
    if RULE == 0:
        wanted = wanted - selected
    elif RULE == 2:
        product = factor * most
        share = tl.where(product < most, product, most).to(tl.int64)
        wanted = tl.maximum(share, 1)
    elif RULE == 3:
        product = factor * selected.to(tl.float64)
        share = tl.where(product < most, product, most).to(tl.int64)
        wanted = tl.where(selected > 0, share, wanted)
    wanted = tl.minimum(tl.maximum(wanted, 0), candidates)
    to = state + one * STATE
    tl.store(to + WANTED, wanted)
    tl.store(to + FOUND, wanted * 0)
    tl.store(to + ABOVE, wanted * 0)
    tl.store(to + TIED, candidates)
    tl.store(to + SEARCH, ((wanted > 0) & (wanted < candidates)).to(tl.int64))
    tl.store(to + ALWAYS, selected)
    tl.store(to + CANDIDATES, candidates)


@triton.jit
def digit_kernel(
    marks, state, bins, slice_size, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Counts the digits at SHIFT of the candidates that agree with those found."""
    one = tl.program_id(1).to(tl.int64)
    if tl.load(state + one * STATE + SEARCH) != 0:
        found = tl.load(state + one * STATE + FOUND)
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mark = tl.load(marks + one * slice_size + i, mask=i < slice_size, other=-1).to(tl.int64)
        higher = (mark >> SHIFT) >> 8  # a shift by SHIFT + 8, all 64 bits, is undefined
        agrees = (mark >= 0) & (higher == found)
        digit = ((mark >> SHIFT) & 255).to(tl.int32)
        counted = tl.histogram(digit, BINS, mask=agrees)
        tl.atomic_add(bins + one * BINS + tl.arange(0, BINS), counted)


@triton.jit
def choose_kernel(state, bins):
    """The digit of the k-th largest, and what it leaves; clears the counts."""
    at = state + tl.program_id(0).to(tl.int64) * STATE
    if tl.load(at + SEARCH) != 0:
        digits = tl.arange(0, BINS)
        own = bins + tl.program_id(0).to(tl.int64) * BINS + digits
        counted = tl.load(own).to(tl.int64)
        tl.store(own, tl.zeros((BINS,), tl.int32))
        above = tl.load(at + ABOVE)
        wanted = tl.load(at + WANTED)
        larger = above + tl.sum(counted, 0) - tl.cumsum(counted, 0)  # than those with this digit
        is_it = (larger < wanted) & (larger + counted >= wanted)
        digit = tl.sum(tl.where(is_it, digits, 0).to(tl.int64), 0)
        tl.store(at + FOUND, tl.load(at + FOUND) * BINS + digit)
        tl.store(at + ABOVE, tl.sum(tl.where(is_it, larger, 0), 0))
        tl.store(at + TIED, tl.sum(tl.where(is_it, counted, 0), 0))


@triton.jit
def selection_kernel(
    state, selection, WHOLE_TIES: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """The cut of a slice, and the share of those tied at it."""
    one = tl.program_id(0).to(tl.int64)
    at = state + one * STATE
    wanted, found = tl.load(at + WANTED), tl.load(at + FOUND)
    tied = tl.load(at + TIED)
    left = (wanted - tl.load(at + ABOVE)).to(tl.float64) / tl.maximum(tied, 1).to(tl.float64)
    if WHOLE_TIES:
        left = 1.0 + 0.0 * left
    nan: tl.constexpr = 0x7FC00000 if tl.int32 == BITS else 0x7FF8000000000000
    everything = wanted == tl.load(at + CANDIDATES)
    cut = tl.where(everything, 0, found)
    left = tl.where(everything, 1.0, left)
    cut = tl.where(wanted == 0, nan, cut)
    left = tl.where(wanted == 0, 0.0, left)
    tl.store(selection + one * 2, cut.to(BITS))
    tl.store(selection + one * 2 + 1, left.to(DTYPE).to(BITS, bitcast=True))


@triton.jit
def sum_kernel(
    marks, values, selection, loss, partials, slice_size,
    HAS_VALUES: tl.constexpr, WITH_LOSSES: tl.constexpr, BLOCK: tl.constexpr,
    BITS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What is selected of a slice: its losses, or their sum by program."""
    one = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < slice_size
    at = one * slice_size + i
    mark = tl.load(marks + at, mask=live, other=-1)
    part = tl.load(selection + one * 2 + 1).to(DTYPE, bitcast=True)
    share = share_of(mark, tl.load(selection + one * 2), part)
    value = _loss_of(mark, BITS, DTYPE)
    if HAS_VALUES:
        value = tl.load(values + at, mask=live, other=0.0)
    value = tl.where(share > 0.0, share * value, 0.0)
    if WITH_LOSSES:
        tl.store(loss + at, value, mask=live)
    else:
        tl.store(
            partials + one * tl.num_programs(0) + tl.program_id(0),
            tl.sum(value.to(tl.float64), 0),
        )


@triton.jit
def mined_finish_kernel(
    partials, num_partials, state, slices, loss, scale, epsilon: "fp64",
    WHOLE_TIES: tl.constexpr, MEAN: tl.constexpr, WITH_LOSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the programs' sums to the loss and what backward multiplies by."""
    columns = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, num_partials, BLOCK):
        mask = start + columns < num_partials
        total += tl.load(partials + start + columns, mask=mask, other=0.0)
    selected = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, slices, BLOCK):
        mask = start + columns < slices
        at = state + (start + columns) * STATE
        wanted = tl.load(at + WANTED, mask=mask, other=0)
        if WHOLE_TIES:
            search = tl.load(at + SEARCH, mask=mask, other=0)
            above = tl.load(at + ABOVE, mask=mask, other=0)
            tied = tl.load(at + TIED, mask=mask, other=0)
            wanted = tl.where(search != 0, above + tied, wanted)
        both = wanted + tl.load(at + ALWAYS, mask=mask, other=0)
        selected += both.to(tl.float64)
    many = tl.sum(selected, 0)
    divisor = 1.0 + 0.0 * many
    if MEAN:
        divisor = many + epsilon
    if WITH_LOSS:
        value = tl.where(many > 0.0, tl.sum(total, 0) / divisor, 0.0)
        tl.store(loss, value.to(loss.dtype.element_ty))
    left = 1.0 / divisor
    if MEAN:
        left = tl.where(many > 0.0, left, 0.0)
    tl.store(scale, left.to(scale.dtype.element_ty))
