"""Losses of a linear layer's output that never exists whole."""

from __future__ import annotations

import math

import fusedloss
import pytest
import torch
from fusedloss import _chunks, linear_margin_softmax_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import (
    REDUCTIONS,
    ROWS,
    VARIANTS,
    Variant,
    check_loss,
    each_dtype,
    each_reduction,
    each_schedule,
    each_variant,
    gradients,
    leaves,
    make,
    wide,
)
from test_arguments import INF, NAN
from test_linear_autograd import SMOOTH
from tolerances import check_gradient


@each_dtype
@each_reduction
@each_schedule
@each_variant
def test_values_and_gradients(name: str, reduction: str, schedule: str, dtype: torch.dtype) -> None:
    variant = VARIANTS[name]
    inputs = make(variant, dtype)
    upstream = torch.linspace(-1, 2, ROWS) if reduction == "none" else None
    exact = gradients(variant.eager, variant, wide(inputs), upstream, reduction=reduction)
    eager = gradients(variant.eager, variant, inputs, upstream, reduction=reduction)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        got = gradients(variant.loss, variant, inputs, upstream, reduction=reduction, chunk_size=10)
    assert got[0].dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    check_loss(variant, inputs, reduction, got[0], exact[0])
    for what, *triple in zip(
        ("features", "weight", "bias"), got[1:], exact[1:], eager[1:], strict=False
    ):
        assert triple[0].dtype == dtype
        check_gradient(what, *triple)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["arcface", "sub-centers", "modified softmax", "uniform, z", "bare"]
)
def test_products_in_blocks(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"scale": 2.0, "normalize_features": False, "normalize_weight": False}
    variant = Variant(True, plain) if name == "bare" else VARIANTS[name]
    inputs = make(variant, dtype, classes=100)
    outcomes = []
    # One class at once, six with a rest of four, and all.
    for block, many in ((1, 1), (1024, 1), (1024, 1024)):
        monkeypatch.setattr(_chunks, "MANY_CLASSES", many)
        monkeypatch.setattr(_chunks, "BLOCK_CLASSES", block)
        outcomes.append(gradients(variant.loss, variant, inputs, None, chunk_size=10))
    exact = gradients(variant.eager, variant, wide(inputs), None)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for got in outcomes:
        for ours, theirs in zip(got, exact, strict=True):
            atol = tolerance * float(theirs.abs().max())
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=atol)


@each_reduction
@pytest.mark.parametrize("chunk_size", [1, 3, ROWS - 1, ROWS, ROWS + 9, None])
@pytest.mark.parametrize("name", ["arcface", "sub-centers", "uniform, z"])
def test_any_chunk_size_gives_the_same(name: str, chunk_size: int | None, reduction: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    upstream = torch.linspace(-1, 2, ROWS).double() if reduction == "none" else None
    options = {"reduction": reduction}
    expected = gradients(variant.eager, variant, inputs, upstream, **options)
    got = gradients(variant.loss, variant, inputs, upstream, chunk_size=chunk_size, **options)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    rows, classes, width = (data.draw(st.integers(low, 9)) for low in (0, 1, 1))
    centers, chunk = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    f = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    w = torch.randn(classes * centers, width, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, classes, (rows,), generator=generator)
    variant = Variant(True, {"sub_centers": centers, "m3": 0.3, "scale": 5.0})
    inputs = [f, w, target, torch.zeros(0)]
    upstream = torch.rand(rows).double() if reduction == "none" else None
    expected = gradients(variant.eager, variant, inputs, upstream, reduction=reduction)
    got = gradients(variant.loss, variant, inputs, upstream, reduction=reduction, chunk_size=chunk)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("labels", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("name", ["arcface, no label -1", "cross entropy, ignored 1"])
def test_label_types(name: str, labels: torch.dtype) -> None:
    variant = VARIANTS[name]
    f, w, target, b = make(variant)
    expected = gradients(variant.loss, variant, [f, w, target, b], None)
    got = gradients(variant.loss, variant, [f, w, target.to(labels), b], None)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


@each_schedule
@pytest.mark.parametrize("name", ["arcface", "sub-centers", "cross entropy"])
def test_strided_inputs(name: str, schedule: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    f, w, target, b = leaves(inputs, variant)
    laid_out = [f.t().contiguous().t(), w.t().contiguous().t(), target, b]
    laid_out[2] = torch.stack([target, target], 1)[:, 0]
    laid_out[3] = b.unsqueeze(1).expand(-1, 2).reshape(-1)[::2]
    with fusedloss.gradient_schedule(schedule):
        expected = gradients(variant.loss, variant, inputs, None, chunk_size=7)
        loss = variant.loss(laid_out, chunk_size=7)
    wrt = [f, w] if variant.margin else [f, w, b]
    for ours, theirs in zip(torch.autograd.grad(loss, wrt), expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


@each_reduction
@each_schedule
@pytest.mark.parametrize("name", ["arcface", "modified softmax", "uniform, z"])
def test_ignored_rows_have_no_effect(name: str, schedule: str, reduction: str) -> None:
    variant = VARIANTS[name]
    f, w, target, b = make(variant)
    kept = target != variant.ignored
    f[~kept] = torch.tensor([NAN, INF, -INF, 1e300]).double().repeat(3)
    with fusedloss.gradient_schedule(schedule):
        got = gradients(
            lambda x, **o: variant.loss(x, **o).sum(),
            variant,
            [f, w, target, b],
            None,
            reduction=reduction,
            chunk_size=6,
        )
        expected = gradients(
            lambda x, **o: variant.loss(x, **o).sum(),
            variant,
            [f[kept], w, target[kept], b],
            None,
            reduction=reduction,
        )
    assert not got[1][~kept].any()
    got[1] = got[1][kept]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@each_schedule
@pytest.mark.parametrize("rows", [0, 1, 6])
@pytest.mark.parametrize("name", ["arcface", "sub-centers", "uniform, z"])
def test_nothing_counted(name: str, rows: int, schedule: str) -> None:
    variant = VARIANTS[name]
    f, w, target, b = make(variant, rows=rows)
    target.fill_(variant.ignored)
    with fusedloss.gradient_schedule(schedule):
        value, *grads = gradients(variant.loss, variant, [f, w, target, b], None)
        total = variant.loss([f, w, target, b], reduction="sum")
        each = variant.loss([f, w, target, b], reduction="none")
    assert float(value) == 0 if variant.margin else math.isnan(float(value))
    assert float(total) == 0
    assert each.shape == (rows,)
    assert not each.any()
    assert all(not grad.any() for grad in grads)  # not NaN either


@pytest.mark.parametrize("name", ["arcface", "cross entropy"])
def test_one_row_and_one_class(name: str) -> None:
    variant = VARIANTS[name]
    f, w, target, b = make(variant)
    options = {"chunk_size": 4}
    one = [f[1:2], w, target[1:2], b]
    for inputs in (one, [f, w[:1], target.clamp(max=0), b[:1]]):
        expected = gradients(variant.eager, variant, inputs, None)
        got = gradients(variant.loss, variant, inputs, None, **options)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@each_dtype
def test_rows_of_zeros_and_tiny_ones(dtype: torch.dtype) -> None:
    variant = Variant(True, {"m3": 0.2, "scale": 2.0})
    f, w, target, b = make(variant, dtype)
    f[1], w[3] = 0, 0
    if dtype == torch.float64:
        f[2], w[4] = f[2] * 1e-14, w[4] * 1e-14
    expected = gradients(variant.eager, variant, wide([f, w, target, b]), None)
    got = gradients(variant.loss, variant, [f, w, target, b], None, chunk_size=10)
    for ours, theirs in zip(got, expected, strict=True):
        # Row by row: the gradients of short rows are larger by many orders.
        tolerance = {"rtol": 0.05, "atol": 2e-3} if dtype == torch.bfloat16 else {}
        for one, other in zip(torch.atleast_1d(ours), torch.atleast_1d(theirs), strict=True):
            torch.testing.assert_close(one, other.to(one.dtype), **tolerance)


def test_tiny_weights_in_float16_are_finite() -> None:
    variant = VARIANTS["arcface"]
    f, w, target, b = make(variant, torch.float16)
    w[0], w[1] = 0, 6e-8
    assert all(
        x.isfinite().all() for x in gradients(variant.loss, variant, [f, w, target, b], None)
    )


@each_reduction
def test_float16_gradients_survive_many_rows(reduction: str) -> None:
    variant = Variant(True, {"scale": 8.0, "m3": 0.1})
    f, w, target, b = make(variant, torch.float16, rows=4096)
    upstream = torch.ones(4096) if reduction == "none" else torch.tensor(1.0)
    if reduction == "mean":  # as a loss scale does
        upstream *= 4096
    exact = gradients(
        variant.eager, variant, wide([f, w, target, b]), upstream, reduction=reduction
    )
    got = gradients(variant.loss, variant, [f, w, target, b], upstream, reduction=reduction)
    for ours, theirs in zip(got[1:], exact[1:], strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 4e-3


@each_schedule
@each_dtype
def test_of_equal_products_the_first_gets_the_gradient(dtype: torch.dtype, schedule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # Whole numbers, of which every sum is exact.
    f = torch.randint(-3, 4, (6, 5), generator=generator).to(dtype).requires_grad_()
    center = torch.randint(-3, 4, (4, 5), generator=generator).to(dtype)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    w = center.repeat_interleave(3, 0).requires_grad_()
    single = center.clone().requires_grad_()
    options = {"scale": 0.5, "normalize_features": False, "normalize_weight": False}
    with fusedloss.gradient_schedule(schedule):
        linear_margin_softmax_loss(f, w, target, sub_centers=3, **options).backward()
        linear_margin_softmax_loss(f, single, target, **options).backward()
    assert w.grad is not None
    assert not w.grad.view(4, 3, 5)[:, 1:].any()
    assert torch.equal(w.grad.view(4, 3, 5)[:, 0], single.grad)


SMOOTH += ["plain weight", "cross entropy", "uniform, z", "others"]
