"""Softmax focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import class_dim
from .common import arithmetic, labels, pick, reduce


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Softmax focal loss; see :func:`fusedloss.softmax_focal_loss`."""
    x, dim = arithmetic(input), class_dim(input)
    label, valid, bad = labels("softmax_focal_loss", input, target, ignore_index)
    x = torch.where(valid.unsqueeze(dim), x, 0.0)
    x = x - x.amax(dim, keepdim=True).detach()
    # p_t = sigmoid(-z) and 1 - p_t = sigmoid(z), where z comes from the other classes: neither cancels
    # nor leaves the number range, and log(1 - p_t) has finite derivatives where 1 - p_t vanishes. The
    # floor stands for -inf, of which there are no derivatives.
    floor = torch.finfo(x.dtype).min / 2
    others = x.clamp(min=floor).scatter(dim, label.unsqueeze(dim), floor)
    z = torch.logsumexp(others, dim) - pick(x, label, dim)
    loss = -F.logsigmoid(-z)
    if label_smoothing:
        spread = label_smoothing / x.size(dim)
        loss = (1 - label_smoothing) * loss - spread * F.log_softmax(x, dim).sum(dim)
    if gamma:
        loss = torch.exp(gamma * F.logsigmoid(z)) * loss
    if alpha is not None:
        a = torch.as_tensor(alpha, dtype=x.dtype, device=x.device)
        loss = loss * (a[label] if a.numel() > 1 else a.reshape(()))
    loss = loss * torch.where(bad, torch.nan, 1.0)  # the gradient of the row is NaN as well
    loss = torch.where(valid, loss, 0.0)
    return reduce(loss, valid, reduction, normalizer)
