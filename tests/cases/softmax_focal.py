"""Rows of the softmax focal loss. Layouts and class counts are those that its own numbers for backward
could get wrong; the engine is the cross entropy's.
"""

from __future__ import annotations

from typing import Any

import fusedloss
import torch
from emulated import SoftmaxFocal
from fusedloss import reference

from .table import Case, Loss, uniform

SOFTMAX_FOCAL = Loss(
    "softmax_focal",
    fusedloss.softmax_focal_loss,
    reference.softmax_focal_loss,
    SoftmaxFocal,
    "softmax_focal_fwd",
    "softmax_focal_bwd",
)
# Each compiled exponent, and real ones on both sides of 1.
_GAMMAS = (0.0, 0.3, 0.5, 1.0, 2.0, 2.5)


def _focal(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    return Case(f"softmax-focal-{name}", SOFTMAX_FOCAL, shape, **kwargs)


CASES = [
    # [N, C]: one class, narrower than a vector, aligned and odd rows, several rounds of a block.
    *(
        _focal(f"{classes}-classes", (rows, classes))
        for rows, classes in (
            *((301, 1), (129, 2), (65, 3), (37, 7), (19, 19)),
            *((7, 91), (5, 150), (3, 1000), (3, 1001), (1, 21841)),
        )
    ),
    _focal("128256-classes", (2, 128256), emulated=False),
    # [N, C, inner]: inner narrower than a vector, and no multiple of a vector or a warp.
    *(
        _focal("x".join(map(str, shape)), shape)
        for shape in ((1, 1, 33), (2, 7, 2), (2, 19, 527), (2, 150, 5))
    ),
    *(_focal(f"gamma-{g}", (41, 7), options={"gamma": g}, ignored=0.2) for g in _GAMMAS),
    *(
        _focal(f"gamma-{g}-smoothing", (3, 7, 13), options={"gamma": g, "label_smoothing": 0.1})
        for g in _GAMMAS
    ),
    *(_focal(f"1-class-gamma-{g}", (33, 1), options={"gamma": g}) for g in (0.0, 0.5, 1.0)),
    # Layouts.
    _focal("no-batch", (7,)),
    _focal("no-batch-none", (7,), options={"reduction": "none"}),
    _focal("5d", (2, 3, 4, 3, 5)),
    _focal("channels-last", (2, 6, 5, 9), layout="channels_last"),
    _focal("transposed", (9, 6, 11), layout="transposed", target_layout="transposed"),
    _focal("permuted", (2, 5, 6, 7), layout="permuted"),
    _focal("sliced", (3, 5, 18), layout="sliced", target_layout="sliced"),
    _focal("expanded", (31, 18), layout="expanded"),
    _focal("offset", (31, 83), layout="offset", target_layout="offset"),
    _focal("many-rows", (4097, 4), options={"gamma": 1.0}),
    # Label dtypes and ignored rows.
    _focal("int32", (65, 10), target_dtype=torch.int32, ignored=0.3),
    _focal("int16", (3, 10, 21), target_dtype=torch.int16, ignored=0.3),
    _focal(
        "uint8", (3, 19, 33), target_dtype=torch.uint8, ignored=0.3, options={"ignore_index": 255}
    ),
    _focal("ignore-a-class", (129, 5), ignored=0.2, options={"ignore_index": 0}),
    _focal("all-ignored", (12, 5), ignored=1.1),
    # Balancing: one factor for every class, one for each.
    _focal("alpha", (41, 7), options={"alpha": 0.25}),
    _focal("alpha-none", (41, 7), options={"alpha": 0.6, "reduction": "none"}),
    _focal("alpha-per-class", (41, 7), options={"alpha": uniform(7)}, ignored=0.2),
    _focal("alpha-per-class-3d", (3, 7, 13), options={"alpha": uniform(7), "gamma": 0.5}),
    _focal(
        "alpha-smoothing",
        (41, 7),
        options={"alpha": uniform(7), "label_smoothing": 0.2, "gamma": 1.0},
        ignored=0.2,
    ),
    _focal("alpha-half", (41, 7), options={"alpha": lambda g: torch.rand(7, generator=g).half()}),
    _focal("smoothing-1", (41, 7), options={"label_smoothing": 1.0}),
    # Reductions and divisors.
    _focal("sum", (41, 12), options={"reduction": "sum"}, ignored=0.2),
    _focal("none", (41, 12), options={"reduction": "none"}, ignored=0.2),
    _focal("none-3d", (3, 12, 19), options={"reduction": "none"}, ignored=0.2),
    _focal("normalizer", (41, 12), options={"normalizer": 17}),
    _focal("normalizer-tensor", (3, 12, 5), options={"normalizer": lambda _: torch.tensor(17)}),
    _focal("normalizer-sum", (41, 12), options={"normalizer": 17, "reduction": "sum"}),
    _focal("normalizer-all-ignored", (41, 12), options={"normalizer": 17.0}, ignored=1.1),
    # Logits at the ends of the number range, far from 0, and all the same.
    *(
        _focal(f"extreme-gamma-{g}{name}", (8, 64), logits="extreme", options={"gamma": g} | how)
        for g in (0.0, 0.5, 1.0, 2.0)
        for name, how in (("", {}), ("-smoothing", {"label_smoothing": 0.1}))
    ),
    _focal("shifted", (41, 12), logits="shifted", options={"gamma": 0.5}),
    _focal("zero-logits", (8, 9), logits="zero", options={"gamma": 0.5}),
    # Nothing at all.
    _focal("empty", (0, 5)),
    _focal("empty-none", (0, 5), options={"reduction": "none"}),
    _focal("empty-pixels", (3, 5, 0)),
]
