"""Smooth L1 and L1 loss beside torch's own, and their arguments."""

from __future__ import annotations

import pickle
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from fusedloss import l1_loss, smooth_l1_loss
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


def results(function: Any, x: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The loss, and its gradients by input and, where it takes one, target."""
    leaves = [tensor for tensor in (x, target) if tensor.requires_grad]
    loss = function(x, target, **options)
    return loss.detach(), *torch.autograd.grad((loss * 3).sum(), leaves)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 1e-45, 1e-30, 0.11, 1.0, 7.0])
@pytest.mark.parametrize("of_target", [False, True])
@pytest.mark.parametrize("rows", [0, 37])
def test_torch_has_the_same(rows: int, of_target: bool, beta: float, reduction: str) -> None:
    x, target = torch.randn(2, rows, 4)
    with torch.no_grad():
        x[: rows // 2, 0] = target[: rows // 2, 0]  # where the derivative of |d| is 0
    x.requires_grad_()
    target.requires_grad_(of_target)
    options = {"reduction": reduction, "beta": beta}
    ours, theirs = (results(f, x, target, **options) for f in (smooth_l1_loss, F.smooth_l1_loss))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    if beta == 0.0:
        ours, theirs = (results(f, x, target, reduction=reduction) for f in (l1_loss, F.l1_loss))
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert len(ours) == 2 + of_target


def test_the_two_of_torch_that_are_options_here() -> None:
    x, target, weight = torch.randn(3, 11, 4)
    weight = weight.abs()
    ours = l1_loss(x, target, weight=weight, normalizer=weight.sum())
    torch.testing.assert_close(ours, F.l1_loss(x, target, weight=weight))
    ours = 0.3 * smooth_l1_loss(x, target, beta=0.3)
    torch.testing.assert_close(ours, F.huber_loss(x, target, delta=0.3))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_numbers_that_are_none_reach_the_loss(backend: str) -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, 3.0], requires_grad=True)
    for beta in (0.0, 1.0):
        with fusedloss.backend(backend):
            loss, grad = results(smooth_l1_loss, x, torch.zeros(4), beta=beta, reduction="none")
        assert loss.isnan().tolist() == grad.isnan().tolist() == [False, True, False, False]
        assert torch.isinf(loss[2])


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"beta": -1.0}, ValueError, "beta is -1"),
    ({"beta": True}, TypeError, "beta must be a number"),
    ({"target": torch.zeros(4)}, ValueError, r"target has shape \(4,\), accepted are \(3, 4\)"),
    ({"input": torch.zeros(3, 4).long()}, TypeError, "input has dtype int64"),
    ({"weight": torch.zeros(3)}, ValueError, r"weight has shape \(3,\)"),
    ({"normalizer": 0.0}, ValueError, "normalizer is 0"),
    ({"reduction": "max"}, ValueError, "reduction is 'max'"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), BAD, ids=lambda v: str(v)[:20])
def test_errors_name_the_argument(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"input": torch.zeros(3, 4), "target": torch.zeros(3, 4), **wrong}
    with pytest.raises(error, match=rf"^smooth_l1_loss: {words}"):
        smooth_l1_loss(**given)
    if "beta" not in wrong:
        with pytest.raises(error, match=rf"^l1_loss: {words}"):
            l1_loss(**given)


def test_modules() -> None:
    x, target, weight = torch.randn(5, 4), torch.randn(5, 4), torch.rand(5, 1)
    module = pickle.loads(pickle.dumps(fusedloss.SmoothL1Loss(0.5, reduction="sum")))
    assert repr(module) == "SmoothL1Loss(beta=0.5, reduction='sum')"
    expected = smooth_l1_loss(x, target, beta=0.5, weight=weight, reduction="sum")
    assert torch.equal(module(x, target, weight=weight), expected)
    assert torch.equal(
        fusedloss.L1Loss()(x, target, normalizer=3), l1_loss(x, target, normalizer=3)
    )
    with pytest.raises(ValueError, match=r"^smooth_l1_loss: beta"):
        fusedloss.SmoothL1Loss(-0.5)
    with pytest.raises(ValueError, match=r"^l1_loss: reduction"):
        fusedloss.L1Loss(reduction="max")
