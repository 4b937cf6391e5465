"""Turns results into a terminal table, JSON and CSV. The chart is in chart.py, the page in page.py."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusedloss._files import replacing

from . import cuda_facts, units
from .bars import Verdict
from .results import CLONE, YARDSTICKS, CaseResult, ContenderResult


@dataclass
class Report:
    """Everything one run has to say."""

    machine: dict[str, str]
    settings: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    cuda_rows: list[cuda_facts.Row] = field(default_factory=list)
    cuda_source: str = ""
    warnings: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right; a rule under the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        padded = zip(row, widths, strict=True)
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(padded)]
        lines.append("  " + "  ".join(cells).rstrip())
        if number == 0:
            lines.append("  " + "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _error(result: ContenderResult) -> str:
    errors = result.errors
    return "-" if errors is None else f"{errors.value:.0e} / {errors.gradient:.0e}"


HEADING = [
    "contender", "fwd+bwd ms", "range", "vs eager", "clones", "forward ms", "default malloc ms",
    "saved", "peak", "peak/logits", "error value / gradient",
]  # fmt: skip


def case_table(result: CaseResult) -> str:
    """One workload: a heading line, one line for each contender, what stars mean."""
    rows = [HEADING]
    notes = []
    for name, found in result.contenders.items():
        if found.other_function:
            notes.append(f"  * another function than the case's: {found.other_function}")
        faster = None if name in YARDSTICKS else result.ratio("eager", name)
        rows.append(
            [
                name + " *" * bool(found.other_function),
                units.ms(found.train),
                units.span(found.train),
                units.times(faster),
                units.times(result.ratio(name, CLONE)),
                units.ms(found.forward),
                units.ms(found.train_default_malloc),
                units.size(found.saved_bytes),
                units.size(found.peak_bytes),
                units.times(result.peak_over_logits(name)),
                _error(found),
            ]
        )
    foreign = result.foreign_cores
    load = "" if foreign is None else f"; other processes used {foreign:.2f} cores"
    head = (
        f"{result.case}: {result.loss}, {units.shape(result.shape)} {result.dtype} on {result.device},"
        f" logits {units.size(result.logits_bytes)}{load}"
    )
    empty = [i for i in range(len(HEADING)) if i and all(row[i] == "-" for row in rows[1:])]
    shown = [[cell for i, cell in enumerate(row) if i not in empty] for row in rows]
    return "\n".join([head, grid(shown), *notes])


def header(report: Report) -> str:
    """Machine and settings, one per line."""
    pairs = {**report.machine, **{key: str(value) for key, value in report.settings.items()}}
    width = max(len(key) for key in pairs)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in pairs.items())


LONGEST_TABLE = 40
"""Rows that a terminal shows at once."""


def cuda_section(report: Report) -> str:
    """Emulator and compiler figures, with the words that nothing was timed: whole tables where they are
    short, and the worst of every figure.
    """
    lines = [f"CUDA kernels, {cuda_facts.NOT_TIMED} (source: {report.cuda_source})"]
    if not report.cuda_rows:
        return f"CUDA: {cuda_facts.NOT_TIMED}; {report.cuda_source}"
    for heading, rows in cuda_facts.tables(report.cuda_rows):
        if len(rows) <= LONGEST_TABLE:
            lines += [heading, grid(rows)]
        else:
            lines.append(f"{heading}: {len(rows) - 1} rows, in results.json and report.html")
    lines += [f"  {verdict.line()}" for verdict in cuda_facts.evaluate(report.cuda_rows)]
    return "\n".join(lines)


def closing(report: Report, *, verdicts: bool = True) -> str:
    """Bars (where `verdicts`), warnings, and what was not run."""
    lines = []
    if verdicts and report.verdicts:
        lines += ["Bars", *(f"  {verdict.line()}" for verdict in report.verdicts)]
    if report.not_run:
        lines += ["Not run", *(f"  {sentence}" for sentence in report.not_run)]
    lines += [f"WARNING: {sentence}" for sentence in report.warnings]
    return "\n".join(lines)


def write_json(report: Report, path: Path) -> None:
    """All samples and facts."""
    content = dataclasses.asdict(report)
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, default=str) + "\n")


CSV_FIELDS = [
    "case", "series", "loss", "shape", "dtype", "device", "logits_bytes", "contender", "train_ms",
    "train_fastest_ms", "train_slowest_ms", "rounds", "forward_ms", "train_default_malloc_ms",
    "speedup_vs_eager", "clones", "saved_bytes", "peak_bytes", "value_error", "gradient_error",
    "foreign_cores", "other_function",
]  # fmt: skip


def csv_row(case: CaseResult, found: ContenderResult) -> dict[str, Any]:
    """One contender of a case by the names of `CSV_FIELDS`; None was not measured."""
    train, errors = found.train, found.errors
    return {
        "case": case.case,
        "series": case.series,
        "loss": case.loss,
        "shape": "x".join(map(str, case.shape)),
        "dtype": case.dtype,
        "device": case.device,
        "logits_bytes": case.logits_bytes,
        "contender": found.contender,
        "train_ms": train and train.median,
        "train_fastest_ms": train and train.fastest,
        "train_slowest_ms": train and train.slowest,
        "rounds": train and len(train.samples_ms),
        "forward_ms": found.forward and found.forward.median,
        "train_default_malloc_ms": found.train_default_malloc and found.train_default_malloc.median,
        "speedup_vs_eager": case.ratio("eager", found.contender),
        "clones": case.ratio(found.contender, CLONE),
        "saved_bytes": found.saved_bytes,
        "peak_bytes": found.peak_bytes,
        "value_error": errors and errors.value,
        "gradient_error": errors and errors.gradient,
        "foreign_cores": case.foreign_cores,
        "other_function": found.other_function,
    }


def write_csv(report: Report, path: Path) -> None:
    """One line for each contender of each case; empty cells were not measured."""
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, CSV_FIELDS)
        writer.writeheader()
        for case in report.cases:
            writer.writerows(csv_row(case, found) for found in case.contenders.values())
