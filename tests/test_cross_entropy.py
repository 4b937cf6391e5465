"""cross_entropy against torch's own, in float64 to 1e-10."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import fusedloss
import pytest
import torch
import torch.nn.functional as F
from cases import lay_out
from fusedloss import cross_entropy, nll_loss, softmax_focal_loss
from torch import Tensor

SCHEDULES = ("recompute", "forward")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
REDUCTIONS = ("mean", "sum", "none")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

CLASSES = [
    *(1, 2, 3),  # no other class, one, and an odd number below every vector
    *(7, 19, 91, 150),  # around and between the widths of vectors and warps
    *(1000, 1001),  # rows that all start alike, and rows that all start differently
    *(21841, 128256),  # longer than a block of threads, and than a core's nearest cache
]
INNER = [
    1,  # rows in memory
    2,  # classes apart by less than a vector
    5,  # odd
    527,  # more than a block of pixels, and no multiple of a vector
]
LIMIT = 300_000
GRID = [(c, i) for c, i in itertools.product(CLASSES, INNER) if c * i <= LIMIT]


def inputs(classes: int, *inner: int, rows: int, dtype: torch.dtype = torch.float64) -> Any:
    """(logits [rows, classes, *inner], labels with ignored ones, probabilities, class weights)."""
    g = torch.Generator().manual_seed(classes + sum(inner))
    shape = (rows, classes, *inner)
    x = 4 * torch.randn(shape, generator=g, dtype=torch.float64)
    label = torch.randint(0, classes, (rows, *inner), generator=g)
    if label.numel() > 1:
        label[torch.rand(label.shape, generator=g) < 0.2] = -100
        label.view(-1)[0] = classes - 1  # never all of them
    soft = torch.softmax(torch.randn(shape, generator=g, dtype=torch.float64), 1)
    weight = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1
    return x.to(dtype), label, soft.to(dtype), weight.to(dtype)


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient from an upstream that differs from element to element."""
    leaf = x.detach().requires_grad_()
    loss = function(leaf)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    return loss.detach(), grad


def assert_equal_to_torch(
    x: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> None:
    """Value and gradient under both schedules."""
    expected = with_gradient(lambda x: F.cross_entropy(x, target, weight, **options), x)
    for schedule in SCHEDULES:
        with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
            got = with_gradient(lambda x: cross_entropy(x, target, weight, **options), x)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)


def combinations() -> Iterator[tuple[bool, dict[str, Any]]]:
    """(whether with class weights, the other options)."""
    for weighted, e, reduction in itertools.product((False, True), (0.0, 0.1), REDUCTIONS):
        yield weighted, {"label_smoothing": e, "reduction": reduction}


@pytest.mark.parametrize(("classes", "inner"), GRID)
def test_equal_to_torch(classes: int, inner: int) -> None:
    # Several blocks of rows where they are short.
    rows = max(1, min(700, 12_000 // (classes * inner)))
    x, label, soft, weight = inputs(classes, inner, rows=rows)
    if inner == 1:
        x, label, soft = x[..., 0], label[..., 0], soft[..., 0]
    for weighted, options in combinations():
        for target in (label, soft):
            assert_equal_to_torch(x, target, weight if weighted else None, **options)


@pytest.mark.parametrize("shape", [(1, 3, 512 * 1024), (1, 19, 512, 1024)])
def test_images_equal_to_torch(shape: tuple[int, ...]) -> None:
    # Segmentation of a whole image, once with three classes and once with street scenes' nineteen.
    x, label, _, weight = inputs(*shape[1:], rows=1)
    label[label < 0] = 255
    options: dict[str, Any] = {"ignore_index": 255, "label_smoothing": 0.1}
    expected = with_gradient(lambda x: F.cross_entropy(x, label, weight, **options), x)
    small = label.to(torch.uint8)
    got = with_gradient(lambda x: cross_entropy(x, small, weight, **options), x)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(
        got[1] * label.numel(), expected[1] * label.numel(), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(7,), (4, 7), (4, 7, 3), (2, 7, 3, 2), (2, 7, 2, 1, 3), (0, 7)])
def test_every_number_of_dimensions(shape: tuple[int, ...]) -> None:
    dim = 1 if len(shape) > 1 else 0
    g = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    soft = torch.softmax(torch.randn(shape, generator=g, dtype=torch.float64), dim)
    label = soft.argmax(dim)
    weight = torch.rand(7, generator=g, dtype=torch.float64)
    for weighted, options in combinations():
        for target in (label, soft):
            assert_equal_to_torch(x, target, weight if weighted else None, **options)


@pytest.mark.parametrize(
    "layout", ["transposed", "channels_last", "permuted", "sliced", "expanded"]
)
def test_every_layout(layout: str) -> None:
    x, label, soft, weight = inputs(5, 4, 6, rows=3)
    x = lay_out(x, layout)
    for target_layout in ("contiguous", layout):
        for target in (label, soft):
            target = lay_out(target, target_layout)
            assert_equal_to_torch(x, target, weight, label_smoothing=0.1)


@pytest.mark.parametrize("ignore_index", [-100, 0, 2, 255, -1, 2**40])
def test_every_ignore_index(ignore_index: int) -> None:
    x, label, *_ = inputs(3, 11, rows=4)
    label[label < 0] = ignore_index
    for reduction in REDUCTIONS:
        for e in (0.0, 0.3):
            assert_equal_to_torch(
                x, label, ignore_index=ignore_index, reduction=reduction, label_smoothing=e
            )


@each_schedule
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int16, torch.uint8])
def test_label_dtypes_say_the_same(label_dtype: torch.dtype, schedule: str) -> None:
    x, label, _, weight = inputs(19, 5, rows=7)
    label[label < 0] = 100
    with fusedloss.gradient_schedule(schedule):
        results = [
            with_gradient(lambda x, t=t: cross_entropy(x, t, weight, ignore_index=100), x)
            for t in (label, label.to(label_dtype))
        ]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


INF, NAN = float("inf"), float("nan")
SPECIAL_ROWS = {
    "all -inf": [-INF, -INF, -INF],
    "all +inf": [INF, INF, INF],
    "+inf at the label": [0.0, INF, 1.0],
    "+inf beside": [INF, 0.0, 1.0],
    "-inf at the label": [0.0, -INF, 1.0],
    "-inf beside": [-INF, 0.0, 1.0],
    "only the label": [-INF, 0.5, -INF],
    "NaN at the label": [0.0, NAN, 1.0],
    "NaN beside": [NAN, 0.0, 1.0],
    "+inf and -inf": [INF, 0.0, -INF],
    "largest": [1.7e308, -1.7e308, 0.0],
}


@pytest.mark.parametrize("name", SPECIAL_ROWS)
@pytest.mark.parametrize("pixels", [False, True])
def test_special_logits_show_as_in_torch(pixels: bool, name: str) -> None:
    x = torch.tensor([[0.5, 1.0, -1.0], SPECIAL_ROWS[name], [2.0, 0.0, 1.0]], dtype=torch.float64)
    label = torch.tensor([0, 1, 2])
    soft = torch.tensor([[0.2, 0.3, 0.5], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    if pixels:
        x, label, soft = x.t()[None], label[None], soft.t()[None]
    weight = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    for weighted, options in combinations():
        for target in (label, soft):
            assert_equal_to_torch(x, target, weight if weighted else None, **options)


@each_schedule
@pytest.mark.parametrize("e", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (0, 3), (2, 3, 0)])
def test_mean_over_nothing_is_nan(shape: tuple[int, ...], e: float, schedule: str) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    label = torch.full(shape[:1] + shape[2:], -100)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for w in (None, weight):
        assert_equal_to_torch(x, label, w, label_smoothing=e)
        assert_equal_to_torch(x, label, w, label_smoothing=e, reduction="sum")
        with fusedloss.gradient_schedule(schedule):
            loss, grad = with_gradient(
                lambda x, w=w: cross_entropy(x, label, w, label_smoothing=e, z_loss=0.1), x
            )
        assert torch.isnan(loss)
        assert (grad == 0).all()
        assert torch.isnan(nll_loss(x, label, w))


def test_weights_that_leave_nothing_to_divide_by() -> None:
    x, label, *_ = inputs(3, 5, rows=4)
    weight = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert_equal_to_torch(x, label.clamp(max=1), weight)
    assert_equal_to_torch(x, label.clamp(max=1), weight, reduction="sum")
    assert torch.isnan(cross_entropy(x, label.clamp(max=1), weight))


@each_schedule
@pytest.mark.parametrize("e", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_equal_torch(reduction: str, e: float, schedule: str) -> None:
    x, label, soft, weight = inputs(5, 3, rows=4)
    options: dict[str, Any] = {"label_smoothing": e, "reduction": reduction}
    for target, w in itertools.product((label, soft), (None, weight)):
        results = []
        for function in (cross_entropy, F.cross_entropy):
            leaf = x.clone().requires_grad_()
            with fusedloss.gradient_schedule(schedule):
                loss = function(leaf, target, w, **options)
                (grad,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
                direction = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)
                (grad * direction + grad.square()).sum().backward()
            results.append(leaf.grad)
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)
        assert (results[0] != 0).any()


@each_schedule
def test_gradients_of_probabilities_and_weights_equal_torch(schedule: str) -> None:
    x, _, soft, weight = inputs(5, 3, rows=4)
    for e, reduction in itertools.product((0.0, 0.1), REDUCTIONS):
        results = []
        for function in (cross_entropy, F.cross_entropy):
            leaves = [v.clone().requires_grad_() for v in (x, soft, weight)]
            with fusedloss.gradient_schedule(schedule):
                loss = function(*leaves, label_smoothing=e, reduction=reduction)
                results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaves)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)


@each_schedule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_float32(dtype: torch.dtype, schedule: str) -> None:
    x, label, soft, weight = inputs(19, 5, rows=7, dtype=dtype)
    for target, w in itertools.product((label, soft), (None, weight, weight.float() * 1.001)):
        wide = None if w is None else w.float()
        target_wide = target.float() if target.is_floating_point() else target
        expected = with_gradient(
            lambda x, t=target_wide, wide=wide: F.cross_entropy(x, t, wide, label_smoothing=0.1),
            x.float(),
        )
        with fusedloss.gradient_schedule(schedule):
            got = with_gradient(
                lambda x, t=target, w=w: cross_entropy(x, t, w, label_smoothing=0.1), x
            )
        assert got[0].dtype == torch.float32
        assert got[1].dtype == dtype
        torch.testing.assert_close(got[0], expected[0], rtol=2e-6, atol=0)
        eps = torch.finfo(dtype).eps
        # Gradients of a mean over 35 rows: an absolute floor for those below float16's normal range.
        torch.testing.assert_close(got[1].float(), expected[1], rtol=2 * eps, atol=2e-7)


@each_schedule
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_small_losses_of_large_logits_keep_their_digits(
    classes: int, pixels: bool, schedule: str
) -> None:
    # The loss is a difference of numbers around 100: log-sum-exp less a logit. What is lost there
    # must not be more than the rounding of a number of the size of the loss's own terms, of which up
    # to 100 are added one by one.
    g = torch.Generator().manual_seed(classes)
    x = 2 * torch.randn(5000, classes, generator=g)
    label = x.argmax(1)
    x = x + 100 * torch.randint(-1, 2, (5000, 1), generator=g)
    hot = F.one_hot(label, classes).float()
    exact = F.cross_entropy(x.double(), label, reduction="none")
    if pixels:
        x, label, hot = x.t()[None].contiguous(), label[None], hot.t()[None].contiguous()
    for target in (label, hot):
        with fusedloss.gradient_schedule(schedule):
            loss, _ = with_gradient(lambda x, t=target: cross_entropy(x, t, reduction="none"), x)
        torch.testing.assert_close(loss.flatten().double(), exact, rtol=1e-6, atol=1e-6)


@each_dtype
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    # Large enough for several tasks a thread, in rows and in pixels.
    for classes, inner, rows in ((1000, 1, 700), (19, 5000, 7), (21841, 1, 23), (2, 1, 300_001)):
        x, label, *_ = inputs(classes, inner, rows=rows, dtype=dtype)
        if inner == 1:
            x, label = x[..., 0], label[..., 0]
        for schedule in SCHEDULES:
            results = []
            for threads in (1, 2, 3, 4, 1):
                torch.set_num_threads(threads)
                with fusedloss.gradient_schedule(schedule):
                    results.append(
                        with_gradient(lambda x, label=label: cross_entropy(x, label, z_loss=0.1), x)
                    )
            for loss, grad in results[1:]:
                assert torch.equal(loss, results[0][0])
                assert torch.equal(grad, results[0][1])


def test_signature_is_that_of_torch() -> None:
    x, label, _, weight = inputs(5, 3, rows=4)
    assert torch.equal(cross_entropy(x, label, weight), cross_entropy(x, label, weight=weight))
    keywords = cross_entropy(input=x, target=label, weight=None, ignore_index=-100)
    assert torch.equal(keywords, cross_entropy(x, label))
    log_p = torch.log_softmax(x, 1)
    assert torch.equal(nll_loss(log_p, label, weight), nll_loss(log_p, label, weight=weight))


@each_schedule
def test_class_weights_that_add_up_to_nothing(schedule: str) -> None:
    # Their sum must not be mistaken for there being none.
    x = torch.randn(9, 4, dtype=torch.float64)
    label = torch.arange(9) % 4
    weight = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": 0.5, "reduction": "none"}
    with fusedloss.gradient_schedule(schedule):
        got = with_gradient(lambda x: cross_entropy(x, label, **options), x)
    expected = with_gradient(lambda x: F.cross_entropy(x, label, **options), x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.9, 1.0])
def test_smoothing_over_the_others_alone_does_not_cancel(epsilon: float) -> None:
    # The label's own large term is not part of what is spread.
    x = torch.tensor([[-1e6, 0.5, 1.0, -0.5]])
    loss = cross_entropy(x, torch.tensor([0]), label_smoothing=epsilon, smoothing="others")
    lse = torch.logsumexp(x.double(), 1)
    expected = (1 - epsilon) * (lse - x[:, 0]) + epsilon / 3 * (lse - x[:, 1:].double()).sum()
    torch.testing.assert_close(loss.double(), expected.squeeze(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1e-3, 0.1, 0.5])
def test_smoothed_softmax_focal_stays_finite_where_the_tail_vanishes(
    gamma: float, dtype: torch.dtype
) -> None:
    for top in (100.0, 1e6, 1e30):
        x = torch.tensor([[top, 0.0, 1.0]], dtype=dtype)
        for schedule in SCHEDULES:
            with fusedloss.gradient_schedule(schedule):
                loss, grad = with_gradient(
                    lambda x: softmax_focal_loss(
                        x, torch.tensor([0]), gamma=gamma, label_smoothing=0.1
                    ),
                    x,
                )
            assert torch.isfinite(loss)
            assert torch.isfinite(grad).all()


def test_operators_refuse_logits_that_they_would_misread() -> None:
    ops = torch.ops.fusedloss
    whole, label = torch.ones(4, 5, dtype=torch.int8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="logits of an unsupported dtype"):
        ops.cross_entropy_fwd(whole, label, None, 0.0, False, 0.0, -100, 2, False, True)
    with pytest.raises(RuntimeError, match="probabilities of an unsupported dtype"):
        ops.cross_entropy_fwd(torch.ones(4, 5), whole, None, 0.0, False, 0.0, -100, 2, False, True)
    with pytest.raises(RuntimeError, match="input of an unsupported dtype"):
        ops.sigmoid_focal_fwd(whole, label, None, None, None, 0.25, 2.0, -100, 0.0, 0.0, 2, True)
