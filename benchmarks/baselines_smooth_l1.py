"""Smooth L1 loss of boxes as detectors write it, and fused. Arguments of every form: deltas [N, 4],
target [N, 4], weight [N, 1], normalizer (0-d).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, fused

BETA = 1.0 / 9.0


def eager(deltas: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor) -> Tensor:
    """Weighted losses of all anchors over the number of positive ones."""
    loss = F.smooth_l1_loss(deltas, target, beta=BETA, reduction="none")
    return (loss * weight).sum() / normalizer


def contenders() -> dict[str, LossFn]:
    """All forms."""
    return {"eager": eager, **fused("smooth_l1_loss", ("weight", "normalizer"), beta=BETA)}


def reference(
    deltas: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor
) -> tuple[Tensor, Tensor]:
    """Value (0-d) and gradient [N, 4] in float64, of the clipped difference."""
    d, w = deltas.detach().double() - target.double(), weight.double() / normalizer.double()
    slope = (d / BETA).clamp_(-1.0, 1.0)
    return (w * slope * (d - 0.5 * BETA * slope)).sum(), w * slope
