"""The charts of the page: tables whose cells hold a bar and its figure, and lines against size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from . import svg, units
from .bars import SUBJECT
from .palette import css_class, in_order
from .results import CLONE, PRODUCTS, YARDSTICKS, CaseResult
from .summary import COMPILE, EAGER, Workload, dtypes, marked, name_of, unsafe, workloads

NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """A bar and its figure; `aside` is said where there is room."""

    bar: Markup
    figure: str
    aside: str = ""


@dataclass(frozen=True)
class Row:
    """One contender; `ours` is fusedloss."""

    name: str
    cells: list[Cell]
    ours: bool = False


@dataclass(frozen=True)
class Block:
    """One workload. `columns` are over pairs of a bar and a figure, `further` over text cells."""

    title: str
    size: str
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)


Figure = Callable[[CaseResult, str], float | None]


def _notes(workload: Workload) -> list[str]:
    """What was left out of a workload and why, and which of its times are not to be trusted."""
    found = []
    for dtype, case in workload.cases.items():
        found += [f"{dtype}: {name_of(name)} {why}" for name, why in case.left_out.items()]
        found += [f"{dtype}: {words}" for words in [unsafe(case)] if words]
    return found


def _blocks(
    cases: Sequence[CaseResult],
    figure: Figure,
    leave_out: Sequence[str],
    css: Callable[[str, float], str],
    aside: Callable[[CaseResult, str], str] = lambda *_: "",
    note: Callable[[Workload], list[str]] = lambda _: [],
) -> list[Block]:
    """A block for each workload, a column for each dtype of the run, all on one logarithmic axis."""
    axis = svg.axis_for(figure(case, name) for case in cases for name in case.contenders)
    columns = dtypes(cases)
    made = []
    for workload in workloads(cases):
        own = list(workload.cases.values())
        rows = []
        for name in in_order(own, leave_out):
            cells = []
            for dtype in columns:
                case = workload.cases.get(dtype)
                if case is None:
                    cells.append(Cell(svg.bar(axis, None, ""), NOT_RUN))
                    continue
                value = figure(case, name)
                mark = svg.bar(axis, value, css(name, value or 0.0))
                cells.append(Cell(mark, units.times(value), aside(case, name)))
            rows.append(Row(marked(own, name), cells, name == SUBJECT))
        if rows:
            notes = note(workload) + _notes(workload)
            made.append(Block(workload.loss, units.shape(workload.shape), columns, rows, notes))
    return made


def _milliseconds(case: CaseResult, contender: str) -> str:
    time = case.train_ms(contender)
    return "" if time is None else f"{units.significant(time)} ms"


def speed(cases: Sequence[CaseResult]) -> list[Block]:
    """How many times faster fusedloss is than each of the others."""
    return _blocks(
        cases,
        lambda case, name: None if name in (SUBJECT, *YARDSTICKS) else case.ratio(name, SUBJECT),
        (SUBJECT, *YARDSTICKS),
        lambda _, value: "slower" if value < 1 else "faster",
        _milliseconds,
    )


def _yardstick(case: CaseResult) -> str | None:
    return next((name for name in (CLONE, PRODUCTS) if name in case.contenders), None)


def clones(cases: Sequence[CaseResult]) -> list[Block]:
    """Times in units of the yardstick."""
    measured = [case for case in cases if _yardstick(case) is not None]

    def note(workload: Workload) -> list[str]:
        found, yardstick = [], ""
        for dtype, case in workload.cases.items():
            yardstick = _yardstick(case) or ""
            found.append(f"{dtype}: {_milliseconds(case, yardstick) or 'not timed'}")
        return [f"{name_of(yardstick)} in {', '.join(found)}"]

    return _blocks(
        measured,
        lambda case, name: None if name in YARDSTICKS else case.ratio(name, _yardstick(case) or ""),
        YARDSTICKS,
        lambda name, _: css_class(name),
        _milliseconds,
        note,
    )


def less(case: CaseResult, than: str) -> str:
    """How much less fusedloss takes at its peak than another: "393 MB (89 %) less than eager"."""
    ours, theirs = case.contenders.get(SUBJECT), case.contenders.get(than)
    mine = None if ours is None else ours.peak_bytes
    other = None if theirs is None else theirs.peak_bytes
    if mine is None or not other:
        return ""
    spared = other - mine
    share = f"{abs(spared) / other:.0%}".replace("%", " %")
    if abs(spared) < 0.005 * other:
        return f"as much as {name_of(than)}"
    return f"{units.size(abs(spared))} ({share}) {'less' if spared > 0 else 'more'} than {name_of(than)}"


def memory(cases: Sequence[CaseResult]) -> list[Block]:
    """Peak above the inputs and what is kept for backward; a block for each case."""
    measured = [c for c in cases if any(r.peak_bytes is not None for r in c.contenders.values())]
    axis = svg.axis_for(
        (case.peak_over_logits(name) for case in measured for name in case.contenders),
        logarithmic=False,
    )
    made = []
    for case in measured:
        rows = []
        for name in in_order([case], YARDSTICKS):
            found, value = case.contenders[name], case.peak_over_logits(name)
            cells = [
                Cell(svg.bar(axis, value, css_class(name)), units.times(value)),
                Cell(Markup(""), units.size(found.peak_bytes)),
                Cell(Markup(""), units.size(found.saved_bytes)),
            ]
            rows.append(Row(marked([case], name), cells, name == SUBJECT))
        sentences = [words for than in (EAGER, COMPILE) if (words := less(case, than))]
        notes = [f"fusedloss: {', '.join(sentences)}"] if sentences else []
        size = f"{units.shape(case.shape)} {case.dtype}, logits {units.size(case.logits_bytes)}"
        made.append(Block(case.loss, size, ["peak / logits"], rows, notes, ["peak", "saved"]))
    return made


@dataclass(frozen=True)
class Series:
    """Times of one loss against its size: the lines, who is who, and the figures."""

    title: str
    chart: Markup
    legend: list[tuple[str, str]]
    heading: list[str]
    rows: list[list[str]]
    notes: list[str]


def scaling(cases: Sequence[CaseResult]) -> list[Series]:
    """One chart for each loss, device and dtype that was run at several sizes."""
    groups: dict[tuple[str, str, str], list[CaseResult]] = {}
    for case in sorted(cases, key=lambda case: case.elements):
        if case.series == "scaling":
            groups.setdefault((case.device, case.loss, case.dtype), []).append(case)
    return [_series(f"{key[1]}, {key[2]}", group) for key, group in groups.items()]


def _series(title: str, cases: Sequence[CaseResult]) -> Series:
    names = in_order(cases)
    drawn = []
    for name in names:
        points = [
            (float(case.elements), time, f"{name_of(name)}, {units.shape(case.shape)}:"
             f" {units.significant(time)} ms")
            for case in cases
            if (time := case.train_ms(name)) is not None and svg.drawable(time)
        ]  # fmt: skip
        if points:
            drawn.append(svg.Line(css_class(name), points))
    words = "; ".join(label for line in drawn for _, _, label in line.points)
    chart = Markup("")
    if drawn:
        chart = svg.lines(
            drawn, "logits", "ms, forward + backward", f"Time against size: {title}", words
        )
    others = [name for name in names if name != SUBJECT]
    heading = ["size", f"{SUBJECT} ms", "× eager", *(name_of(name) for name in others)]
    rows = []
    for case in cases:
        found = [case.train_ms(name) for name in (SUBJECT, *others)]
        taken = [units.ABSENT if t is None else units.significant(t) for t in found]
        taken.insert(1, units.times(case.ratio(EAGER, SUBJECT)))
        rows.append([units.shape(case.shape), *taken])
    notes = [f"{units.shape(case.shape)}: {words}" for case in cases if (words := unsafe(case))]
    for case in cases:
        notes += [
            f"{units.shape(case.shape)}: {name_of(name)} {why}"
            for name, why in case.left_out.items()
        ]
    return Series(title, chart, [(name_of(n), css_class(n)) for n in names], heading, rows, notes)
