"""Hard example mining of a selection that was made: losses and their second derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._mining import MinedBinaryCrossEntropyArguments, MinedCrossEntropyArguments
from .._ops import REDUCTIONS, class_dim
from .common import arithmetic, pick


def _reduce(loss: Tensor, scale: Tensor, reduction: int) -> Tensor:
    return loss if reduction == REDUCTIONS["none"] else loss.sum() * scale


def mined_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    shares: Tensor,
    scale: Tensor,
    arguments: MinedCrossEntropyArguments,
) -> Tensor:
    """Cross entropy of rows that count by `shares`; the others' logits may be anything."""
    x, dim = arithmetic(input), class_dim(input)
    label = torch.where(shares > 0, target, 0).long()
    x = torch.where((shares > 0).unsqueeze(dim), x, 0.0)
    loss = -pick(F.log_softmax(x, dim), label, dim) * shares
    if weight is not None:
        loss = loss * weight.to(loss.dtype)[label]
    return _reduce(loss, scale, arguments.reduction)


def mined_binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    shares: Tensor,
    scale: Tensor,
    arguments: MinedBinaryCrossEntropyArguments,
) -> Tensor:
    """Binary cross entropy of elements that count by `shares`; the others may be anything."""
    x = torch.where(shares > 0, arithmetic(input), 0.0)
    t = torch.where(shares > 0, target.to(x.dtype), 0.0)
    loss_of = (
        F.binary_cross_entropy_with_logits if arguments.from_logits else F.binary_cross_entropy
    )
    return _reduce(loss_of(x, t, reduction="none") * shares, scale, arguments.reduction)
