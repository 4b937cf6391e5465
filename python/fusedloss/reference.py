"""The losses in eager PyTorch: written for clarity, differentiable to any order.

They define what the kernels must return, serve devices that have no kernels, and compute second
derivatives and gradients of arguments other than the logits. Half logits are computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._ops import class_dim


def _arithmetic(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _reduce(
    loss: Tensor, valid: Tensor, reduction: str, normalizer: Tensor | float | None
) -> Tensor:
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    count = valid.sum()
    if normalizer is None:
        return total / count.clamp(min=1)
    return torch.where(count > 0, total / normalizer, torch.zeros_like(total))


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
    x = _arithmetic(input)
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
    return _reduce(loss, valid, reduction, normalizer)


def _along_classes(vector: Tensor, like: Tensor, dim: int, dims: int) -> Tensor:
    """A vector [C] in a shape that broadcasts over the logits, in the dtype of `like`."""
    return vector.to(like.dtype).reshape([-1 if d == dim else 1 for d in range(dims)])


def _labels(
    function: str, input: Tensor, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels that can index (0 where they could not), valid rows, and out-of-range rows."""
    target, classes = target.long(), input.size(class_dim(input))
    valid = target != ignore_index
    bad = _checks.is_bad_label(target, classes, ignore_index)
    if not torch.compiler.is_compiling() and input.device.type == "cpu" and bool(bad.any()):
        raise _checks.label_error(function, int(target[bad][0]), classes)
    return torch.where(valid & ~bad, target, 0), valid, bad


def _pick(x: Tensor, label: Tensor, dim: int) -> Tensor:
    """The entry of each row that its label names."""
    return x.gather(dim, label.unsqueeze(dim)).squeeze(dim)


def _row_nll(
    log_p: Tensor, label: Tensor, w: Tensor | None, share: float, others: bool, dim: int
) -> Tensor:
    """(1 - e) w_t nll_t plus the smoothing's sum, for class indices."""
    terms = -log_p if w is None else -log_p * w
    loss = _pick(terms, label, dim)
    if not share:
        return loss
    classes = log_p.size(dim)
    if others:
        index = _along_classes(torch.arange(classes, device=label.device), label, dim, log_p.dim())
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
    x, dim = _arithmetic(input), class_dim(input)
    others = smoothing == "others"
    # A single class leaves no wrong class to give a share to.
    share = 0.0 if others and x.size(dim) == 1 else label_smoothing
    w = None if weight is None else _along_classes(weight, x, dim, x.dim())
    if target.shape == input.shape:
        loss = _row_cross_entropy(F.log_softmax(x, dim), target, w, share, others, dim)
        valid = torch.ones_like(loss, dtype=torch.bool)
        counted = torch.ones_like(loss)
    else:
        label, valid, bad = _labels("cross_entropy", input, target, ignore_index)
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
    label, valid, bad = _labels("nll_loss", input, target, ignore_index)
    # Only the entries of the labels are read and converted; nothing of the input's size is made.
    picked = _arithmetic(_pick(input, label, class_dim(input)))
    loss = -torch.where(valid, picked, 0.0)
    factor = torch.ones_like(loss) if weight is None else weight.to(loss.dtype)[label]
    factor = torch.where(valid, factor, 0.0)
    loss = loss * factor * torch.where(bad, torch.nan, 1.0)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / factor.sum()


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
    x, dim = _arithmetic(input), class_dim(input)
    label, valid, bad = _labels("softmax_focal_loss", input, target, ignore_index)
    x = torch.where(valid.unsqueeze(dim), x, 0.0)
    x = x - x.amax(dim, keepdim=True).detach()
    # p_t = sigmoid(-z) and 1 - p_t = sigmoid(z), where z comes from the other classes: neither cancels
    # nor leaves the number range, and log(1 - p_t) has finite derivatives where 1 - p_t vanishes. The
    # floor stands for -inf, of which there are no derivatives.
    floor = torch.finfo(x.dtype).min / 2
    others = x.clamp(min=floor).scatter(dim, label.unsqueeze(dim), floor)
    z = torch.logsumexp(others, dim) - _pick(x, label, dim)
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
    return _reduce(loss, valid, reduction, normalizer)
