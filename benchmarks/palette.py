"""Order and colours of the contenders, on a light and on a dark ground."""

from __future__ import annotations

from collections.abc import Sequence

from .results import YARDSTICKS, CaseResult

PALETTE: dict[str, tuple[str, str]] = {
    "eager": ("#8c8c8c", "#9a9a9a"),
    "handwritten": ("#b9a48c", "#b9a48c"),
    "compile": ("#e08214", "#f0a04b"),
    "torchvision": ("#6a8fc1", "#7fa6dc"),
    "timm": ("#9b6fb0", "#b98bd0"),
    "smp": ("#c76a7c", "#dd8496"),
    "insightface": ("#a8a13a", "#bdb655"),
    "pml": ("#7b6d5d", "#a39382"),
    "unchunked": ("#7cb89a", "#7cb89a"),
    "fusedloss": ("#1b7f4d", "#3ccb83"),
    **dict.fromkeys(YARDSTICKS, ("#333333", "#d8d8d8")),
}
OTHER = ("#4fa3a5", "#63bfc1")

_AMONG_PACKAGES = 3.5
"""The place of a contender that has no colour of its own."""


def colour(contender: str) -> str:
    """The colour on a light ground."""
    return PALETTE.get(contender, OTHER)[0]


def css_class(contender: str) -> str:
    """The class of a contender's marks; nothing of an unknown name gets into it."""
    return f"c-{contender}" if contender in PALETTE else "c-other"


def in_order(cases: Sequence[CaseResult], leave_out: Sequence[str] = ()) -> list[str]:
    """Names of the contenders in the order of `PALETTE`, with others in the middle."""
    found = {name: None for case in cases for name in case.contenders if name not in leave_out}
    places = list(PALETTE)
    return sorted(found, key=lambda n: places.index(n) if n in PALETTE else _AMONG_PACKAGES)
