"""The region losses of the table, and how their rows are written.

Each function runs on two engines: over rows of a softmax, and over elements (multilabel and binary
targets, probabilities in the logits' place).
"""

from __future__ import annotations

from typing import Any

import emulated_regions
import fusedloss
import torch
from fusedloss import reference

from .table import Case, Loss, uniform


def _loss(function: str, engine: str) -> Loss:
    return Loss(
        f"{function}-{engine}",
        getattr(fusedloss, function),
        getattr(reference, function),
        emulated_regions.REGION_LOSSES[function],
        f"{engine}_regions_fwd",
        f"{engine}_regions_bwd",
        schedules=("recompute",),
        regions=True,
    )


SHORT = {
    "dice": "dice_loss",
    "jaccard": "jaccard_loss",
    "tversky": "tversky_loss",
    "gdice": "generalized_dice_loss",
    "dice-ce": "dice_cross_entropy_loss",
    "dice-focal": "dice_focal_loss",
}
LOSSES = {
    (short, engine): _loss(function, engine)
    for short, function in SHORT.items()
    for engine in ("softmax", "element")
}
REGION_LOSSES = list(LOSSES.values())
PLAIN = ("dice", "jaccard", "tversky", "gdice")
COMPOUNDS = ("dice-ce", "dice-focal")
ALL = tuple(SHORT)
# A ratio for each region, one for each sample, and something joined: what options meet in the engines.
SOME = ("dice", "gdice", "dice-ce")
IGNORE = {"ignore_index": 255}
W5 = {"weight": uniform(5)}
UINT8 = {"target_dtype": torch.uint8, "ignored": 0.3}


def case(name: str, shape: tuple[int, ...], short: str = "dice", **kwargs: Any) -> Case:
    options = kwargs.get("options", {})
    elements = options.get("mode", "multiclass") != "multiclass"
    elements = elements or not options.get("from_logits", True)
    loss = LOSSES[short, "element" if elements else "softmax"]
    return Case(f"{short}-{name}", loss, shape, **kwargs)


def each(
    name: str, shape: tuple[int, ...], shorts: tuple[str, ...] = SOME, **kwargs: Any
) -> list[Case]:
    """The same row for several losses."""
    return [case(name, shape, short, **kwargs) for short in shorts]
