"""Softmax focal loss (Lin et al. 2017, over a softmax) through torch's cross entropy, and fused.

Arguments of every form: logits [N, C, ...], labels int64 [N, ...], of which `IGNORE` drops its pixel.
segmentation-models-pytorch's class of that purpose is timed beside them, though it computes another
function: the sigmoid focal loss of every class against the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, optional, row_slices

GAMMA = 2.0
IGNORE = 255
"""The label of pixels without a class in Cityscapes and most segmentation sets."""

SMP = "smp"
SMP_COMPUTES = "the sigmoid focal loss of each class against the rest, mean over pixels and classes"


def eager(logits: Tensor, labels: Tensor) -> Tensor:
    """The best form without a kernel of its own: p_t from the cross entropy, mean over valid pixels."""
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    p_t = torch.exp(-cross_entropy)
    loss = (1 - p_t) ** GAMMA * cross_entropy  # 0 where ignored, as the cross entropy is
    return loss.sum() / (labels != IGNORE).sum()


def contenders() -> dict[str, LossFn]:
    """Eager, fused, and segmentation-models-pytorch's class where it is installed."""
    found: dict[str, LossFn] = {"eager": eager}
    package = optional("segmentation_models_pytorch.losses", "FocalLoss")
    if package is not None:
        found[SMP] = package("multiclass", gamma=GAMMA, ignore_index=IGNORE)
    function = optional("fusedloss", "softmax_focal_loss")
    if function is not None:

        def fused(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = function(logits, labels, gamma=GAMMA, ignore_index=IGNORE)
            return value

        found["fusedloss"] = fused
    return found


def _by_slices(
    logits: Tensor, labels: Tensor, divisor: Tensor, form: LossFn, rows_at_once: int
) -> tuple[Tensor, Tensor]:
    """Sum of form(x, hit [n, C, k], valid [n, 1, k]) over all slices / divisor; gradient."""
    rows = logits.detach().reshape(*logits.shape[:2], -1)
    targets = labels.reshape(labels.shape[0], -1)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = torch.empty(rows.shape, dtype=torch.float64, device=logits.device)
    for n, k in row_slices((rows.shape[0], rows.shape[1], rows.shape[2]), rows_at_once):
        x = rows[n, :, k].double().requires_grad_()
        t = targets[n, k]
        hit = torch.arange(x.shape[1], device=x.device)[:, None] == t[:, None]
        value = form(x, hit, (t != IGNORE)[:, None]) / divisor
        (gradient[n, :, k],) = torch.autograd.grad(value, x)
        total += value.detach()
    return total, gradient.reshape(logits.shape)


def _softmax_focal(x: Tensor, hit: Tensor, valid: Tensor) -> Tensor:
    """Log space throughout: 1 - p_t is the mass of the other classes, not a difference from 1."""
    lse = x.logsumexp(1, keepdim=True)
    target_logit = (x * hit).sum(1, keepdim=True)
    others = x.masked_fill(hit, float("-inf")).logsumexp(1, keepdim=True)
    return ((GAMMA * (others - lse)).exp() * (lse - target_logit) * valid).sum()


def _one_against_the_rest(x: Tensor, hit: Tensor, valid: Tensor) -> Tensor:
    sign = torch.where(hit, 1.0, -1.0).double()
    return ((-GAMMA * F.softplus(sign * x)).exp() * F.softplus(-sign * x) * valid).sum()


def reference(logits: Tensor, labels: Tensor, rows_at_once: int = 65_536) -> tuple[Tensor, Tensor]:
    """Value (0-d) and gradient [N, C, ...] in float64, slice by slice."""
    divisor = (labels != IGNORE).sum().double()
    return _by_slices(logits, labels, divisor, _softmax_focal, rows_at_once)


def smp_reference(
    logits: Tensor, labels: Tensor, rows_at_once: int = 65_536
) -> tuple[Tensor, Tensor]:
    """The same for the function that segmentation-models-pytorch's class computes."""
    divisor = (labels != IGNORE).sum().double() * logits.shape[1]
    return _by_slices(logits, labels, divisor, _one_against_the_rest, rows_at_once)
