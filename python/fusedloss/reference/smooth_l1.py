"""Smooth L1 loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import arithmetic, reduce_all


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    beta: float = 1.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Smooth L1 loss, with ``beta`` 0 the L1 loss; see :func:`fusedloss.smooth_l1_loss`."""
    x = arithmetic(input)
    d = x - target.to(x.dtype)
    loss = F.smooth_l1_loss(d, torch.zeros_like(d), beta=beta, reduction="none")
    if beta == 0.0:  # torch's gradient of NaN would be 0
        loss = loss + torch.where(d.isnan(), d, 0.0).square()
    return reduce_all(loss if weight is None else loss * weight.to(x.dtype), reduction, normalizer)
