"""What the baselines of every family share; their forms are in `baselines_<family>.py`.

A form is the loss as people write it without fusedloss, or the fused call that replaces it. It
takes the logits (or features) first and the arguments of its case after them, and returns a 0-d
loss. A contender that cannot be imported is left out, and `unavailable()` says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

LossFn = Callable[..., Tensor]
Reference = Callable[..., tuple[Tensor, ...]]
"""Value (0-d) in float64, then a gradient for each argument of a form that requires one."""

_missing: dict[str, str] = {}


def unavailable() -> list[str]:
    """Sentences on the contenders that were asked for and could not be imported."""
    return [f"{name}: {reason}" for name, reason in sorted(_missing.items())]


def optional(module: str, attribute: str) -> Callable[..., Any] | None:
    """`module.attribute`, or None with the reason noted. Binary packages fail in many ways."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        _missing[f"{module}.{attribute}"] = f"{type(error).__name__}: {error}"
        return None
    return found


def fused(name: str, tensors: tuple[str, ...] = (), **options: Any) -> dict[str, LossFn]:
    """The contender "fusedloss" where it imports: its function `name` with these options, which takes the
    arguments after the target by the names in `tensors`.
    """
    function = optional("fusedloss", name)
    if function is None:
        return {}

    def form(input: Tensor, target: Tensor, *rest: Tensor) -> Tensor:
        given = dict(zip(tensors, rest, strict=True))
        value: Tensor = function(input, target, **given, **options)
        return value

    return {"fusedloss": form}


def row_slices(shape: tuple[int, int, int], rows_at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cuts logits [N, C, K] into parts of about `rows_at_once` rows of C: slices of N and of K.

    References work in float64 with several temporaries: a part at a time keeps them small.
    """
    batch, _, inner = shape
    batch_step = max(1, rows_at_once // max(1, inner))
    for first in range(0, batch, batch_step):
        for start in range(0, inner, rows_at_once):
            yield slice(first, first + batch_step), slice(start, start + rows_at_once)
