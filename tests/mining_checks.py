"""Hard example mining on the emulator against a sort and torch's own losses.

What is selected is compared exactly with a sort of the kernel's own marks, whose losses are compared
with torch's in float64; so nothing depends on how close two losses are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from emulated_mining import (
    Forward,
    MinedBinaryCrossEntropy,
    MinedCrossEntropy,
    Wanted,
    _EmulatedMining,
)
from tolerances import check_close, check_gradient
from torch import Tensor

functional = torch.nn.functional


class Marks(NamedTuple):
    """Marks as they are read: which rows or elements are what, and the losses of both kinds."""

    losses: Tensor
    always: Tensor
    candidate: Tensor


def read_marks(marks: Tensor) -> Marks:
    wide = marks.dtype == torch.float64
    bits = marks.contiguous().view(torch.int64 if wide else torch.int32)
    magnitude = bits & (2**63 - 1 if wide else 2**31 - 1)
    left_out = bits == -1
    return Marks(
        magnitude.view(marks.dtype).double().masked_fill(left_out, 0.0),
        (bits < 0) & ~left_out,
        bits >= 0,
    )


def _by_slice(kernel: _EmulatedMining, x: Tensor) -> Tensor:
    """``[num_slices, slice_size]``"""
    if isinstance(kernel, MinedBinaryCrossEntropy) and kernel.num_slices > 1:
        x = x.permute(*kernel.others, *kernel.mined)
    return x.reshape(kernel.num_slices, -1)


def _wanted(rule: dict[str, Any], always: int, candidates: int) -> int:
    kind, number = rule["wanted"], rule["number"]
    if kind == Wanted.TOGETHER:
        number -= always
    elif kind == Wanted.FRACTION:
        number = max(1, math.floor(rule["factor"] * candidates))
    elif kind == Wanted.RATIO and always:
        number = math.floor(rule["factor"] * always)
    return max(0, min(number, candidates))


def _order(losses: Tensor) -> Tensor:
    """Losses as they are ordered: NaN above infinity."""
    return torch.nan_to_num(losses, nan=torch.inf, posinf=1e308)


def _plain_shares(rule: dict[str, Any], marks: Marks) -> Tensor:
    """Of one slice, by sorting."""
    shares = marks.always.double()
    losses = _order(marks.losses[marks.candidate])
    k = _wanted(rule, int(marks.always.sum()), losses.numel())
    if k == 0:
        return shares
    cut = losses.sort(descending=True).values[k - 1]
    above, tied = int((losses > cut).sum()), int((losses == cut).sum())
    share = 1.0 if rule["whole_ties"] else (k - above) / tied
    kept = (losses > cut).double() + share * (losses == cut).double()
    shares[marks.candidate] = kept
    return shares


def shares_of(kernel: _EmulatedMining, marks: Tensor) -> Tensor:
    """What the rule selects of these marks, in the marks' shape."""
    read = read_marks(marks)
    parts = [_by_slice(kernel, x) for x in read]
    rows = [_plain_shares(kernel.rule, Marks(*own)) for own in zip(*parts, strict=True)]
    flat = torch.stack(rows) if rows else torch.zeros(0, 0).double()
    return _back(kernel, flat, marks)


def _back(kernel: _EmulatedMining, flat: Tensor, like: Tensor) -> Tensor:
    if not isinstance(kernel, MinedBinaryCrossEntropy) or kernel.num_slices == 1:
        return flat.reshape(like.shape)
    order = (*kernel.others, *kernel.mined)
    shaped = flat.reshape([like.size(d) for d in order])
    return shaped.permute([order.index(d) for d in range(like.dim())])


def selected_shares(kernel: _EmulatedMining, forward: Forward) -> Tensor:
    """The shares that backward takes from the kernel's selection."""
    losses, always, candidate = (_by_slice(kernel, x) for x in read_marks(forward.marks))
    cut, share = (forward.selection[:, i : i + 1].double() for i in (0, 1))
    nothing = cut.isnan() & (share == 0)
    losses, cut = _order(losses), _order(cut)
    kept = (losses > cut).double() + share * (losses == cut).double()
    kept = kept.masked_fill(nothing, 0.0)
    return _back(kernel, torch.where(candidate, kept, always.double()), forward.marks)


def _losses(kernel: _EmulatedMining, x: Tensor) -> tuple[Tensor, Tensor]:
    """(what is selected by, what is summed) of every row or element, by torch."""
    if isinstance(kernel, MinedCrossEntropy):
        classes = x.size(kernel.class_dim)
        target = kernel.target.long()
        ignored = target == kernel.call["ignore_index"]
        bad = ~ignored & ((target < 0) | (target >= classes))
        labels = target.masked_fill(ignored | bad, 0)
        nll = functional.cross_entropy(x, labels, reduction="none")
        nll = nll * torch.where(bad, torch.nan, 1.0)
        weight = torch.ones(classes) if kernel.weight is None else kernel.weight
        return nll, nll * weight.to(x.dtype)[labels]
    assert isinstance(kernel, MinedBinaryCrossEntropy)
    plain = functional.binary_cross_entropy
    function = functional.binary_cross_entropy_with_logits if kernel.from_logits else plain
    loss = function(x, kernel.target.to(x.dtype), reduction="none")
    return loss, loss


def _plain(kernel: _EmulatedMining, shares: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(selection losses, loss, gradient, upstream) on what is selected, by autograd in `dtype`."""
    leaf = kernel.input.detach().to(dtype).requires_grad_()
    by, summed = _losses(kernel, leaf)
    kept = torch.where(shares > 0, shares.to(dtype) * summed, 0.0)
    divisor = 1.0
    if kernel.reduction == "mean":
        divisor = float(shares.sum()) + kernel.rule["epsilon"]
    none = kernel.reduction == "none"
    upstream = torch.linspace(0.5, 1.5, kept.numel()).view(kept.shape).to(dtype)
    upstream = upstream if none else torch.tensor(1.25, dtype=dtype)
    total = kept if none else kept.sum() / (divisor if shares.any() else 1.0)
    (grad,) = torch.autograd.grad((total * upstream).sum(), leaf)
    wide = shares
    if isinstance(kernel, MinedCrossEntropy):
        wide = shares.unsqueeze(kernel.class_dim).expand_as(grad)
    return by.detach(), total.detach(), grad.masked_fill(wide == 0, 0.0), upstream


def both(kernel: _EmulatedMining) -> tuple[Tensor, Tensor, Forward]:
    """(loss, gradient, all that forward returns)"""
    forward = kernel.forward()
    upstream = torch.ones(forward.loss.shape, dtype=kernel.dtype)
    return forward.loss, kernel.backward(upstream, forward), forward


def check_call(what: str, kernel: _EmulatedMining, masked: Tensor | None = None) -> Forward:
    """Marks, selection, loss and gradient of one call."""
    forward = kernel.forward()
    read = read_marks(forward.marks)
    valid = read.always | read.candidate
    shares = shares_of(kernel, forward.marks)
    narrow = kernel.dtype
    assert torch.equal(selected_shares(kernel, forward), shares.to(narrow).double()), (
        f"{what} selection"
    )
    by, loss, grad, upstream = _plain(kernel, shares, torch.float64)
    eager = _plain(kernel, shares, narrow)
    check_close(f"{what} marks", read.losses[valid], by[valid], eager[0][valid])
    if isinstance(kernel, MinedCrossEntropy):
        assert torch.equal(valid, kernel.target != kernel.call["ignore_index"])
        clear = valid & ((by - kernel.rule["threshold"]).abs() > 1e-5)
        above = by.isnan() | (by > kernel.rule["threshold"])
        assert torch.equal(read.always[clear], above[clear])
    else:
        assert torch.equal(valid, torch.ones_like(valid) if masked is None else ~masked)
        assert torch.equal(read.always, valid & (kernel.target > 0.5))
    check_close(f"{what} loss", forward.loss, loss, eager[1])
    divisor = float(shares.sum()) + kernel.rule["epsilon"]
    expected = 1.0
    if kernel.reduction == "mean":
        expected = 1.0 / divisor if shares.any() else 0.0
    torch.testing.assert_close(
        forward.scale.double(), torch.tensor(expected).double(), rtol=2e-7, atol=0
    )
    got = kernel.backward(upstream.to(narrow), forward)
    check_gradient(f"{what} gradient", got, grad, eager[2].to(got.dtype))
    return forward
