"""Cross entropy and negative log-likelihood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import class_dim
from .common import along_classes, arithmetic, labels, pick


def _row_nll(
    log_p: Tensor, label: Tensor, w: Tensor | None, share: float, others: bool, dim: int
) -> Tensor:
    """(1 - e) w_t nll_t plus the smoothing's sum, for class indices."""
    terms = -log_p if w is None else -log_p * w
    loss = pick(terms, label, dim)
    if not share:
        return loss
    classes = log_p.size(dim)
    if others:
        index = along_classes(torch.arange(classes, device=label.device), label, dim, log_p.dim())
        terms = torch.where(index == label.unsqueeze(dim), 0.0, terms)
    return (1 - share) * loss + share / (classes - 1 if others else classes) * terms.sum(dim)


def _row_cross_entropy(
    log_p: Tensor, target: Tensor, w: Tensor | None, share: float, others: bool, dim: int
) -> Tensor:
    """The cross entropy of smoothed probability targets."""
    t, classes = target.to(log_p.dtype), log_p.size(dim)
    if share:
        t = t * (1 - share) + ((1 - t) / (classes - 1) if others else 1 / classes) * share
    terms = -t * log_p if w is None else -t * log_p * w
    return terms.sum(dim)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
) -> Tensor:
    """Cross entropy; see :func:`fusedloss.cross_entropy`."""
    x, dim = arithmetic(input), class_dim(input)
    others = smoothing == "others"
    # A single class leaves no wrong class to give a share to.
    share = 0.0 if others and x.size(dim) == 1 else label_smoothing
    w = None if weight is None else along_classes(weight, x, dim, x.dim())
    if target.shape == input.shape:
        loss = _row_cross_entropy(F.log_softmax(x, dim), target, w, share, others, dim)
        valid = torch.ones_like(loss, dtype=torch.bool)
        counted = torch.ones_like(loss)
    else:
        label, valid, bad = labels("cross_entropy", input, target, ignore_index)
        x = torch.where(valid.unsqueeze(dim), x, 0.0)  # what an ignored row holds has no effect
        loss = _row_nll(F.log_softmax(x, dim), label, w, share, others, dim)
        loss = loss * torch.where(bad, torch.nan, 1.0)  # the gradient of the row is NaN as well
        loss = torch.where(valid, loss, 0.0)
        counted = torch.ones_like(loss) if weight is None else weight.to(x.dtype)[label]
        counted = torch.where(valid, counted, 0.0)
    if reduction == "mean":
        loss = loss.sum() / counted.sum()
    if z_loss:
        by_row = torch.where(valid, z_loss * torch.logsumexp(x, dim).square(), 0.0)
        loss = loss + (by_row.sum() / valid.sum() if reduction == "mean" else by_row)
    return loss.sum() if reduction == "sum" else loss


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood; see :func:`fusedloss.nll_loss`."""
    label, valid, bad = labels("nll_loss", input, target, ignore_index)
    # Only the entries of the labels are read and converted; nothing of the input's size is made.
    picked = arithmetic(pick(input, label, class_dim(input)))
    loss = -torch.where(valid, picked, 0.0)
    factor = torch.ones_like(loss) if weight is None else weight.to(loss.dtype)[label]
    factor = torch.where(valid, factor, 0.0)
    loss = loss * factor * torch.where(bad, torch.nan, 1.0)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / factor.sum()
