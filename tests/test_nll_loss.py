"""nll_loss against torch's own, and labels that are no class."""

from __future__ import annotations

import itertools
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from fusedloss import cross_entropy, nll_loss
from test_cross_entropy import (
    INF,
    NAN,
    REDUCTIONS,
    each_dtype,
    inputs,
    with_gradient,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize("shape", [(7,), (5, 7), (5, 7, 3), (2, 7, 3, 2), (5, 1), (0, 7)])
def test_nll_loss_equals_torch(shape: tuple[int, ...]) -> None:
    dim = 1 if len(shape) > 1 else 0
    g = torch.Generator().manual_seed(4)
    x = torch.log_softmax(torch.randn(shape, generator=g, dtype=torch.float64), dim)
    label = torch.randint(0, shape[dim], shape[:dim] + shape[dim + 1 :], generator=g)
    weight = torch.rand(shape[dim], generator=g, dtype=torch.float64)
    for ignore_index, w, reduction in itertools.product((-100, 0), (None, weight), REDUCTIONS):
        options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
        expected = with_gradient(lambda x, w=w, o=options: F.nll_loss(x, label, w, **o), x)
        got = with_gradient(lambda x, w=w, o=options: nll_loss(x, label, w, **o), x)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15, equal_nan=True)


def test_nll_loss_derivatives() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(5, 4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, generator=g, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (5, 3), generator=g)
    label[0] = -100
    assert torch.autograd.gradcheck(lambda x, w: nll_loss(x, label, w), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: nll_loss(x, label, w), (x, weight))


@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@each_dtype
def test_nll_loss_dtypes(dtype: torch.dtype, label_dtype: torch.dtype) -> None:
    x, label, _, weight = inputs(9, 3, rows=6, dtype=dtype)
    x, label = torch.log_softmax(x, 1), label.clamp(min=0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = with_gradient(lambda x: F.nll_loss(x, label, weight.to(wide)), x.to(wide))
    got = with_gradient(lambda x: nll_loss(x, label.to(label_dtype), weight), x)
    assert got[0].dtype == wide
    assert got[1].dtype == dtype
    torch.testing.assert_close(got[0], expected[0], rtol=4 * torch.finfo(wide).eps, atol=0)
    torch.testing.assert_close(
        got[1], expected[1].to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0
    )


def test_nll_loss_ignores_what_an_ignored_row_holds() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    label = torch.tensor([0, -100, 2, -100])
    weight = torch.rand(3, dtype=torch.float64, requires_grad=True)
    clean = nll_loss(x, label, weight)
    x[1], x[3] = NAN, INF
    loss, grad = with_gradient(lambda x: nll_loss(x, label, weight), x)
    assert torch.equal(loss, clean)
    assert (grad[[1, 3]] == 0).all()
    (weight_grad,) = torch.autograd.grad(nll_loss(x, label, weight), weight)
    assert torch.isfinite(weight_grad).all()


class Largest(TorchDispatchMode):
    """The most elements that an operator's result with memory of its own has."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.size = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() != self.known:
                self.size = max(self.size, x.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nll_loss_makes_nothing_of_the_size_of_its_input(dtype: torch.dtype) -> None:
    x, label, _, weight = inputs(50, 3, rows=6, dtype=dtype)
    with Largest(x) as largest:
        nll_loss(x, label, weight, reduction="none")
    assert largest.size <= max(label.numel(), weight.numel())


@pytest.mark.parametrize("function", [cross_entropy, nll_loss], ids=lambda f: f.__name__)
@pytest.mark.parametrize("label", [-1, 5, 7, -99, 255])
def test_labels_that_are_no_class(label: int, function: Any) -> None:
    x, name = torch.randn(6, 5), function.__name__
    target = torch.tensor([0, 1, 2, label, 4, -100])
    message = (
        f"{name}: target holds label {label}, but input has 5 classes; accepted are 0 to 4 and"
    )
    for backend in ("native", "reference"):
        with fusedloss.backend(backend):
            with pytest.raises(IndexError, match=message):
                function(x, target)
            kept = function(x[:5], target[:5], ignore_index=label)
            torch.testing.assert_close(kept, function(x[[0, 1, 2, 4]], target[[0, 1, 2, 4]]))
