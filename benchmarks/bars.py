"""The performance bars as data, and their evaluation against the figures of one run."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .machine import BUSY_CORES
from .results import CLONE, PRODUCTS, CaseResult

Measure = Literal[
    "times_faster_than",
    "in_units_of",
    "peak_over_logits",
    "peak_beyond_gradient",
    "workspace_over_logits",
    "time_over_case",
]
Status = Literal["PASS", "FAIL", "INFO", "NOT RUN"]

SIZES: tuple[Measure, ...] = ("peak_over_logits", "peak_beyond_gradient", "workspace_over_logits")
"""Measures that the load of the machine does not touch."""

UNITS = {CLONE: "clone()s of the logits", PRODUCTS: "times its matrix products alone"}

SUBJECT = "fusedloss"

TOTALS_BYTES = 4096
"""Sums of blocks, counts, the loss itself: what does not grow with the rows."""


@dataclass(frozen=True)
class Bar:
    """One bar for every case whose name matches the glob `cases`, on the CPU with warm malloc.

    - `times_faster_than`: time of contender `against` over fusedloss's, at least `limit`
    - `in_units_of`: fusedloss's time over that of yardstick `against`, at most `limit`
    - `peak_over_logits`: peak bytes above the inputs over the logits' bytes, at most `limit`
    - `peak_beyond_gradient`: peak bytes above the inputs and the gradient, per row or pixel, at
      most `limit`; totals and counts of a few kilobytes are let go
    - `workspace_over_logits`: peak bytes above the inputs and the gradients over the logits' bytes,
      at most `limit`
    - `time_over_case`: fusedloss's time over its time in another case, at most `limit`;
      that case's name is this one's after `against` = "old>new" is replaced

    An `informative` bar is reported beside its figure and never fails.
    """

    cases: str
    measure: Measure
    limit: float
    against: str = ""
    informative: bool = False

    def describe(self, case: str) -> str:
        """The bar in words, for one case."""
        if self.measure == "times_faster_than":
            return f"{case}: at least {self.limit:g}x faster than {self.against}"
        if self.measure == "in_units_of":
            return f"{case}: at most {self.limit:g} {UNITS[self.against]}"
        if self.measure == "peak_over_logits":
            return f"{case}: peak above the inputs at most {self.limit:g}x the logits"
        if self.measure == "peak_beyond_gradient":
            return f"{case}: peak above inputs and gradient at most {self.limit:g} bytes a row"
        if self.measure == "workspace_over_logits":
            return f"{case}: peak above inputs and gradients at most {self.limit:g}x the logits"
        return f"{case}: at most {self.limit:g}x the time of {other_case(case, self.against)}"


@dataclass(frozen=True)
class Verdict:
    """A bar applied to one case. `measured` is None where the run lacks a figure.

    `note` says why the figure cannot be trusted: load can make a bar pass as well as fail.
    """

    bar: str
    status: Status
    measured: float | None
    limit: float
    note: str = ""

    def line(self) -> str:
        """One line for the terminal."""
        if self.measured is None:
            return f"{self.status:8}{self.bar}: no figure in this run"
        note = f" ({self.note})" if self.note else ""
        return f"{self.status:8}{self.bar}: measured {self.measured:.4g}{note}"


def _faster(cases: str, *, eager: float, compiled: float) -> tuple[Bar, ...]:
    """Speed-ups asked for in fp32. In bf16 half of the bytes are left and all of the arithmetic."""
    limits = {"eager": eager, "compile": compiled}
    return tuple(
        Bar(f"{cases}-{dtype}", "times_faster_than", limit, against, informative=dtype == "bf16")
        for dtype in ("fp32", "bf16")
        for against, limit in limits.items()
    )


# fmt: off
BARS: tuple[Bar, ...] = (
    Bar("retinanet-*-fp32", "times_faster_than", 10.0, "eager"),
    Bar("retinanet-*-fp32", "times_faster_than", 4.0, "compile"),
    Bar("retinanet-*-bf16", "time_over_case", 1.0, "bf16>fp32"),
    Bar("retinanet-*-fp32", "in_units_of", 4.0, "clone"),
    Bar("retinanet-*-bf16", "in_units_of", 8.0, "clone"),
    Bar("retinanet-*", "peak_over_logits", 1.05),

    *(Bar("boxes-*", "times_faster_than", 2.0, against, informative=True)
      for against in ("eager", "compile")),
    Bar("boxes-*", "in_units_of", 4.0, "clone", informative=True),
    Bar("boxes-*-bf16", "time_over_case", 1.0, "bf16>fp32", informative=True),
    Bar("boxes-*", "peak_over_logits", 1.05),

    *_faster("imagenet-ce-smooth-*", eager=3.0, compiled=1.5),
    *_faster("imagenet-ce-[0-9]*", eager=2.5, compiled=1.4),
    *_faster("cityscapes-ce", eager=2.5, compiled=1.4),
    *_faster("cityscapes-softmax-focal", eager=3.0, compiled=2.0),
    Bar("cityscapes-softmax-focal-fp32", "times_faster_than", 10.0, "smp"),
    *_faster("cityscapes-dice", eager=4.0, compiled=2.5),
    *_faster("cityscapes-dice-ce", eager=4.0, compiled=3.0),
    *(Bar("nnunet3d-dice-ce-fp32", "times_faster_than", limit, against)
      for against, limit in (("eager", 4.0), ("compile", 3.0), ("monai", 4.0))),
    *_faster("cityscapes-ohem", eager=4.0, compiled=2.0),
    Bar("cityscapes-ohem-*", "time_over_case", 1.4, "ohem>ce"),
    # Its eager form takes torch's topk, no sort: nothing like OHEM's factor is there to gain.
    Bar("cityscapes-topk-fp32", "times_faster_than", 4.0, "eager", informative=True),
    Bar("cityscapes-topk-fp32", "times_faster_than", 2.0, "compile"),
    *(Bar("text-*", "times_faster_than", 8.0, against) for against in ("eager", "compile")),
    Bar("text-*", "in_units_of", 4.0, "clone", informative=True),  # 13 MB stay in the cache
    Bar("cityscapes-dice-*fp32", "times_faster_than", 4.0, "smp"),
    Bar("cityscapes-dice-fp32", "times_faster_than", 4.0, "monai"),
    Bar("cityscapes-dice-ce-*", "time_over_case", 1.25, "dice-ce>dice"),
    Bar("nnunet3d-*", "in_units_of", 4.0, "clone"),
    *(bar for cases in ("imagenet-*", "cityscapes-*") for bar in (
        Bar(f"{cases}-bf16", "time_over_case", 1.0, "bf16>fp32"),
        Bar(f"{cases}-fp32", "in_units_of", 4.0, "clone"),
        Bar(f"{cases}-bf16", "in_units_of", 8.0, "clone"),
    )),
    *(Bar(f"{cases}-*", "peak_beyond_gradient", 8.0) for cases in (
        "imagenet", "cityscapes-ce", "cityscapes-softmax-focal", "cityscapes-dice", "nnunet3d")),
    *(Bar(f"{cases}-*", "peak_beyond_gradient", 12.0)  # marks, and the selection's own lists
      for cases in ("cityscapes-ohem", "cityscapes-topk", "text")),

    *_faster("faces-*", eager=10.0, compiled=5.0),
    *(Bar("faces-*-fp32", "times_faster_than", 3.0, form) for form in ("insightface", "pml")),
    Bar("faces-*-bf16", "time_over_case", 1.0, "bf16>fp32"),
    Bar("faces-*-fp32", "in_units_of", 4.0, "clone"),
    Bar("faces-*-bf16", "in_units_of", 8.0, "clone"),
    Bar("faces-*", "peak_over_logits", 1.05),

    *(Bar("linear-*", "times_faster_than", 1.0, against) for against in ("eager", "compile")),
    Bar("linear-*", "in_units_of", 1.3, "products"),
    Bar("linear-*", "workspace_over_logits", 0.3),  # 15 % of the logits and their gradient

    Bar("small-*", "times_faster_than", 1.0, "eager"),
)
# fmt: on


def other_case(case: str, replacement: str) -> str:
    """`case` with "old>new" applied: retinanet-index-bf16, bf16>fp32 -> retinanet-index-fp32."""
    old, new = replacement.split(">")
    return case.replace(old, new)


def _note(bar: Bar, result: CaseResult, others: dict[str, CaseResult]) -> str:
    foreign = result.foreign_cores or 0.0
    if bar.measure == "time_over_case":
        other = others.get(other_case(result.case, bar.against))
        foreign = max(foreign, (other.foreign_cores or 0.0) if other else 0.0)
    if bar.measure in SIZES or foreign <= BUSY_CORES:
        return ""
    return f"UNSAFE, other processes used {foreign:.2f} cores"


def _figure(bar: Bar, result: CaseResult, others: dict[str, CaseResult]) -> float | None:
    if bar.measure == "times_faster_than":
        return result.ratio(bar.against, SUBJECT)
    if bar.measure == "in_units_of":
        return result.ratio(SUBJECT, bar.against)
    if bar.measure == "peak_over_logits":
        return result.peak_over_logits(SUBJECT)
    if bar.measure == "peak_beyond_gradient":
        beyond = result.beyond_gradient(SUBJECT, TOTALS_BYTES)
        return None if beyond is None or not result.rows else beyond / result.rows
    if bar.measure == "workspace_over_logits":
        beyond = result.beyond_gradient(SUBJECT)
        return None if beyond is None or not result.logits_bytes else beyond / result.logits_bytes
    other = others.get(other_case(result.case, bar.against))
    mine = result.train_ms(SUBJECT)
    theirs = None if other is None else other.train_ms(SUBJECT)
    return None if mine is None or not theirs else mine / theirs


def evaluate(results: Sequence[CaseResult], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Each bar on each CPU case it covers, and one NOT RUN for a bar without any case."""
    by_name = {result.case: result for result in results if result.device == "cpu"}
    verdicts = []
    for bar in bars:
        covered = [r for name, r in by_name.items() if fnmatch.fnmatch(name, bar.cases)]
        if not covered:
            verdicts.append(Verdict(bar.describe(bar.cases), "NOT RUN", None, bar.limit))
        for result in covered:
            figure = _figure(bar, result, by_name)
            at_least = bar.measure == "times_faster_than"
            status: Status = "NOT RUN"
            if figure is not None:
                good = figure >= bar.limit if at_least else figure <= bar.limit
                status = "INFO" if bar.informative else "PASS" if good else "FAIL"
            words, note = bar.describe(result.case), _note(bar, result, by_name)
            verdicts.append(Verdict(words, status, figure, bar.limit, note))
    return verdicts


def failed(verdicts: Sequence[Verdict]) -> bool:
    """Whether a bar failed, or nothing at all was checked, which proves nothing."""
    statuses = {verdict.status for verdict in verdicts}
    return "FAIL" in statuses or "PASS" not in statuses
