"""Sigmoid focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks
from .common import arithmetic, reduce


def _one_hot(
    input: Tensor, target: Tensor, ignore_index: int, function: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Class indices (C or -1: background) as 0/1 targets, valid rows, and out-of-range rows."""
    classes = input.size(-1)
    valid = target != ignore_index
    bad = _checks.is_bad_label(target, classes, ignore_index, background=True)
    if not torch.compiler.is_compiling() and input.device.type == "cpu" and bool(bad.any()):
        raise _checks.label_error(function, int(target[bad][0]), classes, background=True)
    hot = target.unsqueeze(-1) == torch.arange(classes, device=input.device)
    return hot, valid.unsqueeze(-1).expand_as(input), bad.unsqueeze(-1)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid focal loss; see :func:`fusedloss.sigmoid_focal_loss`."""
    x = arithmetic(input)
    if not target.is_floating_point():
        target = target.long()  # a uint8 label must not be compared with a negative number as uint8
    bad = None
    if target.dim() == input.dim():
        valid = target != ignore_index
        t = target.to(x.dtype)
    else:
        hot, valid, bad = _one_hot(input, target, ignore_index, "sigmoid_focal_loss")
        t = hot.to(x.dtype)
    x = torch.where(valid, x, 0.0)
    t = torch.where(valid, t, 0.0)
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / 2

    log_p, log_not_p = F.logsigmoid(x), F.logsigmoid(-x)
    ce = -(t * log_p + (1 - t) * log_not_p)
    if gamma == int(gamma):
        focus = (torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t) ** int(gamma)
    else:  # from log q, whose derivatives stay finite where q vanishes
        tiny = torch.finfo(x.dtype).tiny
        log_t, log_not_t = t.clamp(min=tiny).log(), (1 - t).clamp(min=tiny).log()
        terms = torch.stack((log_p + log_not_t, log_not_p + log_t))
        focus = torch.exp(gamma * torch.logsumexp(terms, dim=0))
    loss = focus * ce
    if alpha is not None:
        a = torch.as_tensor(alpha, dtype=x.dtype, device=x.device)
        loss = loss * torch.where(a < 0, 1.0, a * t + (1 - a) * (1 - t))
    if weight is not None:
        loss = loss * weight.to(x.dtype)
    if bad is not None:
        loss = loss * torch.where(bad, torch.nan, 1.0)  # the gradient of the row is NaN as well
    loss = torch.where(valid, loss, 0.0)
    return reduce(loss, valid, reduction, normalizer)
