"""Rows of the region losses over elements."""

from __future__ import annotations

from typing import Any

import torch

from .region_losses import ALL, COMPOUNDS, IGNORE, PLAIN, SOME, UINT8, W5, case
from .table import Case, uniform


def _multilabel(name: str, shape: tuple[int, ...], short: str = "dice", **kwargs: Any) -> Case:
    options = {"mode": "multilabel", **kwargs.pop("options", {})}
    kwargs.setdefault("target", "binary")
    return case(f"multilabel-{name}", shape, short, options=options, **kwargs)


def _binary(name: str, shape: tuple[int, ...], short: str = "dice", **kwargs: Any) -> Case:
    options = {"mode": "binary", **kwargs.pop("options", {})}
    kwargs.setdefault("target", "binary")
    return case(f"binary-{name}", shape, short, options=options, **kwargs)


def _given(name: str, shape: tuple[int, ...], short: str = "dice", **kwargs: Any) -> Case:
    """Of probabilities."""
    options = {"from_logits": False, **kwargs.pop("options", {})}
    return case(
        f"given-{name}", shape, short, options=options, **{"logits": "probabilities"} | kwargs
    )


_ELEMENT_SHAPES = [
    (1, 1, 33),
    (2, 3, 5),
    (3, 4, 65),
    (2, 7, 2),
    (2, 19, 527),
    (1, 200, 33),
    (17, 4),
    (5, 91),
]

CASES = [
    *(
        _multilabel("x".join(map(str, shape)), shape, short)
        for shape in _ELEMENT_SHAPES
        for short in ("dice", "dice-ce")
    ),
    *(
        _multilabel("2x5x21", (2, 5, 21), short)
        for short in ("jaccard", "tversky", "gdice", "dice-focal")
    ),
    _multilabel("no-batch", (7,)),
    *(
        _multilabel("many", (2, 3, 4500), short, target_dtype=torch.uint8)
        for short in ("dice", "dice-ce")
    ),
    # Targets of every dtype.
    *(
        _multilabel(str(d).removeprefix("torch."), (2, 5, 21), short, target_dtype=d)
        for d in (torch.bool, torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
        for short in ("dice", "dice-ce")
    ),
    *(
        _multilabel(
            f"soft-{str(d).removeprefix('torch.')}",
            (2, 5, 21),
            short,
            target="soft",
            target_dtype=d,
        )
        for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        for short in ("dice", "dice-focal")
    ),
    # Ignored elements, in integers and in floats.
    *(_multilabel("ignored", (2, 5, 65), short, options=IGNORE, **UINT8) for short in ALL),
    *(
        _multilabel(
            "ignored-float",
            (2, 5, 65),
            short,
            options={"ignore_index": -1},
            target="soft",
            target_dtype=torch.float32,
            ignored=0.3,
        )
        for short in ("dice", "dice-ce", "dice-focal")
    ),
    *(_multilabel("all-ignored", (2, 5, 9), short, options=IGNORE, ignored=1.1) for short in SOME),
    # Options.
    *(
        _multilabel(
            "squared-soft",
            (2, 5, 21),
            short,
            target="soft",
            target_dtype=torch.float32,
            options={"squared": True},
        )
        for short in ("dice", "jaccard", "gdice", "dice-ce")
    ),
    *(
        _multilabel("batch-weight", (3, 5, 21), short, options={"batch": True, **W5})
        for short in ALL
    ),
    *(
        _multilabel(
            "no-background-none",
            (2, 5, 21),
            short,
            options={"include_background": False, "reduction": "none", **W5},
        )
        for short in PLAIN
    ),
    *(
        _multilabel(
            "no-background-skip",
            (2, 5, 3),
            short,
            options={"include_background": False, "absent": "skip", "log": True},
        )
        for short in SOME
    ),
    *(
        _multilabel(
            "sum-smooth-pair", (2, 5, 21), short, options={"reduction": "sum", "smooth": (0.5, 2)}
        )
        for short in SOME
    ),
    _multilabel(
        "tversky-focal", (2, 5, 21), "tversky", options={"alpha": 0.3, "beta": 0.7, "gamma": 0.75}
    ),
    *(
        _multilabel(f"{w}", (2, 5, 3), "gdice", options={"weighting": w})
        for w in ("square", "simple", "uniform")
    ),
    # What is joined.
    *(
        _multilabel(
            f"smoothing-{r}",
            (2, 5, 21),
            short,
            options={"label_smoothing": 0.1, "reduction": r, **IGNORE},
            **UINT8,
        )
        for short in COMPOUNDS
        for r in ("mean", "sum")
    ),
    _multilabel("weighted", (2, 5, 21), "dice-ce", options={"dice_weight": 0.3, "ce_weight": 2.0}),
    *(
        _multilabel(f"alpha-{name}-{g}", (2, 5, 21), "dice-focal", options={"alpha": a, "gamma": g})
        for g in (0.0, 0.5, 2.0)
        for name, a in (
            ("number", 0.25),
            ("negative", -1),
            ("per-class", uniform(5)),
            ("tensor", lambda _: torch.tensor(0.4)),
        )
    ),
    _multilabel(
        "alpha-channels-last",
        (2, 5, 4, 7),
        "dice-focal",
        options={"alpha": uniform(5)},
        layout="channels_last",
    ),
    # Layouts.
    *(
        _multilabel("channels-last", (2, 6, 5, 9), short, layout="channels_last")
        for short in ("dice", "dice-ce")
    ),
    *(
        _multilabel(
            "channels-last-both",
            (2, 6, 5, 9),
            short,
            layout="channels_last",
            target_layout="channels_last",
        )
        for short in ("dice", "dice-ce")
    ),
    _multilabel("transposed", (9, 6, 11), layout="transposed"),
    _multilabel("permuted", (2, 5, 6, 7), "dice-ce", layout="permuted"),
    _multilabel("sliced", (3, 5, 18), layout="sliced", target_layout="sliced"),
    _multilabel("expanded", (5, 6, 13), "dice-ce", layout="expanded", target_layout="expanded"),
    _multilabel("offset", (3, 4, 65), "dice-ce", layout="offset", target_layout="offset"),
    _multilabel("5d", (2, 3, 4, 3, 5), "dice-ce"),
    # One class, with and without its dimension.
    *(
        _binary("x".join(map(str, shape)), shape, short)
        for shape in ((2, 1, 33), (3, 1, 5, 7), (3, 5, 7), (11,), (4, 9))
        for short in ("dice", "dice-ce")
    ),
    *(
        _binary("2x1x21", (2, 1, 21), short)
        for short in ("jaccard", "tversky", "gdice", "dice-focal")
    ),
    *(
        _binary("batch-none", (3, 33), short, options={"batch": True, "reduction": "none"})
        for short in PLAIN
    ),
    *(
        _binary("none-skip", (3, 1, 3), short, options={"absent": "skip", "reduction": "none"})
        for short in PLAIN
    ),
    *(_binary("ignored", (3, 65), short, options=IGNORE, **UINT8) for short in SOME),
    _binary("many", (2, 9000), "dice-ce", target_dtype=torch.uint8),
    # Probabilities in, of class indices, of soft targets, of heat maps.
    *(_given("2x5x21", (2, 5, 21), short) for short in PLAIN),
    *(
        _given("x".join(map(str, shape)), shape)
        for shape in ((1, 1, 33), (17, 4), (2, 91, 13), (7,))
    ),
    *(_given("ignored", (2, 5, 65), short, options=IGNORE, **UINT8) for short in PLAIN),
    _given("channels-last", (2, 6, 5, 9), layout="channels_last"),
    _given("transposed", (9, 6, 11), layout="transposed", target_layout="transposed"),
    *(
        _given(
            "soft",
            (2, 5, 21),
            short,
            target="probabilities",
            target_dtype=torch.float32,
            options={"ignore_index": 1, "squared": True},
        )
        for short in ("dice", "gdice")
    ),
    *(
        _given(
            "multilabel",
            (2, 5, 21),
            short,
            target="soft",
            target_dtype=torch.float32,
            options={"mode": "multilabel"},
        )
        for short in PLAIN
    ),
    _given(
        "heat-maps",
        (2, 5, 6, 7),
        target="soft",
        target_dtype=torch.float32,
        options={"mode": "multilabel", "batch": True, "smooth": 1e-6},
    ),
    *(
        _given(
            "binary",
            (3, 33),
            short,
            target="binary",
            target_dtype=torch.bool,
            options={"mode": "binary", "log": True},
        )
        for short in PLAIN
    ),
    # Logits at the ends of the number range, and where the two branches of the logistic meet.
    *(_multilabel("extreme", (2, 16, 16), short, logits="extreme") for short in SOME),
    *(_multilabel("zero-logits", (2, 5, 9), short, logits="zero") for short in SOME),
    # Nothing at all.
    *(_multilabel("empty", (0, 5, 3), short) for short in SOME),
    *(
        _multilabel("empty-pixels", (3, 5, 0), short, options={"smooth": (0, 1e-6)})
        for short in SOME
    ),
    _multilabel("empty-none", (0, 5, 3), options={"reduction": "none"}),
    _given("empty", (0, 5)),
]
