"""What the tests of losses of a linear layer share: variants, inputs, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from fusedloss import linear_cross_entropy, linear_margin_softmax_loss, reference
from tolerances import check_close
from torch import Tensor

CPU = torch.device("cpu")


ROWS, WIDTH, CLASSES = 37, 12, 23


DTYPES = (torch.float32, torch.float64, torch.bfloat16)


REDUCTIONS = ("mean", "sum", "none")


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


each_schedule = pytest.mark.parametrize("schedule", ["forward", "recompute"])


class Variant(NamedTuple):
    """A loss and its options."""

    margin: bool
    options: dict[str, Any]

    @property
    def centers(self) -> int:
        """Rows of the weight for each class."""
        return int(self.options.get("sub_centers", 1))

    @property
    def ignored(self) -> int:
        """The label of ignored rows."""
        return int(self.options.get("ignore_index", -1 if self.margin else -100))

    def loss(self, inputs: list[Tensor], **options: Any) -> Tensor:
        """The chunked loss of (features, weight, target, bias)."""
        function = linear_margin_softmax_loss if self.margin else linear_cross_entropy
        given = inputs[:3] if self.margin else inputs
        return function(*given, **{**self.options, **options})

    def eager(self, inputs: list[Tensor], **options: Any) -> Tensor:
        """As it is written without this library, in the dtype of the inputs; the logits whole."""
        f, w, target, bias = inputs
        options = {**self.options, **options}
        f = torch.where((target != self.ignored)[:, None], f, 0)
        if not self.margin:
            return reference.cross_entropy(F.linear(f, w, bias), target, **options)
        if options.pop("normalize_features", True):
            f = F.normalize(f)
        if options.pop("normalize_weight", True):
            w = F.normalize(w)
        x = F.linear(f, w).unflatten(1, (-1, options.pop("sub_centers", 1))).max(2).values
        return reference.margin_softmax_loss(x, target, **options)


PER_CLASS = torch.linspace(0.1, 0.6, CLASSES)


VARIANTS = {
    "arcface": Variant(True, {"m2": 0.5}),
    "arcface, no label -1": Variant(True, {"m2": 0.5, "ignore_index": 1}),
    "combined, easy": Variant(
        True, {"m1": 1.1, "m2": 0.3, "m3": 0.2, "easy_margin": True, "scale": 30.0}
    ),
    "by class": Variant(True, {"m2": PER_CLASS, "m3": PER_CLASS.flip(0), "scale": 16.0}),
    "straight through": Variant(
        True, {"m1": 1.0, "m2": 0.3, "monotonic": "none", "gradient": "straight_through"}
    ),
    "smoothed": Variant(True, {"m3": 0.35, "label_smoothing": 0.1, "scale": 20.0}),
    "filtered": Variant(True, {"m3": 0.35, "filter_threshold": 0.3, "scale": 20.0}),
    "sub-centers": Variant(True, {"m2": 0.4, "sub_centers": 3}),
    "modified softmax": Variant(True, {"scale": 1.0, "normalize_features": False}),
    "plain weight": Variant(True, {"scale": 4.0, "m3": 0.1, "normalize_weight": False}),
    "cross entropy": Variant(False, {}),
    "cross entropy, ignored 1": Variant(False, {"ignore_index": 1}),
    "uniform, z": Variant(False, {"label_smoothing": 0.1, "z_loss": 0.02}),
    "others": Variant(False, {"label_smoothing": 0.2, "smoothing": "others"}),
}


each_variant = pytest.mark.parametrize("name", VARIANTS)


def make(
    variant: Variant,
    dtype: torch.dtype = torch.float64,
    *,
    rows: int = ROWS,
    classes: int = CLASSES,
) -> list[Tensor]:
    """(features, weight, target, bias) with every fifth row ignored."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    target = torch.randint(0, classes, (rows,), generator=generator)
    target[::5] = variant.ignored
    weight = 0.3 * normal(classes * variant.centers, WIDTH)
    return [normal(rows, WIDTH), weight, target, normal(classes)]


def leaves(inputs: list[Tensor], variant: Variant) -> list[Tensor]:
    """The inputs as leaves, and among them those with a gradient."""
    return [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]


def gradients(
    loss: Callable[..., Tensor],
    variant: Variant,
    inputs: list[Tensor],
    upstream: Tensor | None,
    **options: Any,
) -> list[Tensor]:
    """The loss and the gradients of features, weight and, of cross entropy, bias."""
    f, w, target, b = leaves(inputs, variant)
    value = loss([f, w, target, b], **options)
    if upstream is not None:
        upstream = upstream.to(value.dtype)
    wrt = [f, w] if variant.margin else [f, w, b]
    return [value.detach(), *torch.autograd.grad(value, wrt, upstream)]


def wide(inputs: list[Tensor]) -> list[Tensor]:
    """The same values in float64."""
    return [x.double() if x.is_floating_point() else x for x in inputs]


def check_loss(
    variant: Variant, inputs: list[Tensor], reduction: str, got: Tensor, exact: Tensor
) -> None:
    """A sum may be off by twice the errors of all rows of the eager form in the same dtype."""
    each = variant.eager(inputs, reduction="none").double()
    right = variant.eager(wide(inputs), reduction="none")
    if reduction == "none":
        check_close("loss", got, right, each, terms=float(variant.options.get("scale", 1.0)))
        return
    allowed = float((each - right).abs().sum()) + 64 * torch.finfo(got.dtype).eps * float(
        right.sum()
    )
    if reduction == "mean":
        allowed /= float((inputs[2] != variant.ignored).sum())
    assert abs(float(got.double() - exact)) <= 2 * allowed
