"""Rows of the margin softmax. The engine's layouts are the cross entropy's; here are those that another
target logit, a factor of all logits and a ceiling could get wrong.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import fusedloss
import torch
from emulated import MarginSoftmax
from fusedloss import reference

from .table import Case, Loss

MARGIN_SOFTMAX = Loss(
    "margin_softmax",
    fusedloss.margin_softmax_loss,
    reference.margin_softmax_loss,
    MarginSoftmax,
    "margin_softmax_fwd",
    "margin_softmax_bwd",
    ignore_index=-1,
    cosines=True,
)

# The same with a margin by default, where a test gives no options.
ARCFACE = replace(
    MARGIN_SOFTMAX,
    name="arcface",
    function=fusedloss.arcface_loss,
    reference=partial(reference.margin_softmax_loss, m2=0.5),
)


def _margin(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    kwargs.setdefault("logits", "cosines")
    return Case(f"margin-{name}", MARGIN_SOFTMAX, shape, **kwargs)


def between(low: float, high: float, *shape: int) -> Any:
    """An option: float32 numbers in [low, high)."""
    return lambda generator: low + (high - low) * torch.rand(shape, generator=generator)


# Cosines are spread over all angles, so that each form has rows on both sides of its bends: of 41 rows
# about 3 lie past pi - 0.5 and 10 past pi / 1.7.
VARIANTS: dict[str, dict[str, Any]] = {
    "normface": {},
    "arcface": {"m2": 0.5},
    "arcface-plain": {"m2": 0.5, "monotonic": "none"},
    "arcface-easy": {"m2": 0.5, "easy_margin": True},
    "arcface-through": {"m2": 0.5, "gradient": "straight_through"},
    "arcface-negative": {"m2": -0.3},
    "arcface-wide": {"m2": 2.5},  # straight for most angles
    "arcface-beyond-pi": {"m2": 3.5},  # straight for all of them
    "cosface": {"m3": 0.35},
    "cosface-easy": {"m3": 0.35, "easy_margin": True},
    "cosface-through": {"m3": 0.35, "gradient": "straight_through"},
    "sphereface": {"m1": 1.7},
    "sphereface-4": {"m1": 4.0},
    "sphereface-below-1": {"m1": 0.9},
    "sphereface-plain": {"m1": 1.7, "monotonic": "none"},
    "sphereface-easy": {"m1": 1.7, "easy_margin": True},
    "sphereface-through": {"m1": 1.7, "gradient": "straight_through"},
    "combined": {"m1": 0.9, "m2": 0.4, "m3": 0.15},
    "combined-plain": {"m1": 1.35, "m2": 0.3, "m3": 0.2, "monotonic": "none"},
    "combined-easy": {"m1": 1.35, "m2": 0.3, "m3": 0.2, "easy_margin": True},
    "combined-through": {"m1": 1.35, "m2": 0.3, "m3": 0.2, "gradient": "straight_through"},
    "arc-and-cosface": {"m2": 0.3, "m3": 0.2},
}
# Margins of each class; among those of m1 some are exactly 1, where the form is another.
_M1 = between(0.8, 1.9, 12)
_SOME_ONES = {
    "m1": lambda g: torch.where(torch.rand(12, generator=g) < 0.5, 1.0, _M1(g)),
    "m2": lambda g: torch.where(
        torch.rand(12, generator=g) < 0.3, 0.0, torch.rand(12, generator=g)
    ),
    "m3": between(0.0, 0.4, 12),
}
_ARC = {"m2": 0.5}

CASES = [
    # Scale 30, where a softmax of cosines has several classes with a say. One case with every other
    # variant has pixels, and the half types and both reductions of a mean are those of the checks.
    *(_margin(name, (41, 12), options=how | {"scale": 30.0}) for name, how in VARIANTS.items()),
    *(
        _margin(f"{name}-3d", (3, 12, 19), options=how | {"scale": 30.0}, ignored=0.2)
        for name, how in VARIANTS.items()
        if name in ("arcface", "sphereface", "combined-easy", "arcface-through")
    ),
    *(
        _margin(f"scale-{scale:g}", (41, 12), options={**_ARC, "scale": scale})
        for scale in (1.0, 30.0, 64.0)
    ),
    # One class, two, narrower than a vector, odd rows, several rounds of a block.
    *(
        _margin(f"{classes}-classes", (rows, classes), options=_ARC, ignored=0.1)
        for rows, classes in (
            *((301, 1), (129, 2), (65, 3), (37, 7), (19, 19)),
            *((7, 91), (5, 1000), (5, 1001), (1, 21841)),
        )
    ),
    _margin("93431-classes", (3, 93431), options=_ARC, emulated=False),
    _margin("93431-classes-combined", (3, 93431), options=VARIANTS["combined"], emulated=False),
    *(
        _margin("x".join(map(str, shape)), shape, options=_ARC)
        for shape in ((1, 1, 33), (2, 7, 2), (2, 19, 527), (2, 150, 5))
    ),
    # Layouts.
    _margin("no-batch", (7,), options=_ARC),
    _margin("no-batch-none", (7,), options={**_ARC, "reduction": "none"}),
    _margin("5d", (2, 3, 4, 3, 5), options=_ARC),
    _margin("channels-last", (2, 6, 5, 9), layout="channels_last", options=_ARC),
    _margin("transposed", (37, 20), layout="transposed", options=VARIANTS["combined"]),
    _margin(
        "transposed-3d",
        (9, 6, 11),
        layout="transposed",
        target_layout="transposed",
        options=_ARC,
    ),
    _margin("permuted", (2, 5, 6, 7), layout="permuted", options=_ARC),
    _margin("sliced", (31, 18), layout="sliced", options=VARIANTS["combined"]),
    _margin("sliced-3d", (3, 5, 18), layout="sliced", target_layout="sliced", options=_ARC),
    _margin("expanded", (31, 18), layout="expanded", options=_ARC),
    _margin("offset", (31, 83), layout="offset", target_layout="offset", options=_ARC),
    _margin("many-rows", (4097, 4), options=_ARC),
    # Label dtypes and ignored rows: those whose class lives elsewhere have label -1.
    _margin("elsewhere", (129, 20), ignored=0.7, options=_ARC),
    _margin("int32", (65, 10), target_dtype=torch.int32, ignored=0.3, options=_ARC),
    _margin("int16", (3, 10, 21), target_dtype=torch.int16, ignored=0.3, options=_ARC),
    _margin(
        "uint8",
        (3, 19, 33),
        target_dtype=torch.uint8,
        ignored=0.3,
        options={**_ARC, "ignore_index": 255},
    ),
    _margin("ignore-a-class", (129, 5), ignored=0.2, options={**_ARC, "ignore_index": 0}),
    _margin("all-ignored", (12, 5), ignored=1.1, options=_ARC),
    _margin("all-ignored-none", (2, 5, 9), ignored=1.1, options={**_ARC, "reduction": "none"}),
    # A margin for each class: of one kind, of every kind, in other dtypes, for all classes.
    *(
        _margin(f"{name}-per-class", (41, 12), options={name: value, "scale": 30.0}, ignored=0.2)
        for name, value in _SOME_ONES.items()
    ),
    *(
        _margin(f"per-class-{name}", (41, 12), options={**_SOME_ONES, **how}, ignored=0.2)
        for name, how in (
            ("all", {}),
            ("plain", {"monotonic": "none"}),
            ("easy", {"easy_margin": True}),
            ("through", {"gradient": "straight_through"}),
            ("smoothing", {"label_smoothing": 0.1}),
            ("filter", {"filter_threshold": 0.4}),
        )
    ),
    _margin("per-class-3d", (3, 12, 19), options=_SOME_ONES),
    _margin("per-class-1001", (3, 1001), options={"m2": between(0.2, 0.6, 1001)}),
    _margin("m2-per-class-beside-m1", (41, 12), options={"m1": 1.2, "m2": between(0.1, 0.6, 12)}),
    _margin("m2-half", (41, 7), options={"m2": lambda g: torch.rand(7, generator=g).half()}),
    _margin(
        "m1-double", (41, 7), options={"m1": lambda g: 1 + torch.rand(7, generator=g).double()}
    ),
    _margin("m3-integer", (41, 7), options={"m3": lambda _: torch.arange(7) % 2, "scale": 8.0}),
    _margin("m2-of-no-dimension", (41, 7), options={"m2": lambda _: torch.tensor(0.5)}),
    # Label smoothing.
    *(
        _margin(
            f"{name}-smoothing-{e}",
            shape,
            options={**VARIANTS[name], "label_smoothing": e, "scale": 16.0},
            ignored=0.2,
        )
        for name in ("normface", "arcface", "combined")
        for e, shape in ((0.1, (41, 12)), (1.0, (3, 12, 19)))
    ),
    _margin("1-class-smoothing", (33, 1), options={**_ARC, "label_smoothing": 0.1}),
    _margin("1001-classes-smoothing", (3, 1001), options={**_ARC, "label_smoothing": 0.1}),
    # Other classes dropped: some, most, all of them, none; rows in registers, in blocks, as pixels.
    *(
        _margin(
            f"filter-{threshold:g}-{'x'.join(map(str, shape))}",
            shape,
            options={**_ARC, "filter_threshold": threshold, "scale": 16.0},
            ignored=0.2,
        )
        for threshold in (0.4, -0.6)
        for shape in ((41, 12), (5, 1001), (3, 12, 19))
    ),
    _margin("filter-all", (41, 12), options={**_ARC, "filter_threshold": -2}),
    _margin("filter-all-3d", (3, 12, 19), options={**_ARC, "filter_threshold": -2}),
    _margin("filter-none", (41, 12), options={**_ARC, "filter_threshold": 1}),
    _margin("filter-1-class", (33, 1), options={**_ARC, "filter_threshold": 0}),
    _margin("filter-combined", (41, 12), options=VARIANTS["combined"] | {"filter_threshold": 0.3}),
    # Reductions.
    *(
        _margin(f"{reduction}{'-3d' * (len(shape) > 2)}", shape, options=how, ignored=0.2)
        for reduction in ("sum", "none")
        for shape in ((41, 12), (3, 12, 19))
        for how in ({**_ARC, "reduction": reduction},)
    ),
    # Of any size where there is no angle.
    _margin("products", (41, 12), logits="normal", options={"scale": 1.0}),
    _margin("products-m3", (41, 12), logits="normal", options={"scale": 1.0, "m3": 0.35}),
    _margin("zero-cosines", (8, 9), logits="zero", options={"m2": math.pi / 4}),
    # Nothing at all.
    _margin("empty", (0, 5), options=_ARC),
    _margin("empty-none", (0, 5), options={**_ARC, "reduction": "none"}),
    _margin("empty-pixels", (3, 5, 0), options=_ARC),
]
