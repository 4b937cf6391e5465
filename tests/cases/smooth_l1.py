"""Rows of the smooth L1 and L1 losses."""

from __future__ import annotations

import functools
from typing import Any

import fusedloss
import torch
from emulated import SmoothL1
from fusedloss import reference

from .table import Case, Loss, uniform

OPERATORS = ("smooth_l1_fwd", "smooth_l1_bwd")
SMOOTH_L1 = Loss(
    "smooth_l1",
    fusedloss.smooth_l1_loss,
    reference.smooth_l1_loss,
    SmoothL1,
    *OPERATORS,
    classes_last=True,
    elements=True,
    boxes=True,
)
L1 = Loss(
    "l1",
    fusedloss.l1_loss,
    functools.partial(reference.smooth_l1_loss, beta=0.0),
    functools.partial(SmoothL1, beta=0.0),
    *OPERATORS,
    classes_last=True,
    elements=True,
    boxes=True,
)


def _case(name: str, shape: tuple[int, ...], loss: Loss = SMOOTH_L1, **kwargs: Any) -> Case:
    dense = {"target": "soft", "target_dtype": torch.float32, **kwargs}
    return Case(f"{loss.name}-{name}", loss, shape, **dense)


BOXES: dict[str, Any] = {"weight": uniform(301, 1), "normalizer": lambda _: torch.tensor(17)}
CASES = [
    *(
        case
        for loss in (SMOOTH_L1, L1)
        for case in (
            _case("plain", (41, 13), loss),
            _case("boxes", (301, 4), loss, options=BOXES),
            _case("none", (41, 12), loss, options={"reduction": "none"}),
            _case("sum", (41, 12), loss, options={"reduction": "sum", "weight": uniform(12)}),
            _case("empty", (0, 4), loss, options={"normalizer": 3.0}),
        )
    ),
    *(_case(f"beta-{beta:g}", (41, 12), options={"beta": beta}) for beta in (0.0, 0.11, 5.0)),
    *(
        _case(
            f"target-{dtype}".replace("torch.", ""), (5, 333), target="binary", target_dtype=dtype
        )
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    ),
    _case("zero", (8, 9), logits="zero", target="zeros", options={"beta": 0.5}),
    _case("extreme", (8, 64), logits="extreme"),
    _case("long", (3, 7001), options={"normalizer": 17}),
    _case("scalar", ()),
    _case("channels-last", (2, 6, 5, 9), layout="channels_last"),
    _case("sliced", (31, 18), layout="sliced", target_layout="transposed"),
    _case("expanded", (31, 18), layout="expanded", options={"weight": uniform(31, 18)}),
    _case("offset", (31, 83), layout="offset", options={"weight": uniform(31, 83)}),
]
