"""`report.html`: one file that shows a run, made from html/page.html.

jinja2 is there wherever torch is. Everything that a run says goes through the template's escaping;
only what svg.py draws is markup.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedloss._files import replacing
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import blocks, cuda_facts, palette, summary, units
from .bars import SUBJECT, Verdict
from .report import Report, csv_row
from .results import CaseResult, ContenderResult
from .summary import COMPILE, EAGER, name_of

DEVICES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Field:
    """A cell of a table: its text, and the number by which its column sorts."""

    text: str
    number: float | None = None


def _number(value: float | None, text: str = "") -> Field:
    """A figure; one that is not finite has its name and no place in an order."""
    if value is None:
        return Field(units.ABSENT)
    whole = f"{value:,}" if isinstance(value, int) else ""
    return Field(text or whole or units.significant(value), value if math.isfinite(value) else None)


def _glance(workload: summary.Workload) -> list[list[str]]:
    """One line a case: times of eager, compile, the best other and fusedloss; factors; memory."""
    rows = []
    for case in workload.cases.values():
        other = summary.best_other(case)

        def time(name: str, case: CaseResult = case) -> str:
            taken = case.train_ms(name)
            return units.ABSENT if taken is None else units.significant(taken)

        rows.append(
            [
                case.dtype + "\N{NO-BREAK SPACE}†" * bool(summary.unsafe(case)),
                time(EAGER),
                time(COMPILE),
                units.ABSENT if other is None else f"{time(other)} ({name_of(other)})",
                time(SUBJECT),
                units.times(case.ratio(EAGER, SUBJECT)),
                units.times(case.ratio(COMPILE, SUBJECT)),
                units.times(case.peak_over_logits(EAGER)),
                units.times(case.peak_over_logits(SUBJECT)),
            ]
        )
    return rows


def _device(cases: Sequence[CaseResult], device: str) -> dict[str, Any]:
    """What the template shows of one device."""
    own = [case for case in cases if case.device == device]
    compared = [case for case in own if case.series != "scaling"]
    large = [case for case in compared if case.series == "large"]
    small = [case for case in compared if case.series == "small"]
    return {
        "name": DEVICES.get(device, device),
        "tiles": summary.tiles(own),
        "glance": [
            (workload.loss, units.shape(workload.shape), _glance(workload))
            for workload in summary.workloads(summary.main_cases(own))
        ],
        "of_large": bool(large),
        "stars": summary.other_functions(own),
        "speed": [("Large workloads", blocks.speed(large)), ("Small calls", blocks.speed(small))],
        "clones": blocks.clones(large),
        "memory": blocks.memory(large or small),
        "scaling": blocks.scaling(own),
    }


_ORDER = ("FAIL", "PASS", "INFO", "NOT RUN")
STATUS = {"FAIL": "fails", "PASS": "holds", "INFO": "for information"}


def _verdicts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Bars by status, those that fail first; those without a figure by name only."""
    counts = Counter(verdict.status for verdict in verdicts)
    shown = [verdict for verdict in verdicts if verdict.measured is not None]
    rows = [
        (
            v.status,
            [
                Field(STATUS.get(v.status, v.status), _ORDER.index(v.status)),
                Field(v.bar),
                _number(v.measured),
                Field(f"{v.limit:g}", v.limit),
                Field(v.note),
            ],
        )
        for v in sorted(shown, key=lambda v: _ORDER.index(v.status))
    ]
    without = [v.bar for v in verdicts if v.measured is None]
    return {"counts": counts, "rows": rows, "without": without}


COLUMNS = (
    "case", "contender", "train_ms", "speedup_vs_eager", "clones", "forward_ms", "saved_bytes",
    "peak_bytes", "train_fastest_ms", "train_slowest_ms", "rounds", "train_default_malloc_ms",
    "value_error", "gradient_error", "foreign_cores", "logits_bytes", "dtype", "device", "series",
    "shape", "loss", "other_function",
)  # fmt: skip
"""The fields of the CSV, what is looked for most first."""

EXACT = ("case", "series", "loss", "shape", "dtype", "device", "contender", "other_function")
"""Columns of the full table that hold words."""

SIZES = ("logits_bytes", "saved_bytes", "peak_bytes")
FACTORS = ("speedup_vs_eager", "clones")
HEADINGS = {
    "train_ms": "fwd+bwd ms", "train_fastest_ms": "fastest ms", "train_slowest_ms": "slowest ms",
    "forward_ms": "forward ms", "train_default_malloc_ms": "default malloc ms",
    "speedup_vs_eager": "faster than eager", "clones": "clones", "logits_bytes": "logits",
    "saved_bytes": "saved", "peak_bytes": "peak", "foreign_cores": "foreign cores",
    "other_function": "computes", "value_error": "value error", "gradient_error": "gradient error",
}  # fmt: skip


def _field(name: str, value: Any) -> Field:
    if name in EXACT:
        return Field(name_of(value) if name == "contender" else value)
    text = units.size(value) if name in SIZES else units.times(value) if name in FACTORS else ""
    return _number(value, text)


def _all_rows(cases: Sequence[CaseResult]) -> dict[str, Any]:
    """Every contender of every case, columns without any figure left out, failures with the reason."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows += [csv_row(case, found) for found in case.contenders.values()]
        rows += [
            csv_row(case, ContenderResult(name, other_function=f"not timed: {why}"))
            for name, why in case.left_out.items()
        ]
    used = [name for name in COLUMNS if any(row[name] not in (None, "") for row in rows)]
    return {
        "headings": [HEADINGS.get(name, name) for name in used],
        "numbers": [place for place, name in enumerate(used) if name not in EXACT],
        "rows": [("", [_field(name, row[name]) for name in used]) for row in rows],
    }


def context(report: Report) -> dict[str, Any]:
    """All that the template is given."""
    return {
        "machine": report.machine,
        "settings": report.settings,
        "warnings": report.warnings,
        "unsafe": [case.case for case in report.cases if summary.unsafe(case)],
        "cases": len(report.cases),
        "not_measured": summary.not_measured(report),
        "devices": [_device(report.cases, name) for name in summary.devices(report.cases)],
        "contenders": summary.contenders(report.cases),
        "cuda": cuda_facts.tables(report.cuda_rows),
        "cuda_source": report.cuda_source,
        "cuda_bars": [
            f"{STATUS.get(v.status, v.status)}: {v.bar}, measured {_number(v.measured).text}"
            for v in report.verdicts
            if v.bar.startswith("CUDA ")
        ],
        "not_timed": cuda_facts.NOT_TIMED,
        "verdicts": _verdicts(report.verdicts),
        **_all_rows(report.cases),
        "colours": {
            **{palette.css_class(name): pair for name, pair in palette.PALETTE.items()},
            palette.css_class("any other"): palette.OTHER,
        },
    }


def render(report: Report) -> str:
    """The page."""
    folder = Path(__file__).resolve().parent / "html"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(context(report))


def write(report: Report, path: Path) -> None:
    """Writes the page into a file."""
    with replacing(path) as part:
        part.write_text(render(report), encoding="utf-8")
