"""Inline SVG: bars that stretch with their cell, and lines on logarithmic axes.

Positions along a bar are percentages, so that nothing is scaled and all words stay in the page's own
text; the colours are the page's (classes of html/style.css).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`; on a logarithmic one, bars start at 1, else at 0."""

    low: float
    high: float
    logarithmic: bool = True

    @property
    def start(self) -> float:
        """Where bars begin."""
        return 1.0 if self.logarithmic else 0.0

    def place(self, value: float) -> float:
        """The share of the axis to the left of `value`, held within it."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Powers of ten, or at most six round numbers."""
        if self.logarithmic:
            return decades(self.low, self.high)
        step = next(
            unit * 10.0**power
            for power, unit in itertools.product(range(-3, 12), (1, 2, 5))
            if self.high / (unit * 10.0**power) <= 6
        )
        return [step * number for number in range(int(self.high / step) + 1)]


def drawable(value: float | None) -> bool:
    """Whether a bar or a point can show the value."""
    return value is not None and math.isfinite(value) and value > 0


def decades(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1)]


def axis_for(values: Iterable[float | None], logarithmic: bool = True) -> Axis:
    """The axis that holds all values that can be drawn, with a little room."""
    shown = [v for v in values if v is not None and drawable(v)]
    if not logarithmic:
        return Axis(0.0, 1.02 * max(shown, default=1.0), logarithmic=False)
    low, high = min([1.0, *shown]), max([2.0, *shown])
    return Axis(low / 1.02 if low < 1 else 1.0, high * 1.05)


def bar(axis: Axis, value: float | None, css: str) -> Markup:
    """One bar on faint lines at the ticks. Its figure is written beside it, so readers skip it."""
    lines = Markup("").join(
        Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="0" y2="100%"></line>').format(
            "start" if tick == axis.start else "tick", *(2 * [100 * axis.place(tick)])
        )
        for tick in axis.ticks()
    )
    mark = Markup("")
    if value is not None and drawable(value):
        ends = sorted((axis.place(axis.start), axis.place(value)))
        mark = Markup(
            '<rect class="{}" x="{:.2f}%" width="{:.2f}%" y="20%" height="60%" rx="1.5"></rect>'
        ).format(css, 100 * ends[0], max(0.4, 100 * (ends[1] - ends[0])))
    return Markup('<svg class="bar" aria-hidden="true" focusable="false">{}{}</svg>').format(
        lines, mark
    )


@dataclass(frozen=True)
class Line:
    """Points of one contender, both coordinates positive, and a name for each."""

    css: str
    points: Sequence[tuple[float, float, str]]


WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 40


def _count(value: float) -> str:
    """10k, 1M: the name of a power of ten."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def lines(series: Sequence[Line], x_name: str, y_name: str, title: str, words: str) -> Markup:
    """Lines with both axes logarithmic; `title` and `words` are what a screen reader says."""
    points = [point for line in series for point in line.points]
    x = _around([point[0] for point in points])
    y = _around([point[1] for point in points])
    parts = [_grid(x, y, x_name, y_name)]
    for line in series:
        spots = [
            (LEFT + x.place(a) * (WIDTH - LEFT - RIGHT),
             HEIGHT - BOTTOM - y.place(b) * (HEIGHT - TOP - BOTTOM), name)
            for a, b, name in line.points
        ]  # fmt: skip
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in spots)
        parts.append(Markup('<polyline class="{}" points="{}"></polyline>').format(line.css, path))
        parts += [
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
            .format(line.css, a, b, name)
            for a, b, name in spots
        ]  # fmt: skip
    return Markup(
        '<svg class="lines" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(WIDTH, HEIGHT, title, words, Markup("").join(parts))


def _around(values: Sequence[float]) -> Axis:
    """A logarithmic axis with a little room on both sides, and two powers of ten at least."""
    low, high = min(values) / 1.4, max(values) * 1.4
    if len(decades(low, high)) < 2:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
    return Axis(low, high)


def _grid(x: Axis, y: Axis, x_name: str, y_name: str) -> Markup:
    """Lines at the powers of ten and their names, and what the axes are."""
    text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    rule = Markup('<line class="tick" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"></line>')
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in x.ticks():
        at = LEFT + x.place(tick) * (right - LEFT)
        parts += [
            rule.format(at, TOP, at, bottom),
            text.format(at, bottom + 15, "middle", _count(tick)),
        ]
    for tick in y.ticks():
        at = bottom - y.place(tick) * (bottom - TOP)
        parts += [
            rule.format(LEFT, at, right, at),
            text.format(LEFT - 6, at + 4, "end", f"{tick:g}"),
        ]
    middle = (TOP + bottom) / 2
    parts += [
        text.format((LEFT + right) / 2, HEIGHT - 6, "middle", x_name),
        Markup(
            '<text transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(middle, y_name),
    ]
    return Markup("").join(parts)
