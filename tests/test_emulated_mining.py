"""The CUDA kernels of hard example mining on the emulator: what they move, and that marks, selection,
values and gradients are right in every layout, for every rule, with ties, NaN and several slices.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import cuda_traffic
import pytest
import torch
from emulated_mining import MinedBinaryCrossEntropy, MinedCrossEntropy, Wanted
from mining_checks import both, check_call, read_marks, selected_shares, shares_of
from torch import Tensor

TRAFFIC_LIMIT = 1.02
functional = torch.nn.functional


def test_traffic_and_launches(emulator: ModuleType) -> None:
    """Apart from these launches a forward clears its counts, 33 KB, with one memset."""
    print(
        f"\n{'workload':<34} {'pass':<9} {'kernel':<24} {'launches':>8} {'bytes':>9} {'/ least':>8} "
        f"{'full':>6}"
    )
    for workload in cuda_traffic.MINING_WORKLOADS:
        for t in cuda_traffic.measure(emulator, workload):
            policy, full = t.kernels[0].removesuffix("_kernel"), t.full_sectors / t.sectors
            print(
                f"{workload.name:<34} {t.what:<9} {policy:<24} {t.launches:8} {t.moved:9} "
                f"{t.moved / t.least:8.4f} {full:6.3f}"
            )
            assert t.launches == (workload.launches if t.what == "forward" else 1)
            assert policy.startswith(workload.policy), workload.name
            assert t.float_atomics == 0
            assert t.moved <= TRAFFIC_LIMIT * t.least, f"{workload.name} {t.what}"


torch.manual_seed(7)  # what follows is made once, whatever was imported before
ROWS: dict[str, Tensor] = {
    "pixels, aligned": torch.randn(2, 5, 4, 16),
    "pixels, odd": torch.randn(3, 19, 5, 7),
    "pixels, several blocks": torch.randn(2, 3, 2100),
    "classes shared by warps": torch.randn(2, 150, 10),
    "rows": torch.randn(70, 6),
    "tiles": torch.randn(600, 19),
    "long rows of a tile": torch.randn(30, 701),
    "long rows of a block": torch.randn(9, 3001),
    "rows of two blocks": torch.randn(5000, 2),
    "one row": torch.randn(5),
    "one class": torch.randn(40, 1),
    "channels last": torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last),
    "transposed": torch.randn(9, 6, 11).transpose(0, 2),
    "sliced": torch.randn(3, 9, 40)[:, 1::2, 3:36],
    "expanded": torch.randn(1, 5, 13).expand(4, 5, 13),
    "bf16": torch.randn(2, 5, 70).bfloat16(),
    "bf16 rows": torch.randn(90, 33).bfloat16(),
    "fp16 long rows": torch.randn(5, 4001).half(),
    "fp64 pixels": torch.randn(2, 5, 70).double(),
    "fp64 rows": torch.randn(50, 7).double(),
    "fp64 long rows": torch.randn(5, 700).double(),
    "ties": torch.randint(0, 2, (2, 3, 700)).float(),
    "equal": torch.zeros(2, 4, 50),
}
OHEM = {"wanted": Wanted.TOGETHER, "whole_ties": True}
RULES: dict[str, dict[str, Any]] = {
    "ohem": {**OHEM, "number": 30, "threshold": 1.5},
    "ohem, none": {**OHEM, "number": 5, "threshold": 3.0, "reduction": "none", "ignored": True},
    "ohem, weighted": {**OHEM, "number": 40, "threshold": 2.0, "weight": True, "ignored": True},
    "ohem, threshold alone": {**OHEM, "number": 0, "threshold": 1.0, "reduction": "sum"},
    "ohem, all": {**OHEM, "number": 10**9, "threshold": 2.0, "ignored": True},
    "ohem, weighted all": {**OHEM, "number": 10**9, "weight": True},
    "topk": {"wanted": Wanted.NUMBER, "number": 7},
    "topk, none": {"wanted": Wanted.NUMBER, "number": 9, "reduction": "none", "weight": True},
    "topk of nothing": {"wanted": Wanted.NUMBER, "number": 0},
    "fraction": {"wanted": Wanted.FRACTION, "factor": 0.1, "ignored": True},
    "fraction, weighted sum": {
        "wanted": Wanted.FRACTION,
        "factor": 0.3,
        "weight": True,
        "reduction": "sum",
    },
}


def _rows(module: ModuleType, x: Tensor, given: dict[str, Any]) -> MinedCrossEntropy:
    options = dict(given)
    generator = torch.Generator().manual_seed(3)
    classes = x.size(0 if x.dim() == 1 else 1)
    shape = () if x.dim() == 1 else (x.size(0), *x.shape[2:])
    target = torch.randint(0, classes, shape, generator=generator)
    if options.pop("ignored", False):
        target.view(-1)[1::4] = 255
        options["ignore_index"] = 255
    if options.pop("weight", False):
        options["weight"] = torch.rand(classes, generator=generator) + 0.5
    return MinedCrossEntropy(module, x, target, **options)


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("rule", RULES)
def test_rows(emulator: ModuleType, shape: str, rule: str) -> None:
    emulator.configure(count=False, race_check=True, seed=11)
    check_call(f"{shape} {rule}", _rows(emulator, ROWS[shape], RULES[rule]))


ELEMENTS: dict[str, Tensor] = {
    "dense": torch.randn(2, 1, 40, 52),
    "odd": torch.randn(3, 5, 7),
    "several blocks": torch.randn(3, 5003),
    "transposed": torch.randn(9, 6, 11).transpose(0, 2),
    "channels last": torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last),
    "sliced": torch.randn(3, 9, 40)[:, 1::2, 3:36],
    "expanded": torch.randn(1, 5, 13).expand(4, 5, 13),
    "one": torch.randn(1),
    "bf16": torch.randn(2, 5, 71).bfloat16(),
    "fp16": torch.randn(4, 36).half(),
    "fp64": torch.randn(2, 5, 70).double(),
    "ties": torch.randint(0, 3, (2, 900)).float(),
    "equal": torch.zeros(4, 50),
}
RATIO = {"wanted": Wanted.RATIO, "factor": 3.0, "epsilon": 1e-6}
ELEMENT_RULES: dict[str, dict[str, Any]] = {
    "ratio": {**RATIO, "target": torch.bool},
    "ratio, masked": {**RATIO, "mask": torch.bool, "target": torch.float32},
    "ratio, none": {**RATIO, "mask": torch.float32, "reduction": "none", "target": torch.uint8},
    "ratio, sum": {**RATIO, "reduction": "sum", "target": torch.int64, "factor": 0.7},
    "ratio, soft": {**RATIO, "target": "soft"},
    "ratio, broadcast mask": {**RATIO, "mask": "broadcast", "target": torch.bfloat16},
    "more than there are": {**RATIO, "factor": 1e9, "target": torch.bool},
    "none of the negatives": {**RATIO, "factor": 0.0, "target": torch.bool},
    "no positives": {**RATIO, "number": 5, "target": "none"},
    "no positives, no fallback": {**RATIO, "target": "none"},
    "no negatives": {**RATIO, "target": "all"},
    "probabilities": {**RATIO, "from_logits": False, "target": torch.float32, "mask": torch.uint8},
    "all masked": {**RATIO, "mask": "all", "target": torch.bool},
    "slices": {**RATIO, "dims": True, "target": torch.bool, "number": 2},
    "slices, none": {**RATIO, "dims": True, "target": torch.bool, "reduction": "none"},
    "slices, masked": {**RATIO, "dims": True, "target": torch.int32, "mask": torch.bool},
    "innermost slices": {**RATIO, "dims": False, "target": torch.bool, "factor": 1.5},
}


def _elements(
    module: ModuleType, x: Tensor, given: dict[str, Any]
) -> tuple[MinedBinaryCrossEntropy, Tensor | None]:
    options = dict(given)
    generator = torch.Generator().manual_seed(4)
    draw = torch.rand(x.shape, generator=generator)
    kind, mask = options.pop("target"), options.pop("mask", None)
    shares = {"none": 0.0, "all": 2.0}
    if kind == "soft":
        target = draw * draw
    else:
        target = draw < shares.get(kind, 0.2) if isinstance(kind, str) else (draw < 0.2).to(kind)
    masked = None
    if mask is not None:
        keep = torch.rand(x.shape, generator=generator) < (0.0 if mask == "all" else 0.8)
        if mask == "broadcast":
            keep = keep[:1]
        options["mask"] = keep if isinstance(mask, str) else keep.to(mask)
        masked = ~keep.expand(x.shape)
    if "dims" in options:
        dims = tuple(range(1, x.dim())) if options["dims"] else tuple(range(x.dim() - 1))
        options["dims"] = dims
    if not options.get("from_logits", True):
        x = x.sigmoid()
    return MinedBinaryCrossEntropy(module, x, target, **options), masked


@pytest.mark.parametrize("shape", ELEMENTS)
@pytest.mark.parametrize("rule", ELEMENT_RULES)
def test_elements(emulator: ModuleType, shape: str, rule: str) -> None:
    emulator.configure(count=False, race_check=True, seed=12)
    kernel, masked = _elements(emulator, ELEMENTS[shape], ELEMENT_RULES[rule])
    check_call(f"{shape} {rule}", kernel, masked)


@pytest.mark.parametrize("whole_ties", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [1, 3])
def test_every_number(
    emulator: ModuleType, whole_ties: bool, dtype: torch.dtype, images: int
) -> None:
    """Of losses many of which are tied, close to each other, huge, infinite or NaN."""
    emulator.configure(count=False, race_check=True, seed=3)
    torch.manual_seed(2)
    x = torch.cat(
        [
            torch.tensor([0.0, -200.0, 300.0, math.inf, math.nan, math.nan, 88.0, 88.00001]),
            torch.randint(-3, 4, (60,)).float(),
            1.0 + torch.arange(30) * 2.0**-23,
        ]
    )
    x = x.to(dtype)[torch.randperm(x.numel())].expand(images, -1).contiguous()
    target = torch.zeros(x.shape)
    for k in [0, 1, 2, 3, 4, 5, *range(6, x.size(1) + 3, 7), 97, 98, 99]:
        kernel = MinedBinaryCrossEntropy(
            emulator,
            x,
            target,
            dims=(1,) if images > 1 else None,
            wanted=Wanted.NUMBER,
            number=k,
            whole_ties=whole_ties,
            reduction="none",
        )
        forward = kernel.forward()
        shares = shares_of(kernel, forward.marks)
        if not whole_ties:
            assert float(shares.sum()) == pytest.approx(images * min(k, x.size(1)))
        assert torch.equal(selected_shares(kernel, forward), shares.to(dtype).double()), k
        losses = functional.binary_cross_entropy_with_logits(
            x.double(), target.double(), reduction="none"
        )
        expected = torch.where(shares > 0, shares * losses, 0.0)
        torch.testing.assert_close(
            forward.loss.double(), expected, rtol=1e-6, atol=1e-30, equal_nan=True
        )


@pytest.mark.parametrize("walk", [ROWS["pixels, several blocks"], ROWS["rows of two blocks"]])
@pytest.mark.parametrize("rule", ["ohem", "ohem, weighted", "topk", "fraction, weighted sum"])
def test_any_order_of_threads(emulator: ModuleType, walk: Tensor, rule: str) -> None:
    """The same bits, whichever block and thread comes first."""
    results = []
    for seed in range(4):
        emulator.configure(count=False, race_check=seed == 0, seed=seed)
        loss, grad, forward = both(_rows(emulator, walk, RULES[rule]))
        results.append((loss, grad, *[x.view(torch.int32) for x in forward]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_several_blocks_of_every_kernel(emulator: ModuleType) -> None:
    emulator.configure(count=False, race_check=True, seed=5)
    torch.manual_seed(3)
    x = torch.randn(1, 2, 9001)
    for rule in ("topk", "ohem, weighted", "topk, none"):
        check_call(rule, _rows(emulator, x, {**RULES[rule], "number": 3000}))
    kernel, _ = _elements(emulator, torch.randn(13001), ELEMENT_RULES["ratio"])
    check_call("elements", kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_misalignment(emulator: ModuleType, dtype: torch.dtype) -> None:
    emulator.configure(count=False, race_check=True, seed=9)
    torch.manual_seed(1)
    store, bits = torch.randn(300 + 17).to(dtype), torch.rand(300 + 17) < 0.2
    labels = torch.randint(0, 3, (116,))
    for offset in range(0, 17, 2 if dtype == torch.float64 else 1):
        span = slice(offset, offset + 300)
        x, target = store[span], bits[span]
        check_call(f"{offset}", MinedBinaryCrossEntropy(emulator, x, target, **RATIO))
        masked = MinedBinaryCrossEntropy(emulator, x, target, mask=~target.roll(1), **RATIO)
        check_call(f"{offset} masked", masked, target.roll(1))
        own = labels[offset : offset + 100]
        topk = {"wanted": Wanted.NUMBER, "number": 9}
        check_call(f"{offset} rows", MinedCrossEntropy(emulator, x.view(100, 3), own, **topk))
        pixels = x.view(1, 3, 100)
        check_call(
            f"{offset} pixels", MinedCrossEntropy(emulator, pixels, own.view(1, 100), **topk)
        )


# Rows in each of the walks.
WALKS = {"pixels": (2, 5, 300), "warps": (1, 150, 40), "rows": (300, 5), "block": (12, 3001)}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_logits_of_unselected_rows_are_not_read(
    emulator: ModuleType, walk: str, dtype: torch.dtype
) -> None:
    """Backward after they have become NaN: nothing changes. Neither does it in the logits' place."""
    emulator.configure(count=False, race_check=True, seed=6)
    torch.manual_seed(5)
    x = torch.randn(WALKS[walk]).to(dtype)
    kernel = _rows(emulator, x, RULES["topk"])
    _, grad, forward = both(kernel)
    selected = (shares_of(kernel, forward.marks) > 0).unsqueeze(1).expand_as(x)
    assert 0 < int(selected[:, 0].sum()) <= 7
    assert (grad[~selected] == 0).all()
    x[~selected] = torch.nan
    one = torch.ones((), dtype=kernel.dtype)
    assert torch.equal(kernel.backward(one, forward), grad)
    assert torch.equal(kernel.backward(one, forward, in_place=True), grad)


def test_logits_of_unselected_elements_are_not_read(emulator: ModuleType) -> None:
    emulator.configure(count=False, race_check=True, seed=6)
    torch.manual_seed(5)
    x = torch.randn(4, 300)
    for rule in ("ratio, masked", "slices, masked"):
        kernel, masked = _elements(emulator, x.clone(), ELEMENT_RULES[rule])
        _, grad, forward = both(kernel)
        unselected = shares_of(kernel, forward.marks) == 0
        assert masked is not None
        assert (unselected & ~masked).any()
        assert (grad[unselected] == 0).all()
        kernel.input[unselected] = torch.nan
        assert torch.equal(kernel.backward(torch.ones(()), forward), grad)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_ignored_and_masked_logits_change_nothing(
    emulator: ModuleType, walk: str, poison: float
) -> None:
    emulator.configure(count=False, race_check=True, seed=6)
    torch.manual_seed(5)
    x = torch.randn(WALKS[walk])
    rule = {**RULES["topk"], "ignored": True, "number": 5}
    first = _rows(emulator, x, rule)
    ignored = (first.target == 255).unsqueeze(1).expand_as(x)
    second = _rows(emulator, x.masked_fill(ignored, poison), rule)
    for a, b in zip(first.run(), second.run(), strict=True):
        assert torch.equal(a, b)
    kernel, masked = _elements(emulator, x, ELEMENT_RULES["ratio, masked"])
    assert masked is not None
    poisoned, _ = _elements(emulator, x.masked_fill(masked, poison), ELEMENT_RULES["ratio, masked"])
    for a, b in zip(kernel.run(), poisoned.run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("label", [-1, 5000, 2**40])
@pytest.mark.parametrize("weighted", [False, True])
def test_bad_labels_are_nan_in_their_row(
    emulator: ModuleType, walk: str, label: int, weighted: bool
) -> None:
    """They are always selected, and never used as an index."""
    emulator.configure(count=False, race_check=True, seed=6)
    kernel = _rows(emulator, torch.randn(WALKS[walk]), {**RULES["topk"], "weight": weighted})
    kernel.target.view(-1)[3] = label
    loss, grad, forward = both(kernel)
    assert loss.isnan()
    flat = grad.movedim(1, -1).reshape(-1, grad.size(1))
    assert flat[3].isnan().all()
    assert flat[torch.arange(len(flat)) != 3].isfinite().all()
    assert int(read_marks(forward.marks).always.sum()) == 1
    none = _rows(emulator, kernel.input, {**RULES["topk"], "reduction": "none"})
    none.target.view(-1)[3] = label
    losses = none.forward().loss.view(-1)
    assert losses.isnan().nonzero().view(-1).tolist() == [3]


@pytest.mark.parametrize("logit", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("threshold", [0.5, math.inf])
def test_logits_that_are_not_numbers(emulator: ModuleType, logit: float, threshold: float) -> None:
    """Their rows are the hardest, and only theirs have NaN in the gradient."""
    emulator.configure(count=False, race_check=True, seed=6)
    torch.manual_seed(8)
    x = torch.randn(2, 4, 60)
    kernel = _rows(emulator, x, {**OHEM, "number": 3, "threshold": threshold, "reduction": "none"})
    x[0, int(kernel.target[0, 7]), 7] = logit
    loss, grad = kernel.run()
    expected = functional.cross_entropy(x, kernel.target, reduction="none")
    kept = loss != 0
    torch.testing.assert_close(loss[kept], expected[kept], equal_nan=True, rtol=1e-5, atol=1e-6)
    assert kept[0, 7]
    others = torch.ones_like(kept)
    others[0, 7] = False
    assert grad.movedim(1, -1)[others].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_selected(emulator: ModuleType, dtype: torch.dtype) -> None:
    """All ignored or k = 0: loss 0 and zeros, whatever the logits."""
    emulator.configure(count=False, race_check=True, seed=6)
    x = torch.full((2, 4, 60), torch.nan, dtype=dtype)
    for reduction in ("mean", "sum", "none"):
        for rule in ({**OHEM, "number": 3}, {"wanted": Wanted.FRACTION, "factor": 1.0}):
            target = torch.full((2, 60), -100)
            kernel = MinedCrossEntropy(emulator, x, target, reduction=reduction, **rule)
            loss, grad, forward = both(kernel)
            assert (loss == 0).all()
            assert (grad == 0).all()
            assert forward.scale == (0 if reduction == "mean" else 1)
        rule = {"wanted": Wanted.NUMBER, "number": 0, "reduction": reduction}
        x0 = torch.randn(2, 4, 60, dtype=dtype)
        loss, grad = MinedCrossEntropy(emulator, x0, torch.zeros(2, 60).long(), **rule).run()
        assert (loss == 0).all()
        assert (grad == 0).all()


def test_label_types(emulator: ModuleType) -> None:
    emulator.configure(count=False, race_check=True, seed=2)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        for x in (torch.randn(2, 6, 1100), torch.randn(700, 6)):
            kernel = _rows(emulator, x, {**RULES["ohem"], "ignored": True})
            given = kernel.target.to(dtype)
            options = {**RULES["ohem"], "ignore_index": 255}
            check_call(str(dtype), MinedCrossEntropy(emulator, x, given, **options))
