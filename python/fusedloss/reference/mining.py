"""Hard example mining: the selection by sorting, and the losses of a selection that was made."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._mining import (
    WANTED,
    MinedBinaryCrossEntropyArguments,
    MinedCrossEntropyArguments,
    slice_order,
)
from .._ops import REDUCTION_NAMES, REDUCTIONS, class_dim
from .common import arithmetic, labels, pick


def _wanted(rule: str, number: int, factor: float, always: Tensor, candidates: Tensor) -> Tensor:
    """How many candidates each slice takes, by the counts of both kinds."""
    k = torch.full_like(candidates, number)
    if rule == "together":
        k = (number - always).clamp(min=0)
    elif rule == "fraction":
        k = (factor * candidates.double()).floor().long().clamp(min=1)
    elif rule == "ratio":
        of_always = torch.minimum(factor * always.double(), candidates.double()).floor().long()
        k = torch.where(always > 0, of_always, number)
    return torch.minimum(k, candidates)


def _at_least(a: Tensor, b: Tensor) -> Tensor:
    """Whether a >= b in the order that sorting has: NaN is the largest."""
    return (a >= b) | a.isnan()


def _select(
    losses: Tensor,
    always: Tensor,
    candidate: Tensor,
    rule: str,
    number: int,
    factor: float,
    whole_ties: bool,
) -> tuple[Tensor, Tensor]:
    """Of slices [S, n]: which part of each loss counts, and how many that are.

    All `always`, and the k largest candidates; those tied with the k-th share what is left of k, or
    are taken whole.
    """
    k = _wanted(rule, number, factor, always.sum(1), candidate.sum(1))
    counts = always.to(losses.dtype)
    if losses.size(1) == 0:
        return counts, k
    ranked = losses.masked_fill(~candidate, -math.inf).sort(1, descending=True).values
    cut = ranked.gather(1, (k - 1).clamp(min=0).unsqueeze(1))
    taken = candidate & _at_least(losses, cut) & (k > 0).unsqueeze(1)
    tied = taken & _at_least(cut, losses)
    above = (taken & ~tied).sum(1)
    ties = tied.sum(1)
    share = torch.ones_like(k, dtype=torch.float64) if whole_ties else (k - above) / ties.double()
    counts = torch.where(taken, 1.0, counts)
    counts = torch.where(tied, share.to(losses.dtype).unsqueeze(1), counts)
    return counts, always.sum(1) + (above + ties if whole_ties else k)


def _reduce(
    losses: Tensor, shares: Tensor, selected: Tensor, epsilon: float, reduction: str
) -> Tensor:
    """The loss of what is selected. The others may be anything, NaN included."""
    loss = torch.where(shares > 0, losses, 0.0) * shares
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    number = selected.sum()
    return total * torch.where(number > 0, 1 / (number.to(loss.dtype) + epsilon).clamp(1e-30), 0.0)


def _mine_rows(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    arguments: MinedCrossEntropyArguments,
) -> Tensor:
    threshold, wanted, number, factor, whole_ties, ignore_index, reduction = arguments
    x, dim = arithmetic(input), class_dim(input)
    label, valid, bad = labels(name, input, target, ignore_index)
    x = torch.where(valid.unsqueeze(dim), x, 0.0)  # what an ignored row holds has no effect
    nll = -pick(F.log_softmax(x, dim), label, dim) * torch.where(bad, torch.nan, 1.0)
    # Of a single class -log p is -0.
    ranked = nll.detach() + 0.0
    always = valid & ~(ranked <= threshold)
    rule = list(WANTED)[wanted]
    shares, selected = _select(
        ranked.reshape(1, -1),
        always.reshape(1, -1),
        (valid & ~always).reshape(1, -1),
        rule,
        number,
        factor,
        whole_ties,
    )
    losses = nll if weight is None else nll * weight.to(nll.dtype)[label]
    return _reduce(losses, shares.reshape(nll.shape), selected, 0.0, REDUCTION_NAMES[reduction])


def ohem_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of hard pixels; see :func:`fusedloss.ohem_cross_entropy_loss`."""
    bound = -math.log(threshold) if threshold > 0 else math.inf
    numbers = (bound, WANTED["together"], min_kept, 0.0, True)
    arguments = MinedCrossEntropyArguments(*numbers, ignore_index, REDUCTIONS[reduction])
    return _mine_rows("ohem_cross_entropy_loss", input, target, weight, arguments)


def topk_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    k: int | float = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of the k hardest; see :func:`fusedloss.topk_cross_entropy_loss`."""
    rule = WANTED["fraction"] if isinstance(k, float) else WANTED["number"]
    number, factor = (0, k) if isinstance(k, float) else (k, 0.0)
    numbers = (math.inf, rule, number, factor, False)
    arguments = MinedCrossEntropyArguments(*numbers, ignore_index, REDUCTIONS[reduction])
    return _mine_rows("topk_cross_entropy_loss", input, target, weight, arguments)


def _binary_losses(x: Tensor, target: Tensor, from_logits: bool) -> Tensor:
    """-t log p - (1 - t) log(1 - p)."""
    if from_logits:
        # torch's function has 0 times -inf, and so NaN, where a positive's logit is -inf.
        return -(target * F.logsigmoid(x) + (1 - target) * F.logsigmoid(-x))
    return F.binary_cross_entropy(x, target, reduction="none")


def hard_negative_mining_loss(
    input: Tensor,
    target: Tensor,
    *,
    dim: int | tuple[int, ...] | None,
    from_logits: bool = True,
    mask: Tensor | None = None,
    negative_ratio: float = 3.0,
    fallback_negatives: int = 0,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Each slice along `dim` mines for itself; see :func:`fusedloss.hard_negative_mining_loss`."""
    x = arithmetic(input)
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    outer, mined = slice_order(x.dim(), sum(1 << d % x.dim() for d in dims))
    t = target.to(x.dtype)
    valid = torch.ones_like(x, dtype=torch.bool)
    if mask is not None:
        valid = (mask != 0).expand_as(x)
        x, t = torch.where(valid, x, 0.0), torch.where(valid, t, 0.0)
    losses = _binary_losses(x, t, from_logits)
    order = [*outer, *mined]
    slices = math.prod(x.shape[d] for d in outer)

    def sliced(values: Tensor) -> Tensor:
        return values.permute(order).reshape(slices, x.numel() // max(slices, 1))

    always = valid & (t > 0.5)
    shares, selected = _select(
        sliced(losses.detach() + 0.0),
        sliced(always),
        sliced(valid & ~always),
        "ratio",
        fallback_negatives,
        negative_ratio,
        False,
    )
    shares = shares.reshape([x.shape[d] for d in order])
    shares = shares.permute([order.index(d) for d in range(x.dim())])
    return _reduce(losses, shares, selected, eps, reduction)


def balanced_bce_loss(
    input: Tensor,
    target: Tensor,
    *,
    from_logits: bool = True,
    mask: Tensor | None = None,
    negative_ratio: float = 3.0,
    fallback_negatives: int = 0,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """All positives and the hardest negatives; see :func:`fusedloss.balanced_bce_loss`."""
    return hard_negative_mining_loss(
        input,
        target,
        dim=None,
        from_logits=from_logits,
        mask=mask,
        negative_ratio=negative_ratio,
        fallback_negatives=fallback_negatives,
        eps=eps,
        reduction=reduction,
    )


def _reduce_selected(loss: Tensor, scale: Tensor, reduction: int) -> Tensor:
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
    return _reduce_selected(loss, scale, arguments.reduction)


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
    loss = _binary_losses(x, t, arguments.from_logits) * shares
    return _reduce_selected(loss, scale, arguments.reduction)
