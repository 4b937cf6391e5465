"""Sigmoid focal loss (Lin et al. 2017) as detectors write it, as torchvision has it, and fused.

Arguments of every form: logits [..., C], target, normalizer (0-d).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, fused, optional

ALPHA = 0.25
GAMMA = 2.0


def dense_eager(logits: Tensor, target: Tensor, normalizer: Tensor) -> Tensor:
    """Sigmoid focal loss as detectors write it: logits and target [..., C], normalizer 0-d."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = probability * target + (1 - probability) * (1 - target)
    alpha_t = ALPHA * target + (1 - ALPHA) * (1 - target)
    loss = alpha_t * (1 - p_t) ** GAMMA * cross_entropy
    return loss.sum() / normalizer


def one_hot_without_background(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels [...] with values 0..C, C = background, to a target like the logits [..., C]."""
    classes = logits.shape[-1]
    return F.one_hot(labels, classes + 1)[..., :classes].to(logits.dtype)


def index_eager(logits: Tensor, labels: Tensor, normalizer: Tensor) -> Tensor:
    """The same from class indices: one-hot with a background column, column dropped, then dense."""
    return dense_eager(logits, one_hot_without_background(labels, logits), normalizer)


def _contenders(eager: LossFn, *, index: bool) -> dict[str, LossFn]:
    contenders: dict[str, LossFn] = {"eager": eager}
    package = optional("torchvision.ops", "sigmoid_focal_loss")
    if package is not None:

        def torchvision(logits: Tensor, target: Tensor, normalizer: Tensor) -> Tensor:
            dense = one_hot_without_background(target, logits) if index else target
            total: Tensor = package(logits, dense, alpha=ALPHA, gamma=GAMMA, reduction="sum")
            return total / normalizer

        contenders["torchvision"] = torchvision
    contenders |= fused("sigmoid_focal_loss", ("normalizer",), alpha=ALPHA, gamma=GAMMA)
    return contenders


def index() -> dict[str, LossFn]:
    """Contenders for class-index targets [...]."""
    return _contenders(index_eager, index=True)


def dense() -> dict[str, LossFn]:
    """Contenders for dense targets [..., C]."""
    return _contenders(dense_eager, index=False)


def reference(
    logits: Tensor, target: Tensor, normalizer: Tensor, rows_at_once: int = 8192
) -> tuple[Tensor, Tensor]:
    """Value (0-d) and gradient [..., C] in float64, from the log-space formula, slice by slice.

    Written apart from the eager form on purpose: FL = alpha_t exp(gamma log(1 - p_t)) CE with
    CE = softplus(-s x), log(1 - p_t) = -softplus(s x), s = +1 on positives and -1 on negatives.
    Hard targets only.
    """
    classes = logits.shape[-1]
    rows = logits.detach().reshape(-1, classes)
    targets = target.reshape(-1, classes) if target.dim() == logits.dim() else target.reshape(-1)
    divisor = normalizer.double()
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = torch.empty(rows.shape, dtype=torch.float64, device=logits.device)
    column = torch.arange(classes, device=logits.device)
    for start in range(0, rows.shape[0], rows_at_once):
        part = slice(start, start + rows_at_once)
        x = rows[part].double().requires_grad_()
        t = targets[part]
        positive = t[:, None] == column if t.dim() == 1 else t > 0.5
        sign = torch.where(positive, 1.0, -1.0).double()
        alpha_t = torch.where(positive, ALPHA, 1 - ALPHA).double()
        loss = alpha_t * torch.exp(-GAMMA * F.softplus(sign * x)) * F.softplus(-sign * x)
        value = loss.sum() / divisor
        (gradient[part],) = torch.autograd.grad(value, x)
        total += value.detach()
    return total, gradient.reshape(logits.shape)
