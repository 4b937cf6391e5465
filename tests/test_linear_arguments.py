"""Chunks, memory and refused arguments of losses of a linear layer."""

from __future__ import annotations

from typing import Any

import fusedloss
import pytest
import torch
from fusedloss import _chunks, linear_cross_entropy, linear_margin_softmax_loss
from fusedloss._chunks import CHUNK_BYTES, CHUNK_ROWS, PLAIN, Head, chunk_rows
from fusedloss.benchmarks.memory import peak_bytes
from linear_cases import (
    CPU,
    REDUCTIONS,
    VARIANTS,
    Variant,
    each_reduction,
    each_schedule,
)
from test_arguments import refused_by
from torch import Tensor

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
