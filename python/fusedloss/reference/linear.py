"""A linear layer and the loss of its logits, which are made whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .common import arithmetic
from .cross_entropy import cross_entropy
from .margin_softmax import margin_softmax_loss

NORM_FLOOR = 1e-12
"""What a shorter vector is divided by instead of its norm, as in torch.nn.functional.normalize."""


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1; with derivatives of any order, also of rows of zeros."""
    return x * x.square().sum(1, keepdim=True).clamp(min=NORM_FLOOR**2).rsqrt()


def _without_ignored(features: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """What an ignored row holds has no effect, not even on the gradient of the weight."""
    return torch.where((target.long() != ignore_index).unsqueeze(1), arithmetic(features), 0.0)


def cosines(
    features: Tensor,
    weight: Tensor,
    *,
    sub_centers: int = 1,
    normalize_features: bool = True,
    normalize_weight: bool = True,
) -> Tensor:
    """Products [N, C] of the two, each normalised where asked for, the largest of each class's."""
    f, w = arithmetic(features), arithmetic(weight)
    x = (unit_rows(f) if normalize_features else f) @ (unit_rows(w) if normalize_weight else w).t()
    return x if sub_centers == 1 else x.unflatten(1, (-1, sub_centers)).max(dim=2).values


def linear_margin_softmax_loss(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -1,
    sub_centers: int = 1,
    normalize_features: bool = True,
    normalize_weight: bool = True,
    **options: Any,
) -> Tensor:
    """A linear layer and a margin softmax; see :func:`fusedloss.linear_margin_softmax_loss`."""
    x = cosines(
        _without_ignored(features, target, ignore_index),
        weight,
        sub_centers=sub_centers,
        normalize_features=normalize_features,
        normalize_weight=normalize_weight,
    )
    return margin_softmax_loss(x, target, ignore_index=ignore_index, **options)


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    **options: Any,
) -> Tensor:
    """A linear layer and cross entropy; see :func:`fusedloss.linear_cross_entropy`."""
    x = _without_ignored(features, target, ignore_index) @ arithmetic(weight).t()
    if bias is not None:
        x = x + arithmetic(bias)
    return cross_entropy(x, target, ignore_index=ignore_index, **options)
