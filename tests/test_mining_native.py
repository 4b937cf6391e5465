"""The operators of hard example mining against sorts in float64, and what their selections promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusedloss import _ops
from fusedloss._mining import (
    WANTED,
    MinedBinaryCrossEntropyArguments,
    MinedCrossEntropyArguments,
    shares,
    slice_order,
)
from fusedloss._mining_autograd import MinedBinaryCrossEntropy, MinedCrossEntropy
from fusedloss._ops import REDUCTIONS
from torch import Tensor

pytestmark = pytest.mark.skipif(_ops.library_path() is None, reason="no native library")

IGNORE = 255
NOT_A_NUMBER = math.nan


def rows(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels; a fifth of the rows is ignored and has NaN logits."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(3)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    ignored = torch.rand(target.shape, generator=generator) < 0.2
    target[ignored] = IGNORE
    x.masked_fill_(ignored.unsqueeze(1), NOT_A_NUMBER)
    return x.to(dtype), target


def row_numbers(**changes: Any) -> MinedCrossEntropyArguments:
    base = MinedCrossEntropyArguments(
        math.inf, WANTED["number"], 0, 0.0, False, IGNORE, REDUCTIONS["mean"]
    )
    return base._replace(**changes)


def expected_rows(
    x: Tensor, target: Tensor, weight: Tensor | None, args: MinedCrossEntropyArguments
) -> tuple[Tensor, Tensor]:
    """Losses times their shares, and the shares, by sorting (no ties, no NaN in valid rows)."""
    nll = F.cross_entropy(
        torch.where((target == IGNORE).unsqueeze(1), 0.0, x),
        torch.where(target == IGNORE, 0, target),
        reduction="none",
    )
    valid = target != IGNORE
    always = valid & (nll > args.threshold)
    candidates = valid & ~always
    many = int(candidates.sum())
    wanted = args.number
    if args.wanted == WANTED["together"]:
        wanted -= int(always.sum())
    elif args.wanted == WANTED["fraction"]:
        wanted = max(1, math.floor(args.factor * many))
    wanted = min(max(wanted, 0), many)
    order = torch.where(candidates, nll, -1.0).flatten().argsort(descending=True)
    share = always.clone().flatten()
    share[order[:wanted]] = True
    kept = share.reshape(nll.shape).to(nll.dtype)
    loss = nll if weight is None else nll * weight[torch.where(valid, target, 0)]
    return loss * kept, kept


SHAPES = [(7, 5), (2, 19, 33, 65), (3, 40, 11), (64, 300), (40_000, 3)]
RULES = {
    "ohem, many above": {"threshold": 0.3, "wanted": WANTED["together"], "number": 5},
    "ohem, few above": {"threshold": 9.0, "wanted": WANTED["together"], "number": 2_000},
    "ohem, more than there are": {"threshold": 9.0, "wanted": WANTED["together"], "number": 10**9},
    "none": {"number": 0},
    "one": {"number": 1},
    "a tenth": {"wanted": WANTED["fraction"], "factor": 0.1},
    "all": {"wanted": WANTED["fraction"], "factor": 1.0},
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("begin_grad", [False, True], ids=["", "begun"])
def test_rows_against_a_sort(
    begin_grad: bool,
    shape: tuple[int, ...],
    rule: str,
    dtype: torch.dtype,
    reduction: str,
    weighted: bool,
) -> None:
    args = row_numbers(**RULES[rule], reduction=REDUCTIONS[reduction])
    x, target = rows(shape, dtype)
    weight = torch.linspace(0.5, 2.0, shape[1], dtype=torch.float64) if weighted else None
    given = None if weight is None else weight.to(_ops.accumulator_dtype(dtype))
    if args.threshold < math.inf:  # no row so near that rounding decides
        args = args._replace(threshold=args.threshold + 1e-3)

    leaf = x.clone().requires_grad_()
    loss, _, marks, selection, _ = MinedCrossEntropy.apply(leaf, target, given, args, begin_grad)
    exact = x.double().requires_grad_()
    losses, kept = expected_rows(exact, target, weight, args)
    got = shares(marks, selection)
    # float32 may order losses that are nearly equal another way
    assert (got - kept).abs().sum() <= (0 if dtype == torch.float64 else 2)
    if reduction == "none":
        assert loss.shape == target.shape
        wanted, upstream = losses, torch.linspace(0.5, 1.5, losses.numel()).view(losses.shape)
    else:
        wanted = losses.sum() / (max(1.0, float(kept.sum())) if reduction == "mean" else 1.0)
        upstream = torch.tensor(1.5)
    same = got == kept
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 2e-5, "atol": 1e-6}
    if reduction == "none":
        torch.testing.assert_close(loss[same].double(), wanted[same], **tolerance)
    else:
        torch.testing.assert_close(loss.double(), wanted, **tolerance)
    loss.backward(upstream.to(loss.dtype))
    wanted.backward(upstream.double())
    assert leaf.grad is not None
    assert exact.grad is not None
    assert torch.equal(leaf.grad.abs().sum(1) > 0, got > 0) or shape[1] == 1
    error = (leaf.grad.double() - exact.grad).abs().amax(1)[same]
    largest = float(exact.grad.abs().max())
    assert float(error.max()) <= (1e-2 if dtype == torch.bfloat16 else 2e-5) * largest + 1e-30


def elements(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets of which a few are positive, a mask; masked logits are NaN."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(3)
    target = (torch.rand(shape, generator=generator) < 0.05).to(torch.float32)
    mask = torch.rand(shape, generator=generator) < 0.9
    return x.masked_fill_(~mask, NOT_A_NUMBER).to(dtype), target, mask


def expected_elements(
    x: Tensor, target: Tensor, mask: Tensor, args: MinedBinaryCrossEntropyArguments
) -> tuple[Tensor, Tensor]:
    loss_of = F.binary_cross_entropy_with_logits if args.from_logits else F.binary_cross_entropy
    losses = loss_of(torch.where(mask, x, 0.5), target.to(x.dtype), reduction="none")
    others, mined = slice_order(x.dim(), args.mined_dims)
    order = others + mined
    back = [order.index(d) for d in range(x.dim())]
    sizes = [x.size(d) for d in order]

    def slices(tensor: Tensor) -> Tensor:
        return tensor.permute(order).reshape(math.prod(sizes[: len(others)]), -1)

    kept = []
    for loss, t, m in zip(
        slices(losses.detach()), slices(target), slices(mask.expand(x.shape)), strict=True
    ):
        positive = m & (t > 0.5)
        candidates = m & ~positive
        found = int(positive.sum())
        wanted = math.floor(args.ratio * found) if found else args.fallback
        top = torch.where(candidates, loss, -1.0).argsort(descending=True)
        share = positive.clone()
        share[top[: min(wanted, int(candidates.sum()))]] = True
        kept.append(share)
    share = torch.stack(kept).reshape(sizes).permute(back).to(losses.dtype)
    return losses * share, share


ELEMENTS = {
    "one": ((8, 1, 40, 50), 0b1111),
    "by image": ((8, 1, 40, 50), 0b1110),
    "by image, few": ((3, 1, 40, 50), 0b1110),
    "by class": ((8, 5, 40), 0b101),
    "by the last": ((8, 300), 0b01),
    "vector": ((5000,), 0b1),
}


@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("strided", [False, True], ids=["", "strided"])
@pytest.mark.parametrize("case", ELEMENTS)
def test_elements_against_a_sort(
    case: str, strided: bool, reduction: str, dtype: torch.dtype, from_logits: bool
) -> None:
    shape, dims = ELEMENTS[case]
    args = MinedBinaryCrossEntropyArguments(from_logits, dims, 3.0, 7, 1e-6, REDUCTIONS[reduction])
    x, target, mask = elements(shape, dtype)
    if not from_logits:
        x = torch.where(mask, x.sigmoid(), NOT_A_NUMBER)
    if strided:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    loss, _, marks, selection = MinedBinaryCrossEntropy.apply(leaf, target, mask, args)
    exact = x.double().requires_grad_()
    losses, kept = expected_elements(exact, target, mask, args)
    got = shares(marks, selection, dims)
    assert (got - kept).abs().sum() <= (0 if dtype == torch.float64 else 2)
    if reduction == "none":
        wanted, upstream = losses, torch.linspace(0.5, 1.5, losses.numel()).view(losses.shape)
    else:
        wanted = losses.sum() / (float(kept.sum()) + args.epsilon if reduction == "mean" else 1.0)
        upstream = torch.tensor(1.5)
    same = got == kept
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 2e-5, "atol": 1e-6}
    if reduction == "none":
        torch.testing.assert_close(loss[same].double(), wanted[same], **tolerance)
    else:
        torch.testing.assert_close(loss.double(), wanted, **tolerance)
    loss.backward(upstream.to(loss.dtype))
    wanted.backward(upstream.double())
    assert leaf.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(
        leaf.grad[same].double(), exact.grad[same], rtol=1e-4, atol=1e-7, equal_nan=False
    )


def test_tied_rows_share_and_whole_ties_do_not() -> None:
    x = torch.zeros(10, 4)
    x[:3, 0] = -2.0  # three hard ones; seven tied
    target = torch.zeros(10, dtype=torch.long)
    args = row_numbers(number=5, reduction=REDUCTIONS["none"])
    loss, _, marks, selection, _ = MinedCrossEntropy.apply(x, target, None, args, False)
    assert shares(marks, selection).tolist() == [1.0] * 3 + [pytest.approx(2 / 7)] * 7
    assert loss[3].item() == pytest.approx(math.log(4) * 2 / 7)
    whole = args._replace(wanted=WANTED["together"], whole_ties=True)
    loss, _, marks, selection, _ = MinedCrossEntropy.apply(x, target, None, whole, False)
    assert shares(marks, selection).tolist() == [1.0] * 10


def test_nothing_selected_is_zero_and_stays_attached() -> None:
    for reduction in REDUCTIONS.values():
        x = torch.randn(6, 3, requires_grad=True)
        target = torch.full((6,), IGNORE)
        args = row_numbers(wanted=WANTED["fraction"], factor=0.5, reduction=reduction)
        loss = MinedCrossEntropy.apply(x, target, None, args, False)[0]
        assert loss.abs().sum() == 0
        loss.sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() == 0
        empty = torch.randn(0, 3, requires_grad=True)
        loss = MinedCrossEntropy.apply(empty, target[:0], None, args, True)[0]
        loss.sum().backward()
        assert loss.sum() == 0
        assert empty.grad is not None
        assert empty.grad.shape == (0, 3)


def test_a_bad_label_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="label 7"):
        MinedCrossEntropy.apply(
            torch.zeros(4, 3), torch.tensor([0, 1, 7, 2]), None, row_numbers(), False
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", [0, 10**9])
def test_backward_completes_what_forward_began(shape: tuple[int, ...], number: int) -> None:
    """In place once the graph may go, as often as wanted before, and also where more is selected than
    the threshold selects. What is not selected gets zeros whatever comes in.
    """
    x, target = rows(shape, torch.float32)
    args = row_numbers(threshold=0.3, wanted=WANTED["together"], number=number)
    leaf = x.clone().requires_grad_()
    expected = MinedCrossEntropy.apply(leaf, target, None, args, False)[0]
    (expected,) = torch.autograd.grad(expected, leaf, torch.tensor(3.0))
    loss, _, marks, selection, begun = MinedCrossEntropy.apply(leaf, target, None, args, True)
    always = shares(marks, torch.tensor([[2**31 - 1, 0]], dtype=torch.int32)) > 0
    if shape[1] > 1:
        assert torch.equal((begun != 0).any(1), always)
    for keep in (True, True, False):
        (grad,) = torch.autograd.grad(loss, leaf, torch.tensor(3.0), retain_graph=keep)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-9)
        assert (grad.data_ptr() == begun.data_ptr()) == (not keep)
    loss, _, marks, selection, _ = MinedCrossEntropy.apply(leaf, target, None, args, True)
    (grad,) = torch.autograd.grad(loss, leaf, torch.tensor(NOT_A_NUMBER))
    selected = shares(marks, selection) > 0
    assert not grad.movedim(1, -1)[~selected].any()
    assert grad.movedim(1, -1)[selected].isnan().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_those_of_the_fixed_selection(reduction: str) -> None:
    x, target = rows((3, 4, 20), torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    args = row_numbers(number=10, reduction=REDUCTIONS[reduction])
    valid = (target != IGNORE).unsqueeze(1)
    leaf = torch.where(valid, x, 0.0).requires_grad_()

    def loss(value: Tensor) -> Tensor:
        return MinedCrossEntropy.apply(value, target, weight, args, False)[0].sum()

    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (plain,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(first, plain, rtol=1e-10, atol=1e-14)
    (second,) = torch.autograd.grad((first * first).sum(), leaf)
    direction, step = torch.randn_like(leaf), 1e-6

    def slope(at: float) -> Tensor:
        point = (leaf.detach() + at * direction).requires_grad_()
        return torch.autograd.grad(loss(point), point)[0].square().sum()

    numeric = (slope(step) - slope(-step)) / (2 * step)
    torch.testing.assert_close((second * direction).sum(), numeric, rtol=1e-5, atol=1e-9)

    y, labels, mask = elements((4, 30), torch.float64)
    y = torch.where(mask, y, 0.0).requires_grad_()
    numbers = MinedBinaryCrossEntropyArguments(True, 0b10, 2.0, 1, 1e-6, REDUCTIONS[reduction])
    total = MinedBinaryCrossEntropy.apply(y, labels, mask, numbers)[0].sum()
    (first,) = torch.autograd.grad(total, y, create_graph=True)
    (plain,) = torch.autograd.grad(total, y)
    torch.testing.assert_close(first, plain, rtol=1e-10, atol=1e-14)
    assert first.requires_grad
