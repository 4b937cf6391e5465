"""Rows of hard example mining: over rows of a softmax, and over elements.

What the selection can meet: nothing, everything or some of the candidates, ties at the cut, none of
either kind, several slices in any order of memory. Layouts are those that marks could be read or
written wrongly in; the walks are other losses'.
"""

from __future__ import annotations

from typing import Any

import fusedloss
import torch
from emulated_mining import MINED_LOSSES
from fusedloss import reference

from .table import Case, Loss, uniform


def _loss(function: str, operator: str, schedules: tuple[str, ...] = ("recompute",)) -> Loss:
    return Loss(
        function.removesuffix("_loss"),
        getattr(fusedloss, function),
        getattr(reference, function),
        MINED_LOSSES[function],
        f"mined_{operator}_fwd",
        f"mined_{operator}_bwd",
        schedules=schedules,
        mined=True,
    )


OHEM = _loss("ohem_cross_entropy_loss", "cross_entropy", ("recompute", "forward"))
TOPK = _loss("topk_cross_entropy_loss", "cross_entropy")
BALANCED = _loss("balanced_bce_loss", "binary_cross_entropy")
NEGATIVES = _loss("hard_negative_mining_loss", "binary_cross_entropy")
MINED_LOSSES_OF_ROWS = [OHEM, TOPK]
MINED_LOSSES_OF_ELEMENTS = [BALANCED, NEGATIVES]


def _ohem(name: str, shape: tuple[int, ...], min_kept: int = 20, **kwargs: Any) -> Case:
    options = {"min_kept": min_kept, **kwargs.pop("options", {})}
    return Case(f"ohem-{name}", OHEM, shape, options=options, **kwargs)


def _topk(name: str, shape: tuple[int, ...], k: float = 20, **kwargs: Any) -> Case:
    return Case(
        f"topk-{name}", TOPK, shape, options={"k": k, **kwargs.pop("options", {})}, **kwargs
    )


def _balanced(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    return Case(f"balanced-{name}", BALANCED, shape, **{"target": "binary", **kwargs})


def _negatives(name: str, shape: tuple[int, ...], dim: Any, **kwargs: Any) -> Case:
    options = {"dim": dim, **kwargs.pop("options", {})}
    return Case(
        f"negatives-{name}", NEGATIVES, shape, options=options, **{"target": "binary", **kwargs}
    )


def _by(reduction: str, **options: Any) -> dict[str, Any]:
    """Options with a reduction."""
    return {"options": {**options, "reduction": reduction}}


def _mask(*shape: int) -> Any:
    return lambda generator: torch.rand(shape, generator=generator) < 0.8


_REDUCTIONS = ("mean", "sum", "none")
IMAGE = (2, 7, 5, 13)
TEXT = (2, 1, 9, 31)
WEIGHT = {"weight": uniform(7)}
OF_PROBABILITIES = {"logits": "probabilities", "options": {"from_logits": False}}

ROWS = [
    # The threshold alone, min_kept alone, both; nothing, everything, and more than there is.
    *(
        _ohem(
            f"{name}-{reduction}",
            IMAGE,
            kept,
            options={"threshold": threshold, "reduction": reduction},
        )
        for name, threshold, kept in (
            *(("threshold", 0.7, 5), ("kept", 0.001, 60), ("neither", 0.0, 0)),
            *(("all", 1.0, 0), ("beyond", 0.7, 10**6), ("one", 0.0, 1)),
        )
        for reduction in _REDUCTIONS
    ),
    *(
        _topk(f"{name}-{reduction}", IMAGE, k, options={"reduction": reduction})
        for name, k in (
            ("some", 31),
            ("none", 0),
            ("beyond", 10**6),
            ("tenth", 0.1),
            ("whole", 1.0),
        )
        for reduction in _REDUCTIONS
    ),
    # Class weights: of the losses, neither of the selection nor of the divisor.
    *(
        _ohem(f"weight-{name}-{reduction}", IMAGE, kept, options={**WEIGHT, "reduction": reduction})
        for name, kept in (("threshold", 5), ("kept", 110))
        for reduction in _REDUCTIONS
    ),
    *(
        _topk(f"weight-{reduction}", IMAGE, 31, options={**WEIGHT, "reduction": reduction})
        for reduction in _REDUCTIONS
    ),
    # Every row ties with every other.
    _ohem("tied", (2, 7, 40), 3, logits="zero", options={"threshold": 0.0}),
    _ohem("tied-above", (2, 7, 40), 3, logits="zero"),
    *(
        _topk(f"tied-{r}", (2, 7, 40), 3, logits="zero", options={"reduction": r})
        for r in _REDUCTIONS
    ),
    # Labels.
    _ohem("ignored", IMAGE, 40, ignored=0.4),
    _ohem("all-ignored", IMAGE, ignored=1.1),
    _ohem("all-ignored-none", IMAGE, ignored=1.1, options={"reduction": "none"}),
    _topk("all-ignored", IMAGE, 0.5, ignored=1.1),
    _topk("ignored-tenth", IMAGE, 0.1, ignored=0.4),
    _ohem("uint8", IMAGE, 90, target_dtype=torch.uint8, ignored=0.3, options={"ignore_index": 255}),
    _ohem("int32", (65, 10), 30, target_dtype=torch.int32, ignored=0.3),
    _topk("int16", (3, 10, 21), 30, target_dtype=torch.int16, ignored=0.3),
    # One row, one class, few and many of each; several tasks and blocks.
    _ohem("no-batch", (7,)),
    _topk("no-batch-none", (7,), options={"reduction": "none"}),
    _ohem("one-row", (1, 9), 5),
    _ohem("one-class", (33, 1)),
    _topk("one-class", (33, 1), 5),
    *(
        _ohem(f"{rows}x{classes}", (rows, classes))
        for rows, classes in ((129, 2), (37, 19), (7, 150), (5, 1001))
    ),
    *(
        _topk(f"{rows}x{classes}", (rows, classes), 4)
        for rows, classes in ((129, 4), (9, 91), (3, 21841))
    ),
    _ohem("19-classes", (2, 19, 527), 300, options={"threshold": 0.3}),
    _ohem("many-rows", (9001, 4), 5000, options={"threshold": 0.1}),
    _topk("many-pixels", (1, 3, 9100), 0.3),
    _ohem("150-classes", (2, 150, 5), 4, options={"threshold": 0.0}),
    # Layouts.
    _ohem("channels-last", (2, 6, 5, 9), 40, layout="channels_last"),
    _topk(
        "channels-last-none", (2, 6, 5, 9), layout="channels_last", options={"reduction": "none"}
    ),
    _ohem("transposed", (9, 6, 11), 50, layout="transposed", target_layout="transposed"),
    _topk("permuted", (2, 5, 6, 7), 50, layout="permuted"),
    _ohem("sliced", (3, 5, 18), 30, layout="sliced", target_layout="sliced"),
    _topk("offset", (31, 83), 7, layout="offset", target_layout="offset"),
    _ohem("5d", (2, 3, 4, 3, 5), 60, options={"threshold": 0.2}),
    # Logits at the ends of the number range.
    _ohem("extreme", (8, 64), 3, logits="extreme"),
    _topk("extreme", (8, 64), 3, logits="extreme"),
    _ohem("shifted", (41, 12), 20, logits="shifted"),
    _ohem("shifted-pixels", (2, 19, 57), 60, logits="shifted", options={"threshold": 0.01}),
    _topk("shifted-pixels", (2, 19, 57), 0.9, logits="shifted"),
    # Nothing at all.
    _ohem("empty", (0, 5)),
    _topk("empty-none", (0, 5), options={"reduction": "none"}),
    _topk("empty-pixels", (3, 5, 0), 0.5),
]

ELEMENTS = [
    *(
        _balanced(
            f"{name}-{reduction}", TEXT, options={"negative_ratio": ratio, "reduction": reduction}
        )
        for name, ratio in (("half", 0.5), ("plain", 1.5), ("all", 30.0), ("none", 0.0))
        for reduction in _REDUCTIONS
    ),
    *(
        _balanced(
            f"probabilities-{r}",
            TEXT,
            logits="probabilities",
            options={"from_logits": False, "reduction": r},
        )
        for r in _REDUCTIONS
    ),
    *(
        _balanced(f"mask-{r}", TEXT, options={"mask": _mask(2, 1, 9, 31), "reduction": r})
        for r in _REDUCTIONS
    ),
    _balanced("mask-broadcast", TEXT, options={"mask": _mask(9, 1)}),
    _balanced("mask-float", TEXT, options={"mask": lambda g: _mask(2, 1, 9, 31)(g).double()}),
    _balanced("all-masked", TEXT, options={"mask": lambda _: torch.zeros(1)}),
    # Of neither kind, of one.
    _balanced("no-positive", TEXT, target="zeros"),
    _balanced("no-positive-fallback", TEXT, target="zeros", options={"fallback_negatives": 10}),
    _balanced("no-negative", TEXT, target="ones"),
    _balanced("no-positive-none", TEXT, target="zeros", options={"reduction": "none"}),
    # Ties at the cut share.
    *(
        _balanced(f"tied-{r}", TEXT, logits="zero", options={"negative_ratio": 0.7, "reduction": r})
        for r in _REDUCTIONS
    ),
    _balanced(
        "soft", TEXT, target="soft", target_dtype=torch.float32, options={"negative_ratio": 0.4}
    ),
    _balanced("bool", TEXT, target_dtype=torch.bool),
    _balanced("uint8", TEXT, target_dtype=torch.uint8),
    _balanced("eps-0", TEXT, options={"eps": 0.0}),
    _balanced("eps-1", TEXT, options={"eps": 1.0}),
    _balanced("number", ()),
    _balanced("vector", (131,)),
    _balanced("many", (3, 7001), options={"negative_ratio": 0.8}),
    _balanced(
        "channels-last", (2, 3, 5, 9), layout="channels_last", options={"negative_ratio": 0.8}
    ),
    _balanced(
        "channels-last-none", (2, 3, 5, 9), layout="channels_last", options={"reduction": "none"}
    ),
    _balanced("sliced", (3, 5, 18), layout="sliced", target_layout="sliced"),
    _balanced(
        "offset", (31, 83), layout="offset", target_layout="offset", options={"negative_ratio": 0.7}
    ),
    _balanced("extreme", (8, 64), logits="extreme"),
    _balanced("empty", (0, 5)),
    _balanced("empty-none", (0, 5), options={"reduction": "none"}),
    # Slices: images, anchors in front, classes apart; each alone and all together divided once.
    *(
        _negatives(
            f"images-{r}", (5, 1, 7, 9), (1, 2, 3), options={"negative_ratio": 0.9, "reduction": r}
        )
        for r in _REDUCTIONS
    ),
    _negatives("anchors", (4, 77), 1, options={"negative_ratio": 1.0}),
    _negatives("negative-dim", (4, 77), -1, options={"negative_ratio": 1.0}),
    _negatives("front", (77, 3), 0, options={"negative_ratio": 1.0}),
    _negatives("front-none", (77, 3), 0, options={"negative_ratio": 1.0, "reduction": "none"}),
    _negatives("middle", (3, 31, 4), 1, options={"negative_ratio": 0.5}),
    _negatives("all-dims", (3, 31), (0, 1), options={"negative_ratio": 0.5}),
    _negatives("two-large", (2, 9001), 1, options={"negative_ratio": 0.5}),
    _negatives("many-slices", (301, 11), 1, options={"negative_ratio": 1.0}),
    _negatives("slices-of-one", (41, 1), 1),
    _negatives(
        "channels-last",
        (2, 3, 5, 9),
        (2, 3),
        layout="channels_last",
        options={"negative_ratio": 0.8},
    ),
    _negatives("transposed", (9, 6, 11), 2, layout="transposed", options={"negative_ratio": 0.8}),
    _negatives("mask", (4, 77), 1, options={"mask": _mask(4, 77), "negative_ratio": 1.0}),
    _negatives("tied", (4, 77), 1, logits="zero", options={"negative_ratio": 0.7}),
    _negatives(
        "no-positive-fallback", (4, 77), 1, target="zeros", options={"fallback_negatives": 5}
    ),
    _negatives("probabilities", (4, 77), 1, logits="probabilities", options={"from_logits": False}),
    _negatives("empty-slices", (3, 0), 1),
    _negatives("no-slices", (0, 3), 1),
]

CASES = ROWS + ELEMENTS
