"""Rows of the region losses over a softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .region_losses import ALL, COMPOUNDS, IGNORE, PLAIN, UINT8, W5, case, each
from .table import Case, uniform


def _soft(name: str, shape: tuple[int, ...], short: str = "dice", **kwargs: Any) -> Case:
    kwargs.setdefault("target_dtype", torch.float32)
    return case(f"soft-{name}", shape, short, target="probabilities", **kwargs)


def _half(generator: torch.Generator) -> Tensor:
    return torch.rand(5, generator=generator).half()


# [N, C, ...]: class counts narrower than a vector and past it; pixels narrower than a vector, and no
# multiple of one or of a warp; one row of classes beside another.
_SHAPES = [
    *((1, 1, 33), (2, 2, 17), (2, 3, 5), (3, 4, 65), (2, 7, 2), (2, 19, 527), (1, 91, 13)),
    *((1, 200, 33), (2, 5, 1)),
    *((13, 1), (29, 2), (17, 4), (19, 19), (5, 91), (3, 200)),
]

CASES = [
    *(
        row
        for shape in _SHAPES
        for row in each("x".join(map(str, shape)), shape, ("dice", "dice-ce"))
    ),
    *each("2x5x21", (2, 5, 21), ("jaccard", "tversky", "gdice", "dice-focal")),
    *each("91-classes", (2, 91, 33), ("dice-focal",)),
    *each("19-classes", (19, 19), ("gdice", "dice-focal")),
    case("no-batch", (7,)),
    case("no-batch-ce", (7,), "dice-ce"),
    # Several tasks of the CPU engine, several blocks of the CUDA one.
    *each("many-pixels", (2, 3, 4500), ("dice", "dice-ce")),
    *each("many-rows", (4097, 4), ("dice", "dice-focal")),
    # Layouts.
    *(
        row
        for dims, shape in (("4d", (2, 5, 6, 9)), ("5d", (2, 3, 4, 3, 5)))
        for row in each(dims, shape, ("dice", "dice-ce"))
    ),
    *each("channels-last", (2, 6, 5, 9), layout="channels_last"),
    case("channels-last-5d", (2, 3, 4, 3, 5), "dice-ce", layout="channels_last"),
    *each("transposed", (9, 6, 11), COMPOUNDS, layout="transposed", target_layout="transposed"),
    case("transposed-rows", (37, 20), layout="transposed"),
    case("permuted", (2, 5, 6, 7), "dice-ce", layout="permuted", target_layout="permuted"),
    case("sliced", (3, 5, 18), "dice-ce", layout="sliced", target_layout="sliced"),
    case("expanded", (5, 6, 13), layout="expanded", target_layout="expanded"),
    *each("offset", (3, 4, 65), ("dice", "dice-ce"), layout="offset", target_layout="offset"),
    case("transposed-labels", (5, 4, 6, 7), target_layout="transposed"),
    # Label dtypes and ignored pixels.
    case("int32", (2, 5, 33), target_dtype=torch.int32),
    case("int16", (2, 5, 33), "dice-ce", target_dtype=torch.int16),
    *each("ignored", (2, 5, 65), ALL, options=IGNORE, **UINT8),
    *each("ignored-rows", (41, 5), ("dice", "dice-ce"), options=IGNORE, **UINT8),
    *each("ignore-a-class", (2, 5, 33), ("dice", "gdice"), options={"ignore_index": 0}),
    *each("ignore-minus-one", (2, 5, 33), COMPOUNDS, options={"ignore_index": -1}, ignored=0.2),
    *each("all-ignored", (2, 5, 9), options=IGNORE, ignored=1.1),
    *each("all-ignored-skip", (2, 5, 9), options={**IGNORE, "absent": "skip"}, ignored=1.1),
    # Absent classes: 19 of them and 7 pixels.
    *each("absent-keep", (2, 19, 7)),
    *each("absent-skip", (2, 19, 7), ALL, options={"absent": "skip"}),
    *each("absent-skip-none", (2, 19, 7), PLAIN, options={"absent": "skip", "reduction": "none"}),
    *each("absent-skip-batch", (2, 19, 7), ALL, options={"absent": "skip", "batch": True}),
    *each("absent-skip-smooth-0", (2, 19, 7), options={"absent": "skip", "smooth": 0}),
    *each(
        "absent-skip-log-weight",
        (2, 7, 5),
        ("dice", "gdice", "dice-ce"),
        options={"absent": "skip", "log": True, "weight": uniform(7)},
    ),
    # The options, one by one and together.
    *each(
        "squared", (2, 5, 21), ("dice", "jaccard", "gdice", *COMPOUNDS), options={"squared": True}
    ),
    *each("batch", (3, 5, 21), ALL, options={"batch": True}),
    *each("batch-rows", (33, 5), ("dice", "dice-ce"), options={"batch": True}),
    *each("batch-none", (3, 5, 21), PLAIN, options={"batch": True, "reduction": "none"}),
    *each("no-background", (2, 5, 21), ALL, options={"include_background": False}),
    *each(
        "no-background-none",
        (2, 5, 21),
        PLAIN,
        options={"include_background": False, "reduction": "none"},
    ),
    *each(
        "no-background-batch-none",
        (2, 5, 21),
        PLAIN,
        options={"include_background": False, "batch": True, "reduction": "none", **W5},
    ),
    *each("weight", (2, 5, 21), ALL, options=W5),
    *each("weight-no-background", (2, 5, 21), options={**W5, "include_background": False}),
    case("weight-half", (2, 5, 21), options={"weight": _half}),
    *each("smooth", (2, 5, 21), options={"smooth": 1.0}),
    *each("smooth-pair", (2, 5, 21), ALL, options={"smooth": (0, 1e-6)}),
    *each("log", (2, 5, 21), options={"log": True}),
    *each("sum", (2, 5, 21), ALL, options={"reduction": "sum"}),
    *each("none", (2, 5, 21), PLAIN, options={"reduction": "none"}),
    *each("none-rows", (17, 5), ("dice", "gdice"), options={"reduction": "none"}),
    *each(
        "together",
        (3, 5, 33),
        ("dice", "jaccard", "gdice", *COMPOUNDS),
        options={
            **W5,
            **IGNORE,
            "squared": True,
            "batch": True,
            "include_background": False,
            "absent": "skip",
            "smooth": (0.5, 1.0),
            "log": True,
            "reduction": "sum",
        },
        **UINT8,
    ),
    *(
        case(f"{a}-{b}-{g}", (2, 5, 21), "tversky", options={"alpha": a, "beta": b, "gamma": g})
        for a, b, g in (
            *((0.3, 0.7, 1), (0.7, 0.3, 0.75), (1.0, 1.0, 1.0), (0.0, 1.0, 2), (0.3, 0.7, 1.5)),
        )
    ),
    *(
        case(f"{w}", (2, 5, 21), "gdice", options={"weighting": w, "ignore_index": 2})
        for w in ("square", "simple", "uniform")
    ),
    *(
        case(f"{w}-absent", (3, 19, 7), "gdice", options={"weighting": w, "reduction": "none"})
        for w in ("square", "simple", "uniform")
    ),
    case(
        "uniform-absent-skip",
        (3, 19, 7),
        "gdice",
        options={"weighting": "uniform", "absent": "skip"},
    ),
    # What is joined.
    *each("dice-only", (2, 5, 21), ("dice-ce",), options={"ce_weight": 0}),
    *each("ce-only", (2, 5, 21), ("dice-ce",), options={"dice_weight": 0.0}),
    *each("weighted", (2, 5, 21), ("dice-ce",), options={"dice_weight": 0.3, "ce_weight": 2}),
    *(
        case(
            f"{name}-{r}",
            (2, 5, 21),
            "dice-ce",
            options={**how, **IGNORE, "reduction": r},
            **UINT8,
        )
        for r in ("mean", "sum")
        for name, how in {
            "class-weight": {"class_weight": uniform(5)},
            "smoothing": {"label_smoothing": 0.1},
            "smoothing-others": {"label_smoothing": 0.2, "smoothing": "others"},
            "class-weight-smoothing": {"class_weight": uniform(5), "label_smoothing": 0.1},
        }.items()
    ),
    *(
        case(
            f"class-weight-others-{n}",
            shape,
            "dice-ce",
            options={"class_weight": uniform(n), "label_smoothing": 0.2, "smoothing": "others"},
        )
        for n, shape in ((1, (2, 1, 9)), (2, (3, 2, 21)), (91, (2, 91, 5)))
    ),
    *(
        case(f"gamma-{g}-{e}", (2, 5, 21), "dice-focal", options={"gamma": g, "label_smoothing": e})
        for g in (0.0, 0.5, 1.0, 2.5)
        for e in (0.0, 0.1)
    ),
    *(
        case(
            f"alpha-{name}",
            (2, 5, 21),
            "dice-focal",
            options={"alpha": a, "focal_weight": 0.5, **IGNORE},
            **UINT8,
        )
        for name, a in (
            ("number", 0.25),
            ("per-class", uniform(5)),
            ("tensor", lambda _: torch.tensor(0.4)),
        )
    ),
    # Soft targets, in dtypes of their own.
    *(
        _soft(str(d).removeprefix("torch."), (2, 5, 21), target_dtype=d)
        for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    ),
    *(
        _soft("x".join(map(str, shape)), shape, short)
        for shape in ((2, 1, 9), (2, 19, 65), (17, 5), (2, 3, 4, 5))
        for short in ("dice", "dice-ce")
    ),
    *(
        _soft(
            "squared-batch-none",
            (3, 5, 21),
            short,
            options={"squared": True, "batch": True, "reduction": "none", "ignore_index": 0},
        )
        for short in ("dice", "jaccard", "gdice")
    ),
    _soft(
        "smoothing-weight",
        (2, 5, 21),
        "dice-ce",
        options={"label_smoothing": 0.1, "class_weight": uniform(5)},
    ),
    _soft(
        "others",
        (2, 5, 21),
        "dice-ce",
        options={"label_smoothing": 0.2, "smoothing": "others", "reduction": "sum"},
    ),
    _soft(
        "channels-last",
        (2, 6, 5, 9),
        "dice-ce",
        layout="channels_last",
        target_layout="channels_last",
    ),
    _soft("transposed-target", (9, 6, 11), "dice-ce", target_layout="transposed"),
    _soft("expanded-target", (5, 6, 13), target_layout="expanded"),
    # Logits at the ends of the number range, far from 0, and all the same.
    *each("extreme", (2, 16, 16), logits="extreme"),
    *each("extreme-log", (2, 16, 16), ("dice", "dice-ce"), logits="extreme", options={"log": True}),
    *each("shifted", (2, 5, 33), ("dice", *COMPOUNDS), logits="shifted"),
    *each("zero-logits", (2, 5, 9), logits="zero"),
    # Nothing at all.
    *each("empty", (0, 5)),
    *each("empty-pixels", (3, 5, 0), options={"smooth": 0}),
    *each("empty-none", (0, 5, 3), PLAIN, options={"reduction": "none"}),
    *each(
        "empty-pixels-none", (3, 5, 0), PLAIN, options={"reduction": "none", "smooth": (0, 1e-6)}
    ),
    *each("empty-batch-none", (0, 5, 3), PLAIN, options={"reduction": "none", "batch": True}),
]
