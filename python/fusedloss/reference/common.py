"""What the references share."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._ops import class_dim


def arithmetic(x: Tensor) -> Tensor:
    """`x` in the dtype that it is computed in."""
    return x if x.dtype == torch.float64 else x.float()


def reduce(
    loss: Tensor, valid: Tensor, reduction: str, normalizer: Tensor | float | None
) -> Tensor:
    """The reduced loss; a mean over nothing is 0."""
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    count = valid.sum()
    if normalizer is None:
        return total / count.clamp(min=1)
    return torch.where(count > 0, total / normalizer, torch.zeros_like(total))


def reduce_all(loss: Tensor, reduction: str, normalizer: Tensor | float | None) -> Tensor:
    """The reduced loss where no element is ignored; a mean over nothing is NaN, as torch has it."""
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    return total / (loss.numel() if normalizer is None else normalizer)


def along_classes(vector: Tensor, like: Tensor, dim: int, dims: int) -> Tensor:
    """A vector [C] in a shape that broadcasts over the logits, in the dtype of `like`."""
    return vector.to(like.dtype).reshape([-1 if d == dim else 1 for d in range(dims)])


def labels(
    function: str, input: Tensor, target: Tensor, ignore_index: int, called: str = "input"
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels that can index (0 where they could not), valid rows, and out-of-range rows."""
    target, classes = target.long(), input.size(class_dim(input))
    valid = target != ignore_index
    bad = _checks.is_bad_label(target, classes, ignore_index)
    if not torch.compiler.is_compiling() and input.device.type == "cpu" and bool(bad.any()):
        raise _checks.label_error(function, int(target[bad][0]), classes, called=called)
    return torch.where(valid & ~bad, target, 0), valid, bad


def pick(x: Tensor, label: Tensor, dim: int) -> Tensor:
    """The entry of each row that its label names."""
    return x.gather(dim, label.unsqueeze(dim)).squeeze(dim)
