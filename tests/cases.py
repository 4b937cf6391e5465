"""The one table of cases. Every check of test_losses.py and test_autograd.py runs over its rows; a new
loss adds rows here, not files.

A row says how inputs are made; the checks decide the dtype, the backend and the schedule. Sizes are
small enough for the emulated GPU and chosen to reach the edges named beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fusedloss
import torch
from emulated import SigmoidFocal
from fusedloss import reference
from torch import Tensor

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Loss:
    """A loss in its three forms: public function, eager reference, emulated CUDA."""

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    emulated: type
    forward_op: str
    backward_op: str


SIGMOID_FOCAL = Loss(
    "sigmoid_focal",
    fusedloss.sigmoid_focal_loss,
    reference.sigmoid_focal_loss,
    SigmoidFocal,
    "sigmoid_focal_fwd",
    "sigmoid_focal_bwd",
)


@dataclass(frozen=True)
class Case:
    """One row. ``options`` are keyword arguments; callables in it are given the generator."""

    name: str
    loss: Loss
    shape: tuple[int, ...]
    target: str = "index"  # index | binary | soft
    target_dtype: torch.dtype = torch.int64
    layout: str = "contiguous"
    target_layout: str = "contiguous"
    logits: str = "normal"  # normal | extreme | zero
    ignored: float = 0.0  # share of ignored targets
    options: Options = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(input, target, options), the same for the same seed."""
        generator = torch.Generator().manual_seed(seed + 1)
        input = lay_out(self._logits(generator).to(dtype), self.layout)
        options = {
            key: value(generator) if callable(value) else value
            for key, value in self.options.items()
        }
        target = self._target(generator, options.get("ignore_index", -100))
        return input, lay_out(target, self.target_layout), options

    def _logits(self, generator: torch.Generator) -> Tensor:
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.logits == "zero":
            return x * 0
        if self.logits == "extreme":  # to both ends of float16
            sign = torch.where(torch.rand(self.shape, generator=generator) < 0.5, -1.0, 1.0)
            return sign * torch.logspace(-8, 4.81, x.numel(), dtype=torch.float64).view(self.shape)
        return x * 4

    def _target(self, generator: torch.Generator, ignore_index: int) -> Tensor:
        if self.target == "index":
            classes = self.shape[-1]
            low = 0 if self.target_dtype == torch.uint8 else -1  # -1 and C: background
            rows = self.shape[:-1]
            target = torch.randint(low, classes + 1, rows, generator=generator)
        elif self.target == "binary":
            target = (torch.rand(self.shape, generator=generator) < 0.3).long()
        else:
            target = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        target = target.to(self.target_dtype)
        if self.ignored:
            target[torch.rand(target.shape, generator=generator) < self.ignored] = ignore_index
        return target


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "contiguous":
        return x
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every second element along the last dimension
        return torch.stack((x, x + 1), dim=-1).flatten(-2)[..., ::2]
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "offset":  # one element past an aligned address
        return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
    raise ValueError(layout)


def _uniform(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.rand(shape, generator=generator)


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
        for w, o in (("", {}), ("-weight", {"weight": _uniform(5, 1, 1)}))
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
    _focal("alpha-per-class", (41, 12), options={"alpha": _uniform(12)}),
    _focal(
        "alpha-per-class-odd",
        (41, 13),
        target="soft",
        target_dtype=torch.float32,
        options={"alpha": _uniform(13)},
    ),
    _focal("weight-elementwise", (41, 12), options={"weight": _uniform(41, 12)}),
    _focal("weight-per-row", (41, 12), options={"weight": _uniform(41, 1)}),
    _focal(
        "weight-per-class",
        (41, 12),
        options={"weight": _uniform(12)},
        target="soft",
        target_dtype=torch.float32,
    ),
    _focal("weight-middle", (4, 5, 6), options={"weight": _uniform(5, 1)}),
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

BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "names of cases must differ"
