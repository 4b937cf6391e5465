"""Sizes of launches, as data: what a program takes of rows and classes, its warps."""

from __future__ import annotations

from dataclasses import dataclass

import triton

# Elements of a tile. 2048 numbers over 128 threads are 16 registers each, of which
# a kernel holds three or four at once.
TILE = 2048
LONGEST_TILE = 2048  # classes of one tile; longer rows take several
WARPS = 4
MINED_WARPS = 8  # of the gradient of mined rows, which spills with fewer
REGION_WARPS = 8  # of the region kernels, for the same reason
INTERPRETED_TILE = 1 << 16  # the interpreter pays for programs, not for elements


@dataclass(frozen=True)
class Launch:
    """Of one kernel over rows."""

    rows: int
    classes: int
    one_tile: bool
    warps: int


ELEMENTS = 512  # of a program of the pointwise engine: 16 bytes of float32 a thread
ELEMENT_WARPS = 4


def interpreted() -> bool:
    """Whether the kernels run on the CPU under TRITON_INTERPRET=1."""
    return bool(triton.knobs.runtime.interpret)


def elements_block(numel: int) -> int:
    """Elements of a program."""
    largest = INTERPRETED_TILE if interpreted() else ELEMENTS
    return min(largest, int(triton.next_power_of_2(max(1, numel))))


def rows_launch(num_rows: int, classes: int) -> Launch:
    """For rows of so many classes."""
    tile = INTERPRETED_TILE if interpreted() else TILE
    width = min(triton.next_power_of_2(classes), LONGEST_TILE)
    rows = max(1, min(tile // width, triton.next_power_of_2(num_rows)))
    return Launch(rows, width, width >= classes, WARPS)
