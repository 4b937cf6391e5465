"""Losses of a linear layer's output that never exists whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from fusedloss import _chunks, _linear, linear_cross_entropy, linear_margin_softmax_loss, reference
from fusedloss._chunks import CHUNK_BYTES, CHUNK_ROWS, PLAIN, Head, chunk_rows
from fusedloss.benchmarks.memory import peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_arguments import INF, NAN, refused_by
from tolerances import check_close, check_gradient
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

CPU = torch.device("cpu")
ROWS, WIDTH, CLASSES = 37, 12, 23
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
REDUCTIONS = ("mean", "sum", "none")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_schedule = pytest.mark.parametrize("schedule", ["forward", "recompute"])


class Variant(NamedTuple):
    """A loss and its options."""

    margin: bool
    options: dict[str, Any]

    @property
    def centers(self) -> int:
        """Rows of the weight for each class."""
        return int(self.options.get("sub_centers", 1))

    @property
    def ignored(self) -> int:
        """The label of ignored rows."""
        return int(self.options.get("ignore_index", -1 if self.margin else -100))

    def loss(self, inputs: list[Tensor], **options: Any) -> Tensor:
        """The chunked loss of (features, weight, target, bias)."""
        function = linear_margin_softmax_loss if self.margin else linear_cross_entropy
        given = inputs[:3] if self.margin else inputs
        return function(*given, **{**self.options, **options})

    def eager(self, inputs: list[Tensor], **options: Any) -> Tensor:
        """As it is written without this library, in the dtype of the inputs; the logits whole."""
        f, w, target, bias = inputs
        options = {**self.options, **options}
        f = torch.where((target != self.ignored)[:, None], f, 0)
        if not self.margin:
            return reference.cross_entropy(F.linear(f, w, bias), target, **options)
        if options.pop("normalize_features", True):
            f = F.normalize(f)
        if options.pop("normalize_weight", True):
            w = F.normalize(w)
        x = F.linear(f, w).unflatten(1, (-1, options.pop("sub_centers", 1))).max(2).values
        return reference.margin_softmax_loss(x, target, **options)


PER_CLASS = torch.linspace(0.1, 0.6, CLASSES)
VARIANTS = {
    "arcface": Variant(True, {"m2": 0.5}),
    "arcface, no label -1": Variant(True, {"m2": 0.5, "ignore_index": 1}),
    "combined, easy": Variant(
        True, {"m1": 1.1, "m2": 0.3, "m3": 0.2, "easy_margin": True, "scale": 30.0}
    ),
    "by class": Variant(True, {"m2": PER_CLASS, "m3": PER_CLASS.flip(0), "scale": 16.0}),
    "straight through": Variant(
        True, {"m1": 1.0, "m2": 0.3, "monotonic": "none", "gradient": "straight_through"}
    ),
    "smoothed": Variant(True, {"m3": 0.35, "label_smoothing": 0.1, "scale": 20.0}),
    "filtered": Variant(True, {"m3": 0.35, "filter_threshold": 0.3, "scale": 20.0}),
    "sub-centers": Variant(True, {"m2": 0.4, "sub_centers": 3}),
    "modified softmax": Variant(True, {"scale": 1.0, "normalize_features": False}),
    "plain weight": Variant(True, {"scale": 4.0, "m3": 0.1, "normalize_weight": False}),
    "cross entropy": Variant(False, {}),
    "cross entropy, ignored 1": Variant(False, {"ignore_index": 1}),
    "uniform, z": Variant(False, {"label_smoothing": 0.1, "z_loss": 0.02}),
    "others": Variant(False, {"label_smoothing": 0.2, "smoothing": "others"}),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def make(
    variant: Variant,
    dtype: torch.dtype = torch.float64,
    *,
    rows: int = ROWS,
    classes: int = CLASSES,
) -> list[Tensor]:
    """(features, weight, target, bias) with every fifth row ignored."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    target = torch.randint(0, classes, (rows,), generator=generator)
    target[::5] = variant.ignored
    weight = 0.3 * normal(classes * variant.centers, WIDTH)
    return [normal(rows, WIDTH), weight, target, normal(classes)]


def leaves(inputs: list[Tensor], variant: Variant) -> list[Tensor]:
    """The inputs as leaves, and among them those with a gradient."""
    return [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]


def gradients(
    loss: Callable[..., Tensor],
    variant: Variant,
    inputs: list[Tensor],
    upstream: Tensor | None,
    **options: Any,
) -> list[Tensor]:
    """The loss and the gradients of features, weight and, of cross entropy, bias."""
    f, w, target, b = leaves(inputs, variant)
    value = loss([f, w, target, b], **options)
    if upstream is not None:
        upstream = upstream.to(value.dtype)
    wrt = [f, w] if variant.margin else [f, w, b]
    return [value.detach(), *torch.autograd.grad(value, wrt, upstream)]


def wide(inputs: list[Tensor]) -> list[Tensor]:
    """The same values in float64."""
    return [x.double() if x.is_floating_point() else x for x in inputs]


def check_loss(
    variant: Variant, inputs: list[Tensor], reduction: str, got: Tensor, exact: Tensor
) -> None:
    """A sum may be off by twice the errors of all rows of the eager form in the same dtype."""
    each = variant.eager(inputs, reduction="none").double()
    right = variant.eager(wide(inputs), reduction="none")
    if reduction == "none":
        check_close("loss", got, right, each, terms=float(variant.options.get("scale", 1.0)))
        return
    allowed = float((each - right).abs().sum()) + 64 * torch.finfo(got.dtype).eps * float(
        right.sum()
    )
    if reduction == "mean":
        allowed /= float((inputs[2] != variant.ignored).sum())
    assert abs(float(got.double() - exact)) <= 2 * allowed


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


@each_schedule
@pytest.mark.parametrize("name", ["arcface", "cross entropy"])
def test_only_required_gradients_are_made(name: str, schedule: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    full = gradients(variant.loss, variant, inputs, None, chunk_size=8)[1:]
    places = [0, 1] if variant.margin else [0, 1, 3]
    for place, expected in zip(places, full, strict=True):
        one = list(inputs)
        one[place] = one[place].clone().requires_grad_()
        with fusedloss.gradient_schedule(schedule):
            loss = variant.loss(one, chunk_size=8)
        (grad,) = torch.autograd.grad(loss, one[place])
        assert torch.equal(grad, expected)
    assert not variant.loss(inputs).requires_grad
    with torch.no_grad():
        assert not variant.loss([inputs[0].requires_grad_(), *inputs[1:]]).requires_grad


@each_schedule
@pytest.mark.parametrize("factor", [0.0, -2.5, 65536.0])
@pytest.mark.parametrize("name", ["sub-centers", "uniform, z"])
def test_upstream_gradient_and_repeated_backward(name: str, factor: float, schedule: str) -> None:
    variant = VARIANTS[name]
    f, w, target, b = leaves(make(variant), variant)
    wrt = [f, w] if variant.margin else [f, w, b]
    with fusedloss.gradient_schedule(schedule):
        loss = variant.loss([f, w, target, b], chunk_size=8)
    first = torch.autograd.grad(loss, wrt, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, wrt, torch.tensor(factor).double())
    for one, copy, other in zip(first, kept, second, strict=True):
        assert torch.equal(one, copy)  # the second pass has not written over the first's result
        torch.testing.assert_close(other, factor * one)


SMOOTH = ["arcface", "combined, easy", "by class", "smoothed", "sub-centers", "modified softmax"]
SMOOTH += ["plain weight", "cross entropy", "uniform, z", "others"]


def as_function(name: str, reduction: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A variant as a function of its floating-point inputs, and these."""
    variant = VARIANTS[name]
    f, w, target, b = make(variant, rows=6)
    wrt = [x.requires_grad_() for x in ([f, w] if variant.margin else [f, w, b])]
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in variant.options.items()}

    def function(*given: Tensor) -> Tensor:
        inputs = [given[0], given[1], target, given[2] if len(given) > 2 else b]
        return Variant(variant.margin, doubled).loss(inputs, reduction=reduction, chunk_size=4)

    return function, tuple(wrt)


@each_schedule
@each_reduction
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str, reduction: str, schedule: str) -> None:
    function, inputs = as_function(name, reduction)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@each_reduction
@pytest.mark.parametrize("name", SMOOTH)
def test_gradgradcheck(name: str, reduction: str) -> None:
    function, inputs = as_function(name, reduction)
    with fusedloss.backend("native"):
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_schedule
@pytest.mark.parametrize("name", ["arcface", "uniform, z"])
def test_function_transforms(name: str, schedule: str) -> None:
    function, inputs = as_function(name, "mean")
    wrt = tuple(range(len(inputs)))
    with fusedloss.gradient_schedule(schedule):
        got = torch.func.grad(function, wrt)(*(x.detach() for x in inputs))
        expected = torch.autograd.grad(function(*inputs), inputs)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["by class", "arcface"])
def test_margins_that_learn_go_to_the_reference(name: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    m3 = torch.full((CLASSES,), 0.2, dtype=torch.float64, requires_grad=True)
    loss = variant.loss(inputs, m3=m3)
    (grad,) = torch.autograd.grad(loss, m3)
    (expected,) = torch.autograd.grad(variant.eager(inputs, m3=m3), m3)
    torch.testing.assert_close(grad, expected)
    assert grad.any()


@pytest.mark.parametrize("name", ["arcface", "sub-centers", "uniform, z"])
def test_reference_backend(name: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant)
    expected = gradients(variant.eager, variant, inputs, None)
    with fusedloss.backend("reference"):
        got = gradients(variant.loss, variant, inputs, None)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@each_schedule
@each_reduction
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["arcface", "sub-centers", "uniform, z"])
def test_compiled_whole(name: str, dynamic: bool, reduction: str, schedule: str) -> None:
    torch._dynamo.reset()
    variant = VARIANTS[name]

    def function(inputs: list[Tensor]) -> Tensor:
        return (variant.loss(inputs, reduction=reduction, chunk_size=8) * 1.5).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with fusedloss.gradient_schedule(schedule):
        for rows in (ROWS, 20) if dynamic else (ROWS,):
            inputs = make(variant, rows=rows)
            expected = gradients(function, variant, inputs, None)
            got = gradients(compiled, variant, inputs, None)
            for ours, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, False], [False] * 3])
@pytest.mark.parametrize("head", [Head(True, True, 1), Head(False, True, 3)])
def test_operators(wanted: list[bool], head: Head) -> None:
    f, w, target, b = make(VARIANTS["sub-centers"], torch.float32)
    factor = torch.rand(ROWS)
    entropy = (0.1, False, 0.01, -1, 5, wanted)
    plain = (f, w[:CLASSES], b, target, factor, *entropy)
    torch.library.opcheck(torch.ops.fusedloss.linear_cross_entropy, plain)
    margin = (None, None, None, 9.0, 1.0, 0.3, 0.0, False, True, False, 0.0, INF, -1)
    weight = w[: CLASSES * head.sub_centers]
    bare = (f, weight, None, target, None, *margin, *head, 5, [*wanted[:2], False])
    torch.library.opcheck(torch.ops.fusedloss.linear_margin_softmax, bare)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no CUDA devices")
@pytest.mark.parametrize("centers", [1, 3])
def test_a_gpu_is_never_waited_for(centers: int) -> None:
    with FakeTensorMode():  # whose tensors have no values that anybody could look at
        f, w = (torch.empty(rows, 4, device="cuda:0") for rows in (20, 6 * centers))
        target = torch.empty(20, dtype=torch.int64, device="cuda:0")
        margin = (None, None, None, 9.0, 1.0, 0.3, 0.0, False, True, False, 0.0, INF, -1)
        factor, wanted = f[:, 0], [True, True, False]
        got = _linear.linear_margin_softmax(
            f, w, None, target, factor, *margin, True, True, centers, 7, wanted
        )
        assert [x.shape for x in got] == [(20,), f.shape, w.shape, (0,)]
        entropy, wanted = (0.1, False, 0.1, -1), [True, True, True]
        got = _linear.linear_cross_entropy(f, w, w[:, 0], target, factor, *entropy, 7, wanted)
        assert [x.shape for x in got] == [(20,), f.shape, w.shape, w.shape[:1]]
        assert all(x.device.type == "cuda" for x in got)


@pytest.mark.parametrize("name", ["arcface", "cross entropy"])
def test_autocast_changes_nothing(name: str) -> None:
    variant = VARIANTS[name]
    inputs = make(variant, torch.float32)
    expected = gradients(variant.loss, variant, inputs, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(variant.loss, variant, inputs, None)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


# --- memory ---------------------------------------------------------------------------------------

BIG_ROWS, BIG_CLASSES, BIG_WIDTH = 256, 3000, 16


def peak_of(
    variant: Variant, dtype: torch.dtype, chunk_size: int, reduction: str, frozen: tuple[int, ...]
) -> tuple[int, int]:
    """Peak bytes above the inputs of forward and backward, and the bytes of the gradients."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(BIG_ROWS, BIG_WIDTH, generator=generator).to(dtype),
        torch.randn(BIG_CLASSES * variant.centers, BIG_WIDTH, generator=generator).to(dtype),
        torch.randint(0, BIG_CLASSES, (BIG_ROWS,), generator=generator),
        torch.randn(BIG_CLASSES, generator=generator).to(dtype),
    ]
    wrt = [i for i in ((0, 1) if variant.margin else (0, 1, 3)) if i not in frozen]
    for i in wrt:
        inputs[i].requires_grad_()

    def run() -> list[Tensor | None]:
        loss = variant.loss(inputs, chunk_size=chunk_size, reduction=reduction)
        loss.backward(torch.ones_like(loss))
        grads = [inputs[i].grad for i in wrt]
        for i in wrt:
            inputs[i].grad = None
        return grads

    run()
    peak = peak_bytes(run, CPU)
    if peak is None:
        pytest.skip("the profiler gives no records here")
    return peak, sum(inputs[i].numel() * inputs[i].element_size() for i in wrt)


@each_schedule
@each_reduction
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["arcface", "by class", "sub-centers", "uniform, z"])
def test_the_logits_never_exist_whole(
    name: str, dtype: torch.dtype, reduction: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = VARIANTS[name]
    if name == "by class":
        variant = Variant(True, {"m2": torch.rand(BIG_CLASSES), "scale": 16.0})
    whole = BIG_ROWS * BIG_CLASSES * dtype.itemsize
    rows = 32
    # One chunk, with sub-centers two and two bytes for which is the largest.
    chunk = rows * BIG_CLASSES * (2 * dtype.itemsize + 2 if variant.centers > 1 else dtype.itemsize)
    # Some numbers for each row of the weight, copies of features, and scratch that does not grow with
    # the sizes: a block of the product, of oneDNN for bfloat16.
    slack = 12 * BIG_CLASSES * variant.centers + 8 * BIG_ROWS * BIG_WIDTH
    slack += 350_000 if dtype == torch.bfloat16 else 4 * BIG_CLASSES // 16 * rows
    monkeypatch.setattr(_chunks, "BLOCK_ELEMENTS", 2**10)
    with fusedloss.gradient_schedule(schedule):
        peak, grads = peak_of(variant, dtype, rows, reduction, ())
        assert peak <= grads + chunk + slack
        assert chunk + slack < whole
        at_once, _ = peak_of(variant, dtype, BIG_ROWS, reduction, ())
        assert at_once > grads + whole  # the count does see logits where they are


def test_no_gradient_of_a_frozen_weight_is_made() -> None:
    variant = VARIANTS["arcface"]
    for reduction in REDUCTIONS:
        peak, _ = peak_of(variant, torch.float32, 2, reduction, (1,))
        assert peak < 4 * BIG_CLASSES * BIG_WIDTH
        peak, _ = peak_of(variant, torch.float32, 2, reduction, ())
        assert peak > 4 * BIG_CLASSES * BIG_WIDTH


def test_default_chunks() -> None:
    def rows(count: int, classes: int, width: int, head: Head = PLAIN) -> int:
        shape = (classes * head.sub_centers, width)
        f, w = torch.empty(count, width, device="meta"), torch.empty(shape, device="meta")
        return chunk_rows(f, w, head, 0)

    small, large = CHUNK_BYTES
    assert rows(512, 100_000, 512) == CHUNK_ROWS == 128  # of four equal chunks
    assert rows(4096, 1_000_000, 512) == CHUNK_ROWS  # never fewer
    assert rows(512, 1_000, 512) == 512  # everything fits
    assert rows(0, 10, 4) == 0
    assert rows(1, 10**9, 4) == 1
    for head in (PLAIN, Head(True, True, 3)):
        assert rows(4096, 9_000, 64, head) == 512  # an eighth
        assert 8 * rows(65_536, 9_000, 64, head) < 65_536  # the upper bound
        features = rows(10**6, 10, 512, head)  # of which there are copies
        assert large // 2 < features * 4 * (10 + 3 * 512) <= large
    assert small // 2 < rows(8192, 1_000, 64) * 4 * (1_000 + 3 * 64) <= small
    assert rows(65_536, 50_000, 64, Head(True, True, 3)) < rows(65_536, 50_000, 64) / 2


# --- arguments ------------------------------------------------------------------------------------

BOTH = [linear_margin_softmax_loss, linear_cross_entropy]
each_function = pytest.mark.parametrize("function", BOTH, ids=lambda f: f.__name__)
FEATURES, WEIGHT, LABELS = torch.zeros(3, 4), torch.zeros(6, 4), torch.tensor([0, 1, 5])


@each_function
@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, None, TypeError, "features must be a tensor|NoneType"),
        (0, FEATURES.long(), TypeError, "features has dtype int64|float32, float64"),
        (0, torch.zeros(3), ValueError, "features has shape (3,)|[N, D]"),
        (0, torch.zeros(3, 4, 1), ValueError, "features has shape (3, 4, 1)|[N, D]"),
        (1, [1.0], TypeError, "weight must be a tensor|list"),
        (1, WEIGHT.double(), TypeError, "weight has dtype float64|features has float32"),
        (1, torch.zeros(6, 5), ValueError, "weight has shape (6, 5)|(3, 4)|[C, 4]"),
        (1, torch.zeros(4), ValueError, "weight has shape (4,)|[C, 4]"),
        (1, torch.zeros(0, 4), ValueError, "weight has shape (0, 4)|at least one class"),
        (1, WEIGHT.to("meta"), ValueError, "weight is on meta|features is on cpu"),
        (2, None, TypeError, "target must be a tensor"),
        (2, LABELS.float(), TypeError, "target has dtype float32|int64, int32, int16, uint8"),
        (2, LABELS[:2], ValueError, "target has shape (2,)|(3,)"),
        (2, LABELS[:, None], ValueError, "target has shape (3, 1)|(3,)"),
        (2, LABELS.to("meta"), ValueError, "target is on meta|features is on cpu"),
    ],
)
def test_bad_tensors(
    function: Any, place: int, value: object, error: type[Exception], message: str
) -> None:
    given: list[Any] = [FEATURES, WEIGHT, LABELS]
    given[place] = value
    refused_by(function, error, message, *given)


@each_function
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_size": 0}, ValueError, "chunk_size is 0|None and integers >= 1"),
        ({"chunk_size": 1.5}, TypeError, "chunk_size must be an int|float"),
        ({"reduction": "avg"}, ValueError, "reduction is 'avg'|'none'"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
    ],
)
def test_bad_options(
    function: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    refused_by(function, error, message, FEATURES, WEIGHT, LABELS, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale is 0"),
        ({"m1": -1.0}, ValueError, "m1 is -1"),
        ({"m2": torch.zeros(5)}, ValueError, "m2 has shape (5,)|(6,)"),
        ({"m3": torch.zeros(3, 1)}, ValueError, "m3 has shape (3, 1)"),
        ({"m3": torch.zeros(6, device="meta")}, ValueError, "m3 is on meta|features is on cpu"),
        ({"sub_centers": 4}, ValueError, "weight has 6 rows|multiples of sub_centers|4"),
        ({"sub_centers": 0}, ValueError, "sub_centers is 0|1 to 255"),
        ({"sub_centers": 256}, ValueError, "sub_centers is 256|1 to 255"),
        ({"sub_centers": 1.0}, TypeError, "sub_centers must be an int"),
        ({"normalize_features": 1}, TypeError, "normalize_features must be a bool"),
        ({"normalize_weight": None}, TypeError, "normalize_weight must be a bool"),
        ({"monotonic": "no"}, ValueError, "monotonic is 'no'"),
        ({"gradient": "no"}, ValueError, "gradient is 'no'"),
        (
            {"filter_threshold": 0.5, "label_smoothing": 0.1},
            ValueError,
            "filter_threshold is 0.5|label_smoothing",
        ),
    ],
)
def test_bad_margin_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    function = linear_margin_softmax_loss
    refused_by(function, error, message, FEATURES, WEIGHT, LABELS, **options)


@pytest.mark.parametrize(
    ("bias", "options", "error", "message"),
    [
        (1.0, {}, TypeError, "bias must be a tensor"),
        (torch.zeros(5), {}, ValueError, "bias has shape (5,)|(6,)"),
        (torch.zeros(6, 1), {}, ValueError, "bias has shape (6, 1)|(6,)"),
        (torch.zeros(6).half(), {}, TypeError, "bias has dtype float16|features has float32"),
        (None, {"smoothing": "no"}, ValueError, "smoothing is 'no'"),
        (None, {"z_loss": -1.0}, ValueError, "z_loss is -1"),
    ],
)
def test_bad_cross_entropy_arguments(
    bias: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    function = linear_cross_entropy
    refused_by(function, error, message, FEATURES, WEIGHT, LABELS, bias, **options)


@each_function
@pytest.mark.parametrize("label", [6, -2, 100])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_labels(function: Any, label: int, backend: str) -> None:
    target = torch.tensor([0, label, 5])
    with fusedloss.backend(backend), pytest.raises(IndexError) as caught:
        function(FEATURES, WEIGHT, target)
    assert f"label {label}" in str(caught.value)
    assert "6 classes" in str(caught.value)
    if backend == "native":
        assert str(caught.value).startswith(f"{function.__name__}: target")
        with pytest.raises(IndexError, match="3 classes"):
            linear_margin_softmax_loss(FEATURES, WEIGHT, torch.tensor([0, 3, 1]), sub_centers=2)
