"""Figures as text, the same in the terminal and on the page. "-" was not measured."""

from __future__ import annotations

import math

from .results import Timing

ABSENT = "-"


def odd(value: float) -> str | None:
    """What NaN and the infinities are called; None for other numbers."""
    if math.isnan(value):
        return "NaN"
    return ("inf" if value > 0 else "-inf") if math.isinf(value) else None


def significant(value: float) -> str:
    """Three digits, more where they stand before the point: 0.00123, 12.3, 1,234."""
    if (name := odd(value)) is not None:
        return name
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def ms(timing: Timing | None) -> str:
    """The median of a timing, in milliseconds."""
    if timing is None:
        return ABSENT
    value = timing.median
    if (name := odd(value)) is not None:
        return name
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def span(timing: Timing | None) -> str:
    """Fastest and slowest sample."""
    return ABSENT if timing is None else f"{timing.fastest:.3g}..{timing.slowest:.3g}"


def times(value: float | None) -> str:
    """A quotient: 3.25x, 31.6x, 1,234x."""
    if value is None:
        return ABSENT
    if (name := odd(value)) is not None:
        return name
    small, large = f"{value:.2f}x", f"{value:,.0f}x"
    return small if value < 10 else f"{value:.1f}x" if value < 1000 else large


def size(count: float | None) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    if count is None:
        return ABSENT
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit * 0.9995:
            return f"{significant(count / limit)} {unit}"
    return f"{count:.0f} B"


def shape(sizes: tuple[int, ...]) -> str:
    """8,192 x 1,000."""
    return " x ".join(f"{size:,}" for size in sizes)
