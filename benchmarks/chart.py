"""The chart of a run: speed-up over eager, time in clones, memory, and time against size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusedloss._files import replacing

from .machine import BUSY_CORES
from .palette import colour, in_order
from .report import Report
from .results import CLONE, YARDSTICKS, CaseResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figure = Callable[[CaseResult, str], float | None]


def _bars(
    axes: Axes,
    cases: Sequence[CaseResult],
    figure: Figure,
    *,
    title: str,
    line: str,
    leave_out: Sequence[str],
    logarithmic: bool = True,
) -> None:
    """Horizontal bars, one group a case, one bar a contender, the figure written at its end.

    On a logarithmic axis a bar starts at 1, the value it is compared with.
    """
    from matplotlib.ticker import LogLocator

    most = max(len(in_order([case], leave_out)) for case in cases)
    height = 0.8 / max(1, most)
    largest = smallest = 1.0
    for row, case in enumerate(cases):
        names = in_order([case], leave_out)
        for place, name in enumerate(names):
            value = figure(case, name)
            if value is None or value <= 0:
                continue
            largest, smallest = max(largest, value), min(smallest, value)
            y = row + (place - (len(names) - 1) / 2) * height
            star = " *" if case.contenders[name].other_function else ""
            left = 1.0 if logarithmic else 0.0
            axes.barh(y, value - left, height * 0.92, left, color=colour(name))
            text = f"{value:,.0f}x" if value >= 1000 else f"{value:.3g}x"
            axes.annotate(
                text + star, (max(value, left), y), (3, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
    axes.axvline(1.0, color="#333333", linewidth=0.8, linestyle="--")
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(smallest * 0.7, largest * 1.8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(0.0, largest * 1.12)
    axes.set_yticks(range(len(cases)), [case.case for case in cases])
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(line, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _scaling(axes: Axes, cases: Sequence[CaseResult]) -> None:
    """Time of forward + backward against the number of logits, both axes logarithmic."""
    ordered = sorted(cases, key=lambda case: case.elements)
    for name in in_order(cases):
        points = [
            (case.elements, time) for case in ordered if (time := case.train_ms(name)) is not None
        ]
        style = "--" if name in YARDSTICKS else "-"
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, style, marker="o", markersize=4, color=colour(name), label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"Time against size: {ordered[0].loss}, fp32", loc="left", fontsize=11)
    axes.set_xlabel("logits", fontsize=9)
    axes.set_ylabel("forward + backward, ms", fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _panels(cases: Sequence[CaseResult]) -> list[tuple[int, Callable[[Axes], None]]]:
    """Panels that have something to show, each with the number of its rows."""
    large = [case for case in cases if case.series == "large"] or list(cases)
    cloned = [case for case in large if CLONE in case.contenders]
    compared = [case for case in cases if case.series != "scaling"] or list(cases)
    scaling: dict[str, list[CaseResult]] = {}
    for case in cases:
        if case.series == "scaling":
            scaling.setdefault(case.loss, []).append(case)

    def speed(axes: Axes) -> None:
        _bars(
            axes, compared, lambda case, name: case.ratio("eager", name),
            title="Speed-up over eager, forward + backward",
            line="times faster than eager (right of the dashed line is faster)",
            leave_out=(*YARDSTICKS, "eager"),
        )  # fmt: skip

    def clones(axes: Axes) -> None:
        _bars(
            axes, cloned, lambda case, name: case.ratio(name, CLONE),
            title="Time in clones of the logits",
            line="time over logits.clone() (less is better)",
            leave_out=YARDSTICKS,
        )  # fmt: skip

    def memory(axes: Axes) -> None:
        _bars(
            axes, large, lambda case, name: case.peak_over_logits(name),
            title="Peak memory above the inputs, gradient included",
            line="bytes over those of the logits (less is better)",
            leave_out=YARDSTICKS, logarithmic=False,
        )  # fmt: skip

    panels: list[tuple[int, Callable[[Axes], None]]] = [
        (len(compared), speed),
        *([(len(cloned), clones)] if cloned else []),
        (len(large), memory),
    ]
    panels += [
        (4, functools.partial(_scaling, cases=series))
        for series in scaling.values()
        if len(series) > 1
    ]
    return panels


def draw(report: Report, path: Path) -> bool:
    """Writes the PNG; False where matplotlib is not installed or nothing was measured."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
        from matplotlib.patches import Patch
    except ImportError:
        return False
    if not report.cases:
        return False
    panels = _panels(report.cases)
    columns = 3  # bars in the first line, the series of sizes below
    lines = -(-len(panels) // columns)
    strips = [panels[columns * i : columns * (i + 1)] for i in range(lines)]
    heights = [max(3.5, *(0.8 * rows for rows, _ in strip)) for strip in strips]
    canvas = Canvas(figsize=(8 * columns, sum(heights) + 1.4), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.add_gridspec(lines, columns, height_ratios=heights)
    for number, (_, paint) in enumerate(panels):
        axes = canvas.add_subplot(grid[number // columns, number % columns])
        paint(axes)
    names = in_order(report.cases, YARDSTICKS)
    handles = [Patch(color=colour(name), label=name) for name in names]
    canvas.legend(handles=handles, loc="outside upper right", ncols=len(names), frameon=False)
    stars = {
        f"* {name} computes {found.other_function}"
        for case in report.cases
        for name, found in case.contenders.items()
        if found.other_function
    }
    canvas.supxlabel("\n".join(sorted(stars)), fontsize=9, x=0.01, ha="left")
    machine = report.machine
    busy = any((case.foreign_cores or 0.0) > BUSY_CORES for case in report.cases)
    unsafe = "\nUNSAFE: other processes were running" if busy else ""
    canvas.suptitle(
        f"fusedloss {machine.get('fusedloss', '')} on {machine.get('processor', '')},"
        f" {machine.get('threads', '?')} threads, torch {machine.get('torch', '')},"
        f" {machine.get('date', '')}{unsafe}",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    with replacing(path) as part:
        canvas.savefig(part, dpi=120)
    return True
