"""The CUDA row-softmax kernels on the emulator: what they move, at which sizes which of them runs, and
that no alignment, label or order of threads makes them wrong.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import cuda_traffic
import pytest
import torch
from emulated import CrossEntropy, MarginSoftmax, SoftmaxFocal
from fusedloss import reference
from tolerances import check_close, check_gradient
from torch import Tensor

TRAFFIC_LIMIT = 1.02
SCHEDULES = ("recompute", "forward")


def test_traffic_and_launches(emulator: ModuleType) -> None:
    print(
        f"\n{'workload':<28} {'pass':<13} {'kernel':<11} {'launches':>8} {'bytes':>9} {'/ least':>8} "
        f"{'full':>6}"
    )
    for workload in cuda_traffic.ROW_WORKLOADS:
        for t in cuda_traffic.measure(emulator, workload):
            share = f"{t.moved / t.least:8.4f}" if t.least else "       -"
            full = t.full_sectors / t.sectors
            policy = t.kernels[0].removesuffix("_kernel")
            name = workload.name
            print(
                f"{name:<28} {t.what:<13} {policy:<11} {t.launches:8} {t.moved:9} {share} {full:6.3f}"
            )
            assert t.launches <= (2 if t.what.startswith("forward") else 1)
            assert t.atomics == 0
            if t.what != "scale":
                assert policy == workload.policy, name
            if t.least:
                assert t.moved <= TRAFFIC_LIMIT * t.least, f"{name} {t.what}"
                # Of the rest most are labels of 8 bytes, and target logits here and there.
                assert full >= 0.75, f"{name} {t.what}"
            else:
                assert t.written == 0, f"{name}: a factor of 1 must not write"


def _gradient(kind: str, x: Tensor, target: Tensor, upstream: Tensor, **o: Any) -> Any:
    leaf = x.detach().requires_grad_()
    loss = getattr(reference, kind)(leaf, target, **o)
    (grad,) = torch.autograd.grad((loss * upstream.to(loss.dtype)).sum(), leaf)
    return loss.detach(), grad


EMULATED = {
    "cross_entropy": CrossEntropy,
    "margin_softmax_loss": MarginSoftmax,
    "softmax_focal_loss": SoftmaxFocal,
}


def _in_double(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}


def _check(
    emulator: ModuleType, what: str, kind: str, x: Tensor, target: Tensor, **options: Any
) -> None:
    """Both schedules against the reference in float64, with an incoming gradient of any size."""
    soft = target.is_floating_point()
    wide = target.double() if soft else target
    shape = x.select(0 if x.dim() == 1 else 1, 0).shape
    none = options.get("reduction", "mean") == "none"
    upstream = torch.linspace(0.5, 1.5, max(1, math.prod(shape))).view(shape if none else (-1,))
    upstream = upstream if none else upstream[0]
    exact = _gradient(kind, x.double(), wide, upstream, **_in_double(options))
    narrow = target.to(x.dtype) if soft else target
    eager = _gradient(kind, x, narrow, upstream, **options)
    for schedule in SCHEDULES:
        kernel = EMULATED[kind](emulator, x, target, **options)
        loss, grad = kernel.run(schedule, upstream.to(kernel.dtype))
        check_close(f"{what} {schedule} loss", loss, exact[0], eager[0])
        check_gradient(f"{what} {schedule} gradient", grad, exact[1], eager[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 19, 91, 1001])
def test_every_misalignment(emulator: ModuleType, dtype: torch.dtype, classes: int) -> None:
    """Slides the logits through every alignment: the emulator reports any access beside the tensors
    and any race, and the gradient's own alignment differs from the logits' but at offset 0.
    """
    emulator.configure(count=False, race_check=True, seed=9)
    rows = 23 if classes < 1000 else 3
    torch.manual_seed(classes)
    store = torch.randn(rows * classes + 17).to(dtype)
    target = torch.arange(rows) * 7 % classes
    target[5:7] = -100
    for offset in range(17):
        x = store[offset : offset + rows * classes].view(rows, classes)
        what = f"{dtype} offset {offset}"
        _check(emulator, what, "cross_entropy", x, target, label_smoothing=0.1)


# What the limits of the policies divide: lanes of a tile's row, tile and block, threads of a block,
# kept and not, for fp32 rows of so many bytes.
BOUNDARIES = [64, 128, 256, 512, 1024, 4096, 8192, 16384, 32768, 47 * 1024]


@pytest.mark.parametrize("row_bytes", BOUNDARIES)
def test_policy_boundaries(emulator: ModuleType, row_bytes: int) -> None:
    emulator.configure(count=False, race_check=True, seed=4)
    torch.manual_seed(row_bytes)
    for classes in (row_bytes // 4 - 4, row_bytes // 4, row_bytes // 4 + 1):
        x = torch.randn(5, classes) * 3
        target = torch.randint(0, classes, (5,))
        target[2] = -100
        what = f"{classes} classes"
        _check(emulator, what, "cross_entropy", x, target, reduction="none")
        _check(emulator, what, "softmax_focal_loss", x, target, gamma=1.5, label_smoothing=0.1)
        cosine = x.tanh() * 0.99
        margins = {"m2": 0.5, "scale": 30.0, "ignore_index": -100}
        _check(emulator, what, "margin_softmax_loss", cosine, target, **margins)
        margins = {"m1": 1.7, "filter_threshold": 0.6, "ignore_index": -100}
        _check(emulator, what, "margin_softmax_loss", cosine, target, **margins)


torch.manual_seed(7)  # what follows is made once, whatever was imported before
SHAPES: dict[str, Tensor] = {
    "one row": torch.randn(11),
    "several tiles": torch.randn(3000, 3),
    "pixels, aligned": torch.randn(2, 5, 4, 8),
    "pixels, odd": torch.randn(2, 19, 5, 7),
    "shared classes": torch.randn(2, 260, 6),
    "channels last": torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last),
    "transposed": torch.randn(300, 17).t(),
    "padded rows, short": torch.randn(9, 60)[:, 3:53],
    "padded rows, long": torch.randn(4, 1500)[:, 3:1403],
    "every other class": torch.randn(7, 40)[:, ::2],
    "one class of pixels": torch.randn(3, 1, 4, 5),
    "permuted pixels": torch.randn(4, 5, 3, 6).permute(3, 1, 0, 2),
    "expanded": torch.randn(1, 7).expand(5, 7),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1, "reduction": "sum"},
    "smoothed over others": {"label_smoothing": 0.3, "smoothing": "others"},
    "weighted": {"weight": True, "label_smoothing": 0.2, "z_loss": 0.1},
    "weighted rows": {"weight": True, "z_loss": 0.1, "reduction": "none"},
    "soft": {"probabilities": True, "label_smoothing": 0.1, "weight": True, "z_loss": 0.01},
    "soft, fp16": {"probabilities": torch.float16, "reduction": "none"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_layouts_and_options(emulator: ModuleType, shape: str, options: str) -> None:
    emulator.configure(count=False, race_check=True, seed=11)
    torch.manual_seed(3)
    given = dict(OPTIONS[options])
    x = SHAPES[shape]
    dim = 0 if x.dim() == 1 else 1
    classes = x.size(dim)
    if given.get("weight"):
        given["weight"] = torch.rand(classes) + 0.5
    probabilities = given.pop("probabilities", None)
    if probabilities and classes == 1:
        given.pop("z_loss", None)  # sum_u p - u is 0 but for rounding, beside which z is small
    if probabilities:
        target = torch.rand(x.shape).softmax(dim)
        target = target.to(probabilities) if probabilities is not True else target
    else:
        rows = x.select(dim, 0).shape
        target = torch.randint(0, classes, rows)
        if target.numel() > 3:
            target.view(-1)[1::4] = -100
    _check(emulator, f"{shape} {options}", "cross_entropy", x, target, **given)


MARGINS: dict[str, dict[str, Any]] = {
    "arcface": {"m2": 0.5},
    "sphereface, by class": {"m1": "by class", "scale": 10.0, "reduction": "none"},
    "easy, smoothed": {"m2": 0.4, "m3": 0.1, "easy_margin": True, "label_smoothing": 0.2},
    "straight through, by class": {
        "m2": "by class",
        "m3": "by class",
        "gradient": "straight_through",
    },
    "filtered": {"m3": 0.35, "filter_threshold": 0.3, "scale": 20.0},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", MARGINS)
def test_margins_in_every_layout(emulator: ModuleType, shape: str, options: str) -> None:
    emulator.configure(count=False, race_check=True, seed=12)
    torch.manual_seed(4)
    x = SHAPES[shape]
    dim = 0 if x.dim() == 1 else 1
    classes = x.size(dim)
    store = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    cosine = store.tanh().as_strided(x.size(), x.stride(), x.storage_offset())
    given = {
        name: torch.linspace(1.0, 1.9, classes) - float(name != "m1")
        if value == "by class"
        else value
        for name, value in MARGINS[options].items()
    }
    target = torch.randint(0, classes, x.select(dim, 0).shape)
    if target.numel() > 3:
        target.view(-1)[1::4] = -1
    _check(emulator, f"{shape} {options}", "margin_softmax_loss", cosine, target, **given)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("shape", [(6, 19), (3, 1100), (2, 9, 4, 4)])
def test_label_types(emulator: ModuleType, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    emulator.configure(count=False, race_check=True, seed=2)
    x = torch.randn(shape)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:])).clamp(max=200).to(dtype)
    target.view(-1)[0] = 255 if dtype == torch.uint8 else -100
    ignored = {"ignore_index": 255} if dtype == torch.uint8 else {}
    alpha = torch.rand(shape[1])
    _check(emulator, "ce", "cross_entropy", x, target, **ignored)
    _check(emulator, "focal", "softmax_focal_loss", x, target, alpha=alpha, gamma=0.5, **ignored)
    normalizer = torch.tensor(3.0)
    _check(
        emulator,
        "focal",
        "softmax_focal_loss",
        x,
        target,
        alpha=0.25,
        normalizer=normalizer,
        **ignored,
    )


EDGE_SHAPES = [(8, 5), (8, 1200), (2, 5, 2, 2)]  # tile, block, pixels


@pytest.mark.parametrize("shape", EDGE_SHAPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ignored_and_bad_rows(emulator: ModuleType, shape: tuple[int, ...], schedule: str) -> None:
    """An ignored row's logits have no effect, NaN included; a label that is no class is never used as
    an index and makes its own row NaN, no other.
    """
    emulator.configure(count=False, race_check=True, seed=6)
    torch.manual_seed(1)
    x = torch.randn(shape)
    rows = (shape[0], *shape[2:])
    target = torch.randint(0, shape[1], rows)
    flat = target.view(-1)
    flat[0], flat[3], flat[5] = -100, shape[1], -7
    by_row = x.movedim(1, -1).reshape(-1, shape[1]).clone()
    by_row[0] = torch.nan
    x = by_row.view(*rows, shape[1]).movedim(-1, 1).contiguous()
    loss, grad = CrossEntropy(emulator, x, target, reduction="none").run(schedule)
    loss, grads = loss.reshape(-1), grad.movedim(1, -1).reshape(-1, shape[1])
    assert loss[0] == 0
    assert (grads[0] == 0).all()
    bad = torch.tensor([3, 5])
    assert loss[bad].isnan().all()
    assert grads[bad].isnan().all()
    good = torch.tensor([1, 2, 4, 6, 7])
    assert loss[good].isfinite().all()
    assert grads[good].isfinite().all()


@pytest.mark.parametrize("shape", EDGE_SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_logits(emulator: ModuleType, shape: tuple[int, ...], smoothing: float) -> None:
    emulator.configure(count=False, race_check=True, seed=8)
    rows = (shape[0], *shape[2:])
    by_row = torch.randn(8, shape[1])
    target = torch.full((8,), 2)
    by_row[0, 4] = torch.nan
    by_row[1, 2] = torch.nan
    by_row[2, 0] = torch.inf
    by_row[3, 2] = torch.inf
    by_row[4, :2] = -torch.inf
    by_row[5, 2] = -torch.inf
    by_row[6, :2] = by_row[6, 3:] = -torch.inf  # nothing but the target
    by_row[7] = -torch.inf
    x = by_row.view(*rows, shape[1]).movedim(-1, 1).contiguous()
    kernel = CrossEntropy(
        emulator, x, target.view(rows), reduction="none", label_smoothing=smoothing
    )
    loss = kernel.forward(with_grad=False)[0].reshape(-1)
    expected = torch.nn.functional.cross_entropy(
        by_row.double(), target, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(loss.double(), expected, equal_nan=True, rtol=1e-5, atol=1e-6)


# Also: lanes that share a tile's row, and warps that share the classes of pixels.
MASKED_SHAPES = [*EDGE_SHAPES, (8, 200), (2, 300, 4)]


def _masked_class(
    shape: tuple[int, ...], soft: bool, mask: float, masked: slice
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, targets and options of 8 rows, in which the masked classes have u = 0."""
    torch.manual_seed(7)
    classes = shape[1]
    x = torch.randn(shape)
    x[:, masked] = mask
    if soft:
        target = torch.rand(shape)
        target[:, masked] = 0
        return x, target / target.sum(1, keepdim=True), {}
    weight = torch.rand(classes) + 0.5
    weight[masked] = 0
    target = torch.randint(0, classes, (shape[0], *shape[2:])) | 1  # odd: none of the masked
    return x, target.clamp(max=(classes // 2) * 2 - 1), {"weight": weight, "label_smoothing": 0.1}


@pytest.mark.parametrize("shape", MASKED_SHAPES)
@pytest.mark.parametrize("soft", [True, False], ids=["probabilities", "weights"])
@pytest.mark.parametrize("mask", [-1e4, -1e9, -3e38])
@pytest.mark.parametrize("masked", [slice(1), slice(0, None, 2)], ids=["first", "every other"])
def test_masked_classes(
    emulator: ModuleType, shape: tuple[int, ...], soft: bool, mask: float, masked: slice
) -> None:
    """A finite mask whose class has no part in the loss takes no digits from the others."""
    emulator.configure(count=False, race_check=True, seed=5)
    x, target, options = _masked_class(shape, soft, mask, masked)
    leaf = x.double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(
        leaf, target.double() if soft else target, reduction="none", **_in_double(options)
    )
    (exact_grad,) = torch.autograd.grad(exact.sum(), leaf)
    for schedule in SCHEDULES:
        kernel = CrossEntropy(emulator, x, target, reduction="none", **options)
        loss, grad = kernel.run(schedule)
        torch.testing.assert_close(loss.double(), exact.detach(), rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", MASKED_SHAPES)
@pytest.mark.parametrize("soft", [True, False], ids=["probabilities", "weights"])
def test_zero_times_infinity(emulator: ModuleType, shape: tuple[int, ...], soft: bool) -> None:
    """NaN as torch has it; without terms, and in the target's own column, nothing is multiplied."""
    emulator.configure(count=False, race_check=True, seed=5)
    x, target, options = _masked_class(shape, soft, -torch.inf, slice(1))
    cases = [options] if soft else [options, {"weight": options["weight"]}]
    for case in cases:
        expected = torch.nn.functional.cross_entropy(x, target, reduction="none", **case)
        assert bool(expected.isnan().all()) == (soft or "label_smoothing" in case)
        kernel = CrossEntropy(emulator, x, target, reduction="none", **case)
        loss = kernel.forward(with_grad=False)[0].reshape(expected.shape)
        torch.testing.assert_close(loss, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [*EDGE_SHAPES, (4, 13000), (2, 300, 3)])
@pytest.mark.parametrize("loss", [CrossEntropy, SoftmaxFocal, MarginSoftmax])
def test_gradient_in_place(emulator: ModuleType, shape: tuple[int, ...], loss: Any) -> None:
    """The gradient over the logits: the same bits, and no thread reads what another has written."""
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    x = torch.tanh(torch.randn(shape))
    options = {"m2": 0.5, "scale": 8.0} if loss is MarginSoftmax else {"label_smoothing": 0.1}
    for seed in (1, 2, 3):
        emulator.configure(count=False, race_check=True, seed=seed)
        kernel = loss(emulator, x.clone(), target, **options)
        scale = kernel.forward(with_grad=False)[1]
        apart = kernel.backward(torch.ones(()), scale)
        assert torch.equal(kernel.backward(torch.ones(()), scale, in_place=True), apart)
        kernel = loss(emulator, x.clone(), target, **options)
        value, _, apart = kernel.forward(with_grad=True)
        again, _, grad = kernel.forward(with_grad=True, in_place=True)
        assert torch.equal(grad, apart)
        assert torch.equal(kernel.input, apart)
        assert torch.equal(again, value)


@pytest.mark.parametrize("shape", [(700, 19), (40, 1200), (3, 19, 40), (2, 300, 3)])
def test_same_bits_in_any_order(emulator: ModuleType, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    for schedule in SCHEDULES:
        results = []
        for seed in (0, 1, 2):
            emulator.configure(count=False, race_check=False, seed=seed)
            results.append(CrossEntropy(emulator, x, target, label_smoothing=0.1).run(schedule))
        for loss, grad in results[1:]:
            assert torch.equal(loss, results[0][0])
            assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(0, 5), (0, 2000), (0, 5, 3), (2, 5, 0)])
def test_no_rows(emulator: ModuleType, shape: tuple[int, ...], reduction: str) -> None:
    emulator.configure(count=False, race_check=True, seed=1)
    target = torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
    for schedule in SCHEDULES:
        kernel = CrossEntropy(emulator, torch.zeros(shape), target, reduction=reduction)
        loss, grad = kernel.run(schedule)
        focal, _ = SoftmaxFocal(emulator, torch.zeros(shape), target, reduction=reduction).run(
            schedule
        )
        assert grad.shape == shape
        if reduction == "mean":
            assert loss.isnan()
        if reduction != "none":
            assert focal == 0
        if reduction == "sum":
            assert loss == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_rows_ignored(emulator: ModuleType, schedule: str) -> None:
    emulator.configure(count=False, race_check=True, seed=1)
    x, target = torch.randn(9, 5), torch.full((9,), -100)
    loss, grad = CrossEntropy(emulator, x, target).run(schedule)
    assert loss.isnan()
    assert (grad == 0).all()
    loss, grad = SoftmaxFocal(emulator, x, target, normalizer=0.0).run(schedule)
    assert loss == 0
    assert (grad == 0).all()
