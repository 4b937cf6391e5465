"""ArcFace (Deng et al. 2019) on given cosines: as most write it, as packages have it, and fused.

Arguments of every form: cosine [N, C], labels int64 [N]. Scale 64, margin 0.5 rad; where
theta > pi - m the target logit becomes cosine - m sin m. insightface's form is timed beside them,
though it computes another function: it has no such case, and its gradient ignores the margin.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, Reference, optional

SCALE = 64.0
MARGIN = 0.5

INSIGHTFACE = "insightface"
INSIGHTFACE_COMPUTES = (
    "cos(theta + m) for every theta, with the gradient of a loss without a margin"
)
PML = "pml"


def eager(cosine: Tensor, labels: Tensor) -> Tensor:
    """The widespread one: phi for every class, and a one-hot matrix that picks it for the target.

    The one-hot matrix is float32, as it is there, so that half cosines leave half precision with it.
    """
    sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
    phi = cosine * math.cos(MARGIN) - sine * math.sin(MARGIN)
    beyond = cosine - math.sin(math.pi - MARGIN) * MARGIN
    phi = torch.where(cosine > math.cos(math.pi - MARGIN), phi, beyond)
    one_hot = torch.zeros(cosine.size(), device=cosine.device)
    one_hot.scatter_(1, labels.view(-1, 1), 1)
    output = (one_hot * phi) + ((1.0 - one_hot) * cosine)
    return F.cross_entropy(output * SCALE, labels)


def insightface(cosine: Tensor, labels: Tensor) -> Tensor:
    """The margin of insightface's `CombinedMarginLoss`, after the conversion and clamp before it.

    Index instead of one-hot, but the angle of every class, and all of it behind autograd's back.
    """
    logits = _at_least_float(cosine).clamp(-1, 1)
    row = torch.where(labels != -1)[0]
    target = logits[row, labels[row]]
    with torch.no_grad():
        target.arccos_()
        logits.arccos_()
        logits[row, labels[row]] = target + MARGIN
        logits.cos_()
    return F.cross_entropy(logits * SCALE, labels)


def _at_least_float(cosine: Tensor) -> Tensor:
    return cosine.float() if cosine.dtype.itemsize < 4 else cosine


@functools.cache
def _on_cosines(package: Any, classes: int) -> Any:
    """pytorch-metric-learning's loss with its product left out: it is given the cosines.

    Its class weight stays unused, with one element a class.
    """
    loss = package(classes, 1, margin=math.degrees(MARGIN), scale=SCALE)
    loss.get_cosine = lambda cosine: cosine
    return loss


def contenders() -> dict[str, LossFn]:
    """Eager, insightface's form, fused, and pytorch-metric-learning's where it is installed."""
    found: dict[str, LossFn] = {"eager": eager, INSIGHTFACE: insightface}
    package = optional("pytorch_metric_learning.losses", "ArcFaceLoss")
    if package is not None:

        def metric_learning(cosine: Tensor, labels: Tensor) -> Tensor:
            # All in bfloat16 its largest gradient is off by 9 % at 256 x 100,000.
            loss = _on_cosines(package, cosine.shape[1])
            value: Tensor = loss(_at_least_float(cosine), labels)
            return value

        found[PML] = metric_learning
    function = optional("fusedloss", "arcface_loss")
    if function is not None:

        def fused(cosine: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = function(cosine, labels, margin=MARGIN, scale=SCALE)
            return value

        found["fusedloss"] = fused
    return found


def margin_rows(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [n] and its gradient [n, C] for float64 cosines [n, C], one row each; through the angle.

    Target logit s cos(theta + m), slope in the cosine s sin(theta + m) / sin(theta); where
    theta > pi - m it is s (cos(theta) - m sin m), slope s.
    """
    target = x.gather(1, labels[:, None])
    theta = target.acos()
    beyond = theta > math.pi - MARGIN
    moved = torch.where(beyond, target - MARGIN * math.sin(MARGIN), (theta + MARGIN).cos())
    slope = torch.where(beyond, 1.0, (theta + MARGIN).sin() / theta.sin())
    return _cross_entropy_rows(x, labels, moved, slope)


def _straight_through_rows(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    moved = (x.gather(1, labels[:, None]).acos() + MARGIN).cos()
    return _cross_entropy_rows(x, labels, moved, torch.ones_like(moved))


def _cross_entropy_rows(
    x: Tensor, labels: Tensor, moved: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Of s x with the target's column replaced by s `moved`, whose slope in x is s `slope`."""
    column = labels[:, None]
    logits = SCALE * x.scatter(1, column, moved)
    lse = logits.logsumexp(1, keepdim=True)
    gradient = SCALE * (logits - lse).exp_()
    gradient.scatter_add_(1, column, torch.full_like(moved, -SCALE))
    gradient.scatter_(1, column, gradient.gather(1, column) * slope)
    return (lse - SCALE * moved)[:, 0], gradient


def reference(straight_through: bool = False, rows_at_once: int = 32) -> Reference:
    """Value (0-d) and gradient [N, C] in float64, slice by slice; `straight_through`: insightface's."""
    rows = _straight_through_rows if straight_through else margin_rows

    def value_and_gradient(cosine: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float64, device=cosine.device)
        gradient = torch.empty(cosine.shape, dtype=torch.float64, device=cosine.device)
        for start in range(0, cosine.shape[0], rows_at_once):
            part = slice(start, start + rows_at_once)
            losses, slopes = rows(cosine.detach()[part].double(), labels[part])
            total += losses.sum() / cosine.shape[0]
            gradient[part] = slopes / cosine.shape[0]
        return total, gradient

    return value_and_gradient
