"""What is known of the CUDA kernels where no GPU can time them: counts and compiler figures.

The figures come from outside this package, since the emulator is part of the tests: a JSON file
(`--cuda-facts FILE`) that `tests/cuda_report.py` writes. It holds a list of dicts; a dict with
`bytes_moved` is one emulated pass, one with `registers` is one compiled kernel, and unknown keys are
ignored:

    {"kernel": "focal", "workload": "1024x80 index fp32", "pass": "forward", "launches": 2,
     "bytes_moved": 655764, "bytes_minimum": 655360, "full_sectors": 1.0}
    {"kernel": "focal_fwd<float>", "arch": "sm_90", "registers": 40, "local_bytes": 0,
     "shared_bytes": 128, "occupancy": 1.0}

`bytes_minimum` is the least that the gradient schedule can move, `full_sectors` the share of
32-byte sectors used whole, `occupancy` (of float64 kernels: `occupancy_of_double`) the share of an
SM's warps. Nothing here is a time.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bars import Verdict

Row = Mapping[str, Any]

NOT_TIMED = "not timed here"


@dataclass(frozen=True)
class FactBar:
    """A limit on one figure of every row that has it: at most, or at least with `least`. With `kernel`,
    of the rows of that kernel.
    """

    figure: str
    limit: float
    least: bool = False
    kernel: str = ""


FACT_BARS: tuple[FactBar, ...] = (
    FactBar("traffic", 1.02),
    FactBar("full_sectors", 0.99, least=True),  # a block's 16 bytes of totals fill half of one
    FactBar("launches", 2, kernel="pointwise"),
    FactBar("launches", 2, kernel="row softmax"),
    FactBar("launches", 3, kernel="regions"),
    FactBar("launches", 4, kernel="mining"),
    FactBar("local_bytes", 8),  # what is spilled; an array of four halves is no spill
    FactBar("occupancy", 0.5, least=True),
    FactBar("occupancy_of_double", 0.25, least=True),
)


SHARES = ("traffic", "full_sectors", "occupancy", "occupancy_of_double")
"""Figures that are quotients; the others count something."""


def load(path: Path | None = None) -> tuple[list[Row], str]:
    """The rows and where they come from; no rows and the reason where there are none.

    Raises ValueError for a file that does not hold a list of objects.
    """
    if path is not None:
        rows = json.loads(path.read_text())
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} must hold a JSON list of objects")
        return rows, str(path)
    return [], "no emulator counts or compiler figures were given to this run"


def figure(row: Row, name: str) -> float | None:
    """One figure of a row; `traffic` is bytes moved over the minimum."""
    if name == "traffic":
        moved, least = row.get("bytes_moved"), row.get("bytes_minimum")
        return float(moved) / float(least) if moved is not None and least else None
    value = row.get(name)
    return None if value is None else float(value)


def title(row: Row) -> str:
    """Kernel, workload or architecture, and pass, as far as given."""
    parts = (row.get(key) for key in ("kernel", "workload", "arch", "pass"))
    return " ".join(str(part) for part in parts if part)


def evaluate(rows: Sequence[Row], bars: Sequence[FactBar] = FACT_BARS) -> list[Verdict]:
    """Each limit over all rows that have the figure: the worst of them, by name."""
    verdicts = []
    for bar in bars:
        found = [
            (value, title(row))
            for row in rows
            if bar.kernel in ("", row.get("kernel"))
            and (value := figure(row, bar.figure)) is not None
        ]
        if not found:
            continue
        worst, where = min(found) if bar.least else max(found)
        good = operator.ge(worst, bar.limit) if bar.least else operator.le(worst, bar.limit)
        named = f"CUDA {bar.figure}{' of ' + bar.kernel if bar.kernel else ''}"
        words = f"{named} {'at least' if bar.least else 'at most'} {bar.limit:g}"
        label = f"{words} in all of {len(found)}, worst in {where}"
        verdicts.append(Verdict(label, "PASS" if good else "FAIL", worst, bar.limit))
    return verdicts


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    cells = [title(row)]
    for name in columns:
        value = figure(row, name)
        share = name in SHARES
        cells.append("-" if value is None else f"{value:.3f}" if share else f"{value:,.0f}")
    return cells


def tables(rows: Sequence[Row]) -> list[tuple[str, list[list[str]]]]:
    """Two tables, first row the heading: traffic from the emulator, figures from the compiler."""
    traffic = ("launches", "bytes_moved", "bytes_minimum", "traffic", "full_sectors")
    compiled = ("registers", "local_bytes", "shared_bytes", "occupancy", "occupancy_of_double")
    found = []
    for heading, key, columns in (
        ("emulated: launches, bytes moved over the minimum", "bytes_moved", traffic),
        ("compiled", "registers", compiled),
    ):
        picked = [row for row in rows if key in row]
        if picked:
            words = ["kernel", *(name.replace("_", " ") for name in columns), "time"]
            body = [[*_cells(row, columns), NOT_TIMED] for row in picked]
            found.append((heading, [words, *body]))
    return found
