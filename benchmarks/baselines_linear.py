"""A linear layer with ArcFace behind it, from features to the loss: whole, and without the logits.

Arguments of every form: features [N, D], weight [C, D], labels int64 [N]; both sides are normalised.
The loss is that of baselines_margin_softmax.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from . import baselines_margin_softmax as margin_softmax
from .baselines import LossFn, optional
from .baselines_margin_softmax import MARGIN, SCALE
from .workload import Inputs

UNCHUNKED = "unchunked"


def eager(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """As most write it."""
    cosine = F.linear(F.normalize(features), F.normalize(weight))
    return margin_softmax.eager(cosine, labels)


@functools.cache
def _module(package: Any, classes: int, width: int) -> Any:
    """An `ArcFaceLoss` without memory: each call brings its weight."""
    with torch.device("meta"):
        return package(classes, width, margin=MARGIN, scale=SCALE)


def contenders() -> dict[str, LossFn]:
    """Eager, the fused module that makes the cosines whole, and the fused loss that does not."""
    found: dict[str, LossFn] = {"eager": eager}
    package = optional("fusedloss", "ArcFaceLoss")
    if package is not None:

        def unchunked(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            module = _module(package, *weight.shape)
            value: Tensor = functional_call(module, {"weight": weight}, (features, labels))
            return value

        found[UNCHUNKED] = unchunked
    function = optional("fusedloss", "linear_margin_softmax_loss")
    if function is not None:

        def fused(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = function(features, weight, labels, scale=SCALE, m2=MARGIN)
            return value

        found["fusedloss"] = fused
    return found


def products(inputs: Inputs) -> Callable[[], object]:
    """The yardstick: the three matrix products that every form needs, and nothing else."""
    features, weight = inputs.logits.detach(), inputs.args[0].detach()

    def run() -> tuple[Tensor, Tensor]:
        logits = features @ weight.t()
        return logits @ weight, logits.t() @ features

    return run


def reference(
    features: Tensor, weight: Tensor, labels: Tensor, rows_at_once: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """Value (0-d), gradients of features and weight in float64, from slices of the features.

    A side x / |x| = u turns the gradient g of u into (g - (g . u) u) / |x|.
    """
    rows, norm = _unit(features)
    classes, class_norm = _unit(weight)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    of_rows, of_classes = torch.empty_like(rows), torch.zeros_like(classes)
    for start in range(0, len(rows), rows_at_once):
        part = slice(start, start + rows_at_once)
        losses, slopes = margin_softmax.margin_rows(rows[part] @ classes.t(), labels[part])
        slopes /= len(rows)
        total += losses.sum() / len(rows)
        of_rows[part] = slopes @ classes
        of_classes.addmm_(slopes.t(), rows[part])
    return total, _through(of_rows, rows, norm), _through(of_classes, classes, class_norm)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().double()
    norm = x.norm(dim=1, keepdim=True)
    return x / norm, norm


def _through(gradient: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    return (gradient - (gradient * unit).sum(1, keepdim=True) * unit) / norm
