"""Hard example mining and linear layers' losses over generated shapes, layouts and options.

In float64, where no two losses of these inputs are so close that rounding would select others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fusedloss
import torch
from fusedloss import reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_properties import DENSE_DTYPES, INDEX_DTYPES, LAYOUTS, dtype_holds, laid_out, repeatable
from torch import Tensor

few = settings(repeatable, max_examples=100)
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 17, 33])
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])
Mined = tuple[str, Tensor, Tensor, dict[str, Any]]


def gradients(loss: Callable[..., Tensor], leaves: list[Tensor], **options: Any) -> list[Tensor]:
    """The loss and its gradients, with an upstream gradient that is not the same everywhere."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    value = loss(*leaves, **options)
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream)]


@st.composite
def mined_rows(draw: st.DrawFn) -> Mined:
    """OHEM or top-k of rows in any layout, labels of any dtype."""
    shape = [draw(SIZES), draw(st.integers(1, 21)), *draw(st.lists(SIZES, max_size=2))]
    if draw(st.integers(0, 6)) == 6:  # several blocks of rows
        shape = list(draw(st.sampled_from([[700, 5], [2, 3, 900], [1, 19, 30, 9]])))
    assume(torch.Size(shape).numel() <= 6000)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    layout, order = draw(st.sampled_from(LAYOUTS)), draw(st.permutations(range(len(shape))))
    x = laid_out(3 * torch.randn(shape, generator=g, dtype=torch.float64), layout, order)
    ignore_index = draw(st.sampled_from([-100, -1, 0, 255]))
    target = torch.randint(0, shape[1], [shape[0], *shape[2:]], generator=g)
    target = target.to(draw(st.sampled_from(INDEX_DTYPES)))
    if dtype_holds(target.dtype, ignore_index) and draw(st.booleans()):
        target[torch.rand(target.shape, generator=g) < 0.3] = ignore_index
    weight = torch.rand(shape[1], generator=g, dtype=torch.float64)
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": draw(REDUCTIONS)}
    options["weight"] = draw(st.sampled_from([None, weight]))
    if draw(st.booleans()):
        options["threshold"] = draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
        options["min_kept"] = draw(st.sampled_from([0, 1, 7, 100_000]))
        return "ohem_cross_entropy_loss", x, target, options
    options["k"] = draw(st.sampled_from([1, 7, 100_000, 0.01, 0.3, 1.0]))
    return "topk_cross_entropy_loss", x, target, options


@st.composite
def mined_elements(draw: st.DrawFn) -> Mined:
    """Balanced cross entropy of elements, over all of them or of each slice."""
    shape = draw(st.lists(SIZES, min_size=1, max_size=4))
    if draw(st.integers(0, 6)) == 6:
        shape = list(draw(st.sampled_from([[3000], [3, 1100], [2, 5, 300]])))
    assume(torch.Size(shape).numel() <= 6000)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    layout, order = draw(st.sampled_from(LAYOUTS)), draw(st.permutations(range(len(shape))))
    x = 3 * torch.randn(shape, generator=g, dtype=torch.float64)
    from_logits = draw(st.booleans())
    x = laid_out(x if from_logits else torch.sigmoid(x), layout, order)
    positives = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    target = (torch.rand(shape, generator=g) < positives).to(draw(st.sampled_from(DENSE_DTYPES)))
    small = [size if draw(st.booleans()) else 1 for size in shape]  # broadcasts
    mask = (torch.rand(small, generator=g) < 0.8).to(draw(st.sampled_from([torch.bool, x.dtype])))
    options: dict[str, Any] = {
        "from_logits": from_logits,
        "mask": draw(st.sampled_from([None, mask])),
        "negative_ratio": draw(st.sampled_from([0.0, 0.5, 3.0, 1e6])),
        "fallback_negatives": draw(st.sampled_from([0, 5, 100_000])),
        "eps": draw(st.sampled_from([1e-6, 1.0])),
        "reduction": draw(REDUCTIONS),
    }
    if draw(st.booleans()):
        dims = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
        return "hard_negative_mining_loss", x, target, options | {"dim": tuple(dims)}
    return "balanced_bce_loss", x, target, options


def check_mined(case: Mined, schedule: str) -> None:
    """Kernels and reference select the same, and of it have the same values and gradients."""
    name, x, target, options = case
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        got = gradients(lambda y: getattr(fusedloss, name)(y, target, **options), [x])
    expected = gradients(lambda y: getattr(reference, name)(y, target, **options), [x])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    if options["reduction"] == "none":
        total = getattr(fusedloss, name)(x, target, **{**options, "reduction": "sum"})
        torch.testing.assert_close(got[0].sum(), total, rtol=1e-12, atol=1e-13)


@few
@given(mined_rows(), st.sampled_from(["recompute", "forward"]))
def test_mined_rows_equal_the_reference(case: Mined, schedule: str) -> None:
    check_mined(case, schedule)


@few
@given(mined_elements())
def test_mined_elements_equal_the_reference(case: Mined) -> None:
    check_mined(case, "recompute")


@few
@given(st.data())
def test_linear_losses_equal_the_logits_that_they_do_without(data: st.DataObject) -> None:
    draw = data.draw
    rows, classes, width = (draw(st.integers(low, 9)) for low in (0, 1, 1))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def tensor(*shape: int) -> Tensor:
        layout, order = draw(st.sampled_from(LAYOUTS)), draw(st.permutations(range(len(shape))))
        return laid_out(torch.randn(shape, generator=g, dtype=torch.float64), layout, order)

    target = torch.randint(0, classes, (rows,), generator=g).to(draw(st.sampled_from(INDEX_DTYPES)))
    options: dict[str, Any] = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "reduction": draw(REDUCTIONS),
        "ignore_index": draw(st.sampled_from([-100, 0, 1])),
    }
    leaves = [tensor(rows, width), tensor(classes, width)]
    if draw(st.booleans()):
        name = "linear_cross_entropy"
        options["z_loss"] = draw(st.sampled_from([0.0, 0.1]))
        options["smoothing"] = draw(st.sampled_from(["uniform", "others"]))
        if draw(st.booleans()):
            leaves.append(tensor(classes))
    else:
        name = "linear_margin_softmax_loss"
        options |= {"scale": 4.0, "m3": draw(st.sampled_from([0.0, 0.3]))}
        options["normalize_features"] = draw(st.booleans())
        options["normalize_weight"] = draw(st.booleans())

    def loss(module: Any, **more: Any) -> Callable[..., Tensor]:
        function = getattr(module, name)
        return lambda f, w, *bias: function(f, w, target, *bias, **options, **more)

    chunk, schedule = draw(st.integers(1, 12)), draw(st.sampled_from(["recompute", "forward"]))
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        got = gradients(loss(fusedloss, chunk_size=chunk), leaves)
    for ours, theirs in zip(got, gradients(loss(reference), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, equal_nan=True)
