"""Rows of the cross entropy."""

from __future__ import annotations

from typing import Any

import fusedloss
import torch
from emulated import CrossEntropy
from fusedloss import reference

from .table import Case, Loss, uniform

CROSS_ENTROPY = Loss(
    "cross_entropy",
    fusedloss.cross_entropy,
    reference.cross_entropy,
    CrossEntropy,
    "cross_entropy_fwd",
    "cross_entropy_bwd",
)


def _ce(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    return Case(f"ce-{name}", CROSS_ENTROPY, shape, **kwargs)


def _soft(name: str, shape: tuple[int, ...], **kwargs: Any) -> Case:
    kwargs.setdefault("target_dtype", torch.float32)
    return _ce(f"soft-{name}", shape, target="probabilities", **kwargs)


def _zero_for_one_class(generator: torch.Generator) -> torch.Tensor:
    weight = torch.rand(7, generator=generator)
    weight[3] = 0.0
    return weight


# One row of classes beside another: [N, C].
_ROWS = [
    (301, 1),  # a single class: loss 0, several tasks and blocks of rows
    (129, 2),
    (65, 3),  # narrower than a vector
    (37, 7),
    (19, 19),
    (7, 91),  # detection: odd, longer than a vector
    (5, 150),  # segmentation of indoor scenes
    (3, 1000),  # every row aligned to 16 bytes
    (3, 1001),  # every row differently aligned
    (1, 21841),  # one block of threads goes several times over a row
]
# Classes apart by the inner size: [N, C, inner].
_INNER = [
    (1, 1, 527),  # one class, and an inner size past a block of 512
    (3, 2, 5),
    (2, 7, 2),  # inner narrower than a vector
    (2, 19, 527),  # street scenes; neither a multiple of a vector nor of a warp
    (1, 91, 5),
    (2, 150, 5),
    (1, 1000, 2),
    (2, 3, 1),  # an inner size of 1 is the layout [N, C]
]
_WEIGHTED = {"weight": uniform(7)}

CASES = [
    *(_ce(f"{classes}-classes", (rows, classes)) for rows, classes in _ROWS),
    _ce("128256-classes", (2, 128256), emulated=False),
    *(_ce("x".join(map(str, shape)), shape) for shape in _INNER),
    # Layouts: without a batch dimension, two and three dimensions of pixels, strides.
    _ce("no-batch", (7,)),
    _ce("no-batch-1-class", (1,)),
    _ce("no-batch-ignored", (7,), ignored=1.1),
    _ce("4d", (2, 5, 6, 9)),
    _ce("5d", (2, 3, 4, 3, 5)),
    _ce("channels-last", (2, 6, 5, 9), layout="channels_last"),
    _ce("channels-last-5d", (2, 3, 4, 3, 5), layout="channels_last"),
    _ce("transposed", (37, 20), layout="transposed"),
    _ce("transposed-3d", (9, 6, 11), layout="transposed"),
    _ce("permuted", (2, 5, 6, 7), layout="permuted", target_layout="permuted"),
    _ce("sliced", (31, 18), layout="sliced"),
    _ce("sliced-3d", (3, 5, 18), layout="sliced", target_layout="sliced"),
    _ce("expanded", (31, 18), layout="expanded"),
    _ce("expanded-3d", (5, 6, 13), layout="expanded", target_layout="expanded"),
    _ce("offset", (31, 80), layout="offset", target_layout="offset"),
    _ce("offset-3d", (3, 4, 64), layout="offset", target_layout="offset"),
    _ce("transposed-labels", (5, 4, 6, 7), target_layout="transposed"),
    _ce("many-rows", (4097, 4)),  # several tasks of the CPU engine, several blocks of the CUDA one
    # Label dtypes and ignored rows.
    _ce("int32", (65, 10), target_dtype=torch.int32, ignored=0.3),
    _ce("int16", (3, 10, 21), target_dtype=torch.int16, ignored=0.3),
    _ce("uint8", (3, 19, 33), target_dtype=torch.uint8, ignored=0.3, options={"ignore_index": 255}),
    _ce("ignored", (129, 20), ignored=0.4),
    _ce("ignored-3d", (3, 6, 65), ignored=0.4),
    _ce("ignore-a-class", (129, 5), ignored=0.2, options={"ignore_index": 0}),
    _ce("all-ignored", (12, 5), ignored=1.1),
    _ce("all-ignored-sum", (12, 5), ignored=1.1, options={"reduction": "sum"}),
    _ce("all-ignored-none", (2, 5, 9), ignored=1.1, options={"reduction": "none"}),
    _ce("all-ignored-z", (12, 5), ignored=1.1, options={"z_loss": 0.1}),
    # Class weights.
    _ce("weight", (41, 7), options=_WEIGHTED),
    _ce("weight-ignored", (3, 7, 33), options=_WEIGHTED, ignored=0.3),
    _ce("weight-none", (41, 7), options={**_WEIGHTED, "reduction": "none"}, ignored=0.3),
    _ce("weight-sum", (41, 7), options={**_WEIGHTED, "reduction": "sum"}),
    _ce("weight-with-a-zero", (41, 7), options={"weight": _zero_for_one_class}),
    _ce("weight-half", (41, 7), options={"weight": lambda g: torch.rand(7, generator=g).half()}),
    _ce(
        "weight-double", (41, 7), options={"weight": lambda g: torch.rand(7, generator=g).double()}
    ),
    _ce("weight-1000-classes", (3, 1000), options={"weight": uniform(1000)}),
    # Smoothing in both conventions, alone and with weights, ignored rows and every reduction.
    *(
        _ce(f"{way}-{e}", (41, 7), options={"label_smoothing": e, "smoothing": way})
        for way in ("uniform", "others")
        for e in (0.1, 0.5, 1.0)  # 1: nothing is left for the label
    ),
    *(
        _ce(f"{way}-{'x'.join(map(str, shape))}", shape, options={"label_smoothing": 0.1} | how)
        for way, how in (("uniform", {}), ("others", {"smoothing": "others"}))
        for shape in ((33, 1), (33, 2), (5, 19, 5), (3, 1001), (1, 91, 33))
    ),
    *(
        _ce(
            f"weight-{way}-{reduction}",
            (5, 7, 9),
            options={
                **_WEIGHTED,
                "label_smoothing": 0.2,
                "smoothing": way,
                "reduction": reduction,
            },
            ignored=0.3,
        )
        for way in ("uniform", "others")
        for reduction in ("mean", "sum", "none")
    ),
    # The penalty on the log of the normaliser: its own divisor beside a weighted mean.
    *(
        _ce(f"z-{reduction}", (41, 7), options={"z_loss": 0.1, "reduction": reduction}, ignored=0.3)
        for reduction in ("mean", "sum", "none")
    ),
    *(
        _ce(
            f"z-weight-{reduction}",
            (3, 7, 11),
            options={
                **_WEIGHTED,
                "z_loss": 0.1,
                "reduction": reduction,
                "label_smoothing": 0.1,
            },
            ignored=0.3,
        )
        for reduction in ("mean", "sum", "none")
    ),
    _ce("z-1-class", (33, 1), options={"z_loss": 0.1}),
    # Reductions.
    _ce("sum", (41, 12), options={"reduction": "sum"}),
    _ce("none", (41, 12), options={"reduction": "none"}, ignored=0.2),
    _ce("none-3d", (3, 12, 19), options={"reduction": "none"}, ignored=0.2),
    _ce("none-no-batch", (12,), options={"reduction": "none"}),
    _ce("none-channels-last", (2, 6, 5, 9), options={"reduction": "none"}, layout="channels_last"),
    # Probability targets, in dtypes of their own.
    *(
        _soft(str(dtype).removeprefix("torch."), (41, 7), target_dtype=dtype)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    ),
    *(
        _soft("x".join(map(str, shape)), shape)
        for shape in ((33, 1), (33, 2), (2, 1001), (2, 3, 527), (2, 19, 5), (1, 2, 3, 4, 5))
    ),
    _soft("no-batch", (7,)),
    _soft("sum", (41, 7), options={"reduction": "sum"}),
    _soft("none", (3, 7, 13), options={"reduction": "none"}),
    _soft("weight", (41, 7), options=_WEIGHTED),
    _soft("weight-none", (3, 7, 13), options={**_WEIGHTED, "reduction": "none"}),
    *(
        _soft(
            f"{way}{'-weight' if weight else ''}",
            (3, 7, 13),
            options={"label_smoothing": 0.2, "smoothing": way, **weight},
        )
        for way in ("uniform", "others")
        for weight in ({}, _WEIGHTED)
    ),
    _soft("others-1-class", (33, 1), options={"label_smoothing": 0.2, "smoothing": "others"}),
    _soft("uniform-1-class", (33, 1), options={"label_smoothing": 0.2}),
    _soft("z", (41, 7), options={"z_loss": 0.1, "ignore_index": 1}),
    _soft(
        "z-weight-smoothing", (41, 7), options={**_WEIGHTED, "z_loss": 0.1, "label_smoothing": 0.1}
    ),
    _soft("z-sum", (41, 7), options={"z_loss": 0.1, "reduction": "sum"}),
    _soft("transposed", (9, 6, 11), layout="transposed"),
    _soft("transposed-target", (9, 6, 11), target_layout="transposed"),
    _soft("channels-last", (2, 6, 5, 9), layout="channels_last", target_layout="channels_last"),
    _soft("expanded-target", (31, 18), target_layout="expanded"),
    _soft("offset", (31, 17), layout="offset", target_layout="offset"),
    # Logits at the ends of the number range, far from 0, and all the same.
    _ce("extreme", (8, 64), logits="extreme"),
    _ce("extreme-3d", (2, 16, 16), logits="extreme", options={"reduction": "none"}),
    _ce("extreme-smoothing", (8, 64), logits="extreme", options={"label_smoothing": 0.1}),
    _ce("extreme-z", (8, 64), logits="extreme", options={"z_loss": 1e-4}),
    _soft("extreme", (8, 64), logits="extreme"),
    _ce("shifted", (41, 12), logits="shifted"),
    _ce("shifted-3d", (3, 12, 19), logits="shifted", options={"label_smoothing": 0.1}),
    _soft("shifted", (41, 12), logits="shifted"),
    _ce("zero-logits", (8, 9), logits="zero"),
    # Nothing at all.
    _ce("empty", (0, 5)),
    _ce("empty-sum", (0, 5), options={"reduction": "sum", "label_smoothing": 0.1}),
    _ce("empty-none", (0, 5), options={"reduction": "none"}),
    _ce("empty-pixels", (3, 5, 0)),
    _ce("empty-weight", (0, 7), options=_WEIGHTED),
    _soft("empty", (0, 5)),
]
