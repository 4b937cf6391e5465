"""Sums that programs leave behind, added in a fixed order."""

import triton
import triton.language as tl


@triton.jit
def add_parts_kernel(
    parts, out, num_parts, chunks, width, each,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds `each` parts of a group, [num_parts, width], into one of `chunks`."""
    program = tl.program_id(0).to(tl.int64)
    group = program // chunks
    first = (program - group * chunks) * each
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float64)
    for start in range(0, each, PARTS):
        part = first + start + tl.arange(0, PARTS)
        mask = (part < num_parts)[:, None] & (column < width)[None, :]
        at = parts + (group * num_parts + part)[:, None] * width + column[None, :]
        total += tl.load(at, mask=mask, other=0.0)
    tl.store(out + program * width + column, tl.sum(total, 0), mask=column < width)
