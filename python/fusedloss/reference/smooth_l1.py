"""Smooth L1 loss."""

from __future__ import annotations

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
    loss = F.smooth_l1_loss(x, target.to(x.dtype), beta=beta, reduction="none")
    return reduce_all(loss if weight is None else loss * weight.to(x.dtype), reduction, normalizer)
