"""The losses as people write them without fusedloss, and the fused calls that replace them.

Every function takes the logits first and the arguments of its case after them, and returns a 0-d
loss. A contender that cannot be imported is left out, and `unavailable()` says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LossFn = Callable[..., Tensor]

ALPHA = 0.25
GAMMA = 2.0

_missing: dict[str, str] = {}


def unavailable() -> list[str]:
    """Sentences on the contenders that were asked for and could not be imported."""
    return [f"{name}: {reason}" for name, reason in sorted(_missing.items())]


def _optional(module: str, attribute: str) -> Callable[..., Any] | None:
    """`module.attribute`, or None with the reason noted. Binary packages fail in many ways."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        _missing[f"{module}.{attribute}"] = f"{type(error).__name__}: {error}"
        return None
    return found


# --- sigmoid focal loss ---------------------------------------------------------------------------


def focal_dense_eager(logits: Tensor, target: Tensor, normalizer: Tensor) -> Tensor:
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


def focal_index_eager(logits: Tensor, labels: Tensor, normalizer: Tensor) -> Tensor:
    """The same from class indices: one-hot with a background column, column dropped, then dense."""
    return focal_dense_eager(logits, one_hot_without_background(labels, logits), normalizer)


def _focal_fused(logits: Tensor, target: Tensor, normalizer: Tensor) -> Tensor:
    fused: LossFn = importlib.import_module("fusedloss").sigmoid_focal_loss
    return fused(logits, target, alpha=ALPHA, gamma=GAMMA, normalizer=normalizer)


def _focal_contenders(eager: LossFn, *, index: bool) -> dict[str, LossFn]:
    contenders: dict[str, LossFn] = {"eager": eager}
    package = _optional("torchvision.ops", "sigmoid_focal_loss")
    if package is not None:

        def torchvision(logits: Tensor, target: Tensor, normalizer: Tensor) -> Tensor:
            dense = one_hot_without_background(target, logits) if index else target
            total: Tensor = package(logits, dense, alpha=ALPHA, gamma=GAMMA, reduction="sum")
            return total / normalizer

        contenders["torchvision"] = torchvision
    if _optional("fusedloss", "sigmoid_focal_loss") is not None:
        contenders["fusedloss"] = _focal_fused
    return contenders


def focal_index() -> dict[str, LossFn]:
    """Contenders for class-index targets [...]."""
    return _focal_contenders(focal_index_eager, index=True)


def focal_dense() -> dict[str, LossFn]:
    """Contenders for dense targets [..., C]."""
    return _focal_contenders(focal_dense_eager, index=False)


def focal_reference(
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
