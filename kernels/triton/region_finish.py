"""From the sums of regions to their losses and slopes; see kernels/core/region.h."""

import triton
import triton.language as tl

from .loss import overlap as overlap_loss
from .regions import SUMS
from .row_softmax import PARTIALS


@triton.jit
def _region(totals, weight, region, column, mask, first_class,
            HAS_WEIGHT: tl.constexpr, SKIP_ABSENT: tl.constexpr):  # fmt: skip
    """(I, P, T, class weight, whether it takes part)."""
    at = totals + region * SUMS
    overlap = tl.load(at, mask=mask, other=0.0)
    mass = tl.load(at + 1, mask=mask, other=0.0)
    truth = tl.load(at + 2, mask=mask, other=0.0)
    factor = 1.0 + 0.0 * truth
    if HAS_WEIGHT:
        factor = tl.load(weight + column, mask=mask, other=0.0).to(tl.float64)
    left = mask & (column >= first_class)
    if SKIP_ABSENT:
        left = left & (truth != 0.0)
    return overlap, mass, truth, factor, left


@triton.jit
def region_finish_kernel(
    totals, partials, num_partials, weight, loss, scale, slopes,
    o0: "fp64", o1: "fp64", o2: "fp64", o3: "fp64", o4: "fp64", o5: "fp64", o6: "fp64",
    factor: "fp64", joined_factor: "fp64", groups, classes, first_class,
    LOG: tl.constexpr, WEIGHTING: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    SKIP_ABSENT: tl.constexpr, JOINED: tl.constexpr, WEIGHTED: tl.constexpr,
    REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the regions' sums to the loss and the slopes, by one program."""
    zero = tl.full((1,), 0.0, tl.float64)
    options = (zero + o0, zero + o1, zero + o2, zero + o3, zero + o4, zero + o5, zero + o6)
    columns = tl.arange(0, BLOCK)

    # --- What is joined.
    main = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    weights = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, num_partials, BLOCK):
        mask = start + columns < num_partials
        at = partials + (start + columns) * PARTIALS
        main += tl.load(at, mask=mask, other=0.0)
        count += tl.load(at + 2, mask=mask, other=0.0)
        weights += tl.load(at + 3, mask=mask, other=0.0)
    valid = tl.sum(count, 0)
    nothing = valid == 0.0
    divisor = 1.0 + 0.0 * valid
    if REDUCTION == 2:
        divisor = tl.sum(weights, 0) if WEIGHTED else valid
    joined = tl.where(nothing, 0.0, tl.sum(main, 0) / divisor)
    left_over = tl.where(nothing, 0.0, joined_factor / divisor)
    tl.store(scale, left_over.to(scale.dtype.element_ty))
    tl.store(scale + 1, left_over.to(scale.dtype.element_ty))

    # --- Losses. What has a ratio: a region, or a group where generalized.
    total = 0.0 * valid
    left_units = 0.0 * valid
    if WEIGHTING == 0:
        regions = groups * classes
        for start in range(0, regions, BLOCK):
            region = start + columns
            mask = region < regions
            column = region % classes
            overlap, mass, truth, by_class, left = _region(
                totals, weight, region, column, mask, first_class, HAS_WEIGHT, SKIP_ABSENT
            )
            value, _, _ = overlap_loss.of_region(overlap, mass, truth, options, LOG)
            value = tl.where(left, by_class * value, 0.0)
            total += tl.sum(value, 0)
            left_units += tl.sum(left.to(tl.float64), 0)
            if REDUCTION == 0:
                to = region // classes * (classes - first_class) + column - first_class
                seen = mask & (column >= first_class)
                tl.store(loss + to, (factor * value).to(loss.dtype.element_ty), mask=seen)
    else:
        for group in range(0, groups):
            value, some, _by_overlap, _by_mass, _largest = _generalized(
                totals, weight, group, classes, first_class, options, zero, LOG, WEIGHTING,
                HAS_WEIGHT, SKIP_ABSENT, BLOCK,
            )  # fmt: skip
            total += value
            left_units += some
            if REDUCTION == 0:
                tl.store(loss + group, (factor * value).to(loss.dtype.element_ty))
    by_unit = zero + factor
    if REDUCTION == 2:
        by_unit = tl.where(left_units > 0.0, factor / left_units, zero)
    if REDUCTION != 0:
        value = tl.where(left_units > 0.0, by_unit * total, 0.0)
        if JOINED:
            value += joined_factor * joined
        tl.store(loss + tl.arange(0, 1), value.to(loss.dtype.element_ty))

    # --- Slopes.
    if WEIGHTING == 0:
        regions = groups * classes
        for start in range(0, regions, BLOCK):
            region = start + columns
            mask = region < regions
            column = region % classes
            overlap, mass, truth, by_class, left = _region(
                totals, weight, region, column, mask, first_class, HAS_WEIGHT, SKIP_ABSENT
            )
            _of_region, by_overlap, by_mass = overlap_loss.of_region(
                overlap, mass, truth, options, LOG
            )
            to = slopes + region * 2
            each = by_unit * by_class
            by_overlap = tl.where(left, each * by_overlap, 0.0)
            by_mass = tl.where(left, each * by_mass, 0.0)
            tl.store(to, by_overlap.to(slopes.dtype.element_ty), mask=mask)
            tl.store(to + 1, by_mass.to(slopes.dtype.element_ty), mask=mask)
    else:
        for group in range(0, groups):
            _value, _some, by_overlap, by_mass, largest = _generalized(
                totals, weight, group, classes, first_class, options, zero, LOG, WEIGHTING,
                HAS_WEIGHT, SKIP_ABSENT, BLOCK,
            )  # fmt: skip
            for start in range(0, classes, BLOCK):
                column = start + columns
                mask = column < classes
                region = group * classes + column
                _overlap, _mass, truth, by_class, left = _region(
                    totals, weight, region, column, mask, first_class, HAS_WEIGHT, SKIP_ABSENT
                )
                w = _finite_weight(truth, by_class, left, largest, WEIGHTING)
                none = w == 0.0  # no gradient, whatever the ratio is
                to = slopes + region * 2
                first = tl.where(none, 0.0, by_unit * w * by_overlap)
                second = tl.where(none, 0.0, by_unit * w * by_mass)
                tl.store(to, first.to(slopes.dtype.element_ty), mask=mask)
                tl.store(to + 1, second.to(slopes.dtype.element_ty), mask=mask)


@triton.jit
def _finite_weight(truth, by_class, left, largest, WEIGHTING: tl.constexpr):
    w = overlap_loss.generalized_weight(truth, WEIGHTING)
    return tl.where(left, tl.where(w > 1.7e308, largest, w) * by_class, 0.0)


@triton.jit
def _generalized(
    totals, weight, group, classes, first_class, options, zero, LOG: tl.constexpr,
    WEIGHTING: tl.constexpr, HAS_WEIGHT: tl.constexpr, SKIP_ABSENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(loss, 1 if some region is left, its derivatives by sum w I and sum w P, the largest w)."""
    columns = tl.arange(0, BLOCK)
    largest_at = tl.zeros((BLOCK,), tl.float64)
    some_at = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, classes, BLOCK):
        column = start + columns
        _overlap, _mass, truth, _by_class, left = _region(
            totals, weight, group * classes + column, column, column < classes, first_class,
            HAS_WEIGHT, SKIP_ABSENT,
        )  # fmt: skip
        w = overlap_loss.generalized_weight(truth, WEIGHTING)
        largest_at = tl.maximum(largest_at, tl.where(left & (w < 1.7e308), w, 0.0))
        some_at = tl.maximum(some_at, left.to(tl.float64))
    largest = tl.max(largest_at, 0)
    some = tl.max(some_at, 0)
    overlaps = tl.zeros((BLOCK,), tl.float64)
    masses = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, classes, BLOCK):
        column = start + columns
        overlap, mass, truth, by_class, left = _region(
            totals, weight, group * classes + column, column, column < classes, first_class,
            HAS_WEIGHT, SKIP_ABSENT,
        )  # fmt: skip
        w = _finite_weight(truth, by_class, left, largest, WEIGHTING)
        overlaps += tl.where(left, 2.0 * w * overlap, 0.0)
        masses += tl.where(left, w * (mass + truth), 0.0)
    numerator = options[4] + tl.sum(overlaps, 0)
    denominator = options[5] + tl.sum(masses, 0)
    value, by_overlap, by_mass = overlap_loss.loss_of_ratio(
        numerator, denominator, 2.0 + zero, zero, 1.0 + zero, options[6], LOG
    )
    value = tl.where(some > 0.0, value, 0.0)
    return tl.sum(value, 0), some, by_overlap, by_mass, largest
