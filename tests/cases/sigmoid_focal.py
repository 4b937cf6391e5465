"""Rows of the sigmoid focal loss."""

from __future__ import annotations

from typing import Any

import fusedloss
import torch
from emulated import SigmoidFocal
from fusedloss import reference

from .table import Case, Loss, uniform

SIGMOID_FOCAL = Loss(
    "sigmoid_focal",
    fusedloss.sigmoid_focal_loss,
    reference.sigmoid_focal_loss,
    SigmoidFocal,
    "sigmoid_focal_fwd",
    "sigmoid_focal_bwd",
    classes_last=True,
    background=True,
    elements=True,
)


def _focal(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    return Case(f"focal-{name}", SIGMOID_FOCAL, shape, **kwargs)


CASES = [
    # Class indices over C classes: C = 1, C narrower than a vector, vector-aligned rows, odd rows.
    _focal("index", (37, 80)),
    _focal("index-1-class", (301, 1)),
    _focal("index-3-classes", (257, 3)),
    *(
        _focal(f"index-1-class-{layout}-labels{w}", (5, 7, 1), target_layout=layout, options=o)
        for layout in ("transposed", "expanded", "sliced")
        for w, o in (("", {}), ("-weight", {"weight": uniform(5, 1, 1)}))
    ),
    _focal("index-transposed-labels", (9, 7, 12), target_layout="transposed"),
    _focal("index-expanded-labels", (9, 7, 12), target_layout="expanded"),
    _focal("index-91-classes", (3, 11, 91)),
    _focal("index-one-row", (1, 5000)),
    _focal("index-no-rows-dim", (7,), options={"alpha": None}),
    _focal("index-int32", (65, 10), target_dtype=torch.int32),
    _focal("index-int16", (65, 10), target_dtype=torch.int16),
    _focal(
        "index-uint8",
        (65, 10),
        target_dtype=torch.uint8,
        options={"ignore_index": 255},
        ignored=0.3,
    ),
    _focal("index-ignored", (129, 20), ignored=0.4),
    _focal("index-ignore-minus-one", (129, 20), ignored=0.4, options={"ignore_index": -1}),
    _focal("index-all-ignored", (12, 5), ignored=1.1),
    # Targets of the input's shape, one for each dtype.
    _focal("binary-int64", (33, 7, 5), target="binary"),
    _focal("binary-bool", (2, 2500), target="binary", target_dtype=torch.bool),
    _focal(
        "binary-uint8",
        (6, 70),
        target="binary",
        target_dtype=torch.uint8,
        ignored=0.2,
        options={"ignore_index": 255},
    ),
    _focal("binary-int8", (6, 70), target="binary", target_dtype=torch.int8, ignored=0.2),
    _focal("binary-float32", (5, 333), target="binary", target_dtype=torch.float32, ignored=0.2),
    _focal("binary-float16", (5, 333), target="binary", target_dtype=torch.float16),
    _focal("binary-bfloat16", (5, 333), target="binary", target_dtype=torch.bfloat16),
    # An ignore_index that the target's dtype rounds, and large ones with an exponent that takes a log.
    _focal(
        "binary-bfloat16-999",
        (6, 70),
        target="binary",
        target_dtype=torch.bfloat16,
        ignored=0.3,
        options={"ignore_index": 999},
    ),
    _focal(
        "binary-float16-100000",
        (6, 70),
        target="binary",
        target_dtype=torch.float16,
        ignored=0.3,
        options={"ignore_index": -100000, "gamma": 0.5},
    ),
    _focal(
        "binary-int64-large",
        (6, 70),
        target="binary",
        ignored=0.3,
        options={"ignore_index": -(2**40), "gamma": 0.5},
    ),
    _focal("soft", (4, 500), target="soft", target_dtype=torch.float32),
    _focal("soft-double", (4, 500), target="soft", target_dtype=torch.float64),
    _focal("dense-all-ignored", (12, 5), target="binary", target_dtype=torch.float32, ignored=1.1),
    _focal("scalar", (), target="soft", target_dtype=torch.float32),
    # Several tasks of the CPU engine, several blocks of the CUDA one.
    _focal("long", (3, 7001), target="binary", target_dtype=torch.float32),
    _focal("long-index", (401, 90)),
    # Exponents: each compiled one, and real ones on both sides of 1.
    *(_focal(f"gamma-{g}", (41, 12), options={"gamma": g}) for g in (0.0, 0.5, 1.0, 1.5, 3.0, 5.0)),
    _focal(
        "gamma-0.5-soft",
        (41, 12),
        target="soft",
        target_dtype=torch.float32,
        options={"gamma": 0.5},
    ),
    # Balancing and weights, broadcast along each side.
    _focal("alpha-none", (41, 12), options={"alpha": None}),
    _focal("alpha-negative", (41, 12), options={"alpha": -1.0}),
    _focal("alpha-one", (41, 12), options={"alpha": 1.0}),
    _focal("alpha-per-class", (41, 12), options={"alpha": uniform(12)}),
    _focal(
        "alpha-per-class-odd",
        (41, 13),
        target="soft",
        target_dtype=torch.float32,
        options={"alpha": uniform(13)},
    ),
    _focal("weight-elementwise", (41, 12), options={"weight": uniform(41, 12)}),
    _focal("weight-per-row", (41, 12), options={"weight": uniform(41, 1)}),
    _focal(
        "weight-per-class",
        (41, 12),
        options={"weight": uniform(12)},
        target="soft",
        target_dtype=torch.float32,
    ),
    _focal("weight-middle", (4, 5, 6), options={"weight": uniform(5, 1)}),
    _focal(
        "weight-half",
        (41, 12),
        options={"weight": lambda g: torch.rand(41, 12, generator=g).half()},
    ),
    _focal("smoothing", (41, 12), options={"label_smoothing": 0.1}),
    _focal(
        "smoothing-ignored", (41, 12), options={"label_smoothing": 0.3, "gamma": 0.5}, ignored=0.3
    ),
    # Reductions and divisors.
    _focal("sum", (41, 12), options={"reduction": "sum"}),
    _focal("none", (41, 12), options={"reduction": "none"}, ignored=0.2),
    _focal("none-offset", (41, 13), options={"reduction": "none"}, layout="offset"),
    _focal("normalizer", (41, 12), options={"normalizer": 17}),
    _focal("normalizer-tensor", (41, 12), options={"normalizer": lambda _: torch.tensor(17)}),
    _focal("normalizer-all-ignored", (41, 12), options={"normalizer": 17.0}, ignored=1.1),
    # Layouts.
    _focal("transposed", (9, 6, 11), layout="transposed"),
    _focal("transposed-dense", (9, 6, 11), layout="transposed", target="binary"),
    _focal(
        "channels-last",
        (2, 6, 5, 9),
        layout="channels_last",
        target="soft",
        target_dtype=torch.float32,
    ),
    _focal("channels-last-index", (2, 6, 5, 9), layout="channels_last"),
    _focal("sliced", (31, 18), layout="sliced"),
    _focal("expanded", (31, 18), layout="expanded"),
    _focal("offset", (31, 80), layout="offset"),
    _focal("offset-dense", (31, 83), layout="offset", target="binary", target_dtype=torch.uint8),
    # Logits at the ends of the number range, and where the two branches of the logistic meet.
    *(
        _focal(
            f"extreme-{t}-gamma-{g}",
            (8, 64),
            logits="extreme",
            target=t,
            target_dtype=d,
            options={"gamma": g},
        )
        for g in (0.5, 2.0)
        for t, d in (("index", torch.int64), ("soft", torch.float32))
    ),
    _focal("zero-logits", (8, 9), logits="zero", options={"gamma": 0.5}),
    # Nothing at all.
    _focal("empty", (0, 5)),
    _focal("empty-none", (0, 5), options={"reduction": "none"}),
    _focal("empty-dense", (3, 0), target="soft", target_dtype=torch.float32),
]
