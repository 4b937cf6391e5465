"""What the CUDA kernels cost, counted by the emulator: launches, bytes, sectors, atomics. And that no
alignment, tail or order makes them touch memory beside their tensors."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from emulated import SigmoidFocal
from tolerances import check_close
from torch import Tensor

from fusedloss import reference

TRAFFIC_LIMIT = 1.02
SECTOR = 32


def _index(rows: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    target = torch.full((rows,), classes)
    positive = torch.rand(rows, generator=generator) < 0.05
    target[positive] = torch.randint(0, classes, (int(positive.sum()),), generator=generator)
    return target


ROWS, CLASSES = 2048, 80
DENSE = torch.zeros(ROWS, CLASSES)
# name, logits dtype, target, reduction
WORKLOADS = [
    ("index int64 fp32", torch.float32, _index(ROWS, CLASSES), "mean"),
    ("index int64 bf16", torch.bfloat16, _index(ROWS, CLASSES), "mean"),
    ("index int64 fp64", torch.float64, _index(ROWS, CLASSES), "mean"),
    ("index uint8 fp16", torch.float16, _index(ROWS, CLASSES).to(torch.uint8), "mean"),
    ("dense fp32 fp32", torch.float32, DENSE, "mean"),
    ("dense fp32 bf16", torch.bfloat16, DENSE, "mean"),
    ("dense bool fp32", torch.float32, DENSE.bool(), "mean"),
    ("dense uint8 bf16", torch.bfloat16, DENSE.to(torch.uint8), "mean"),
    ("dense fp32, none", torch.float32, DENSE, "none"),
]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def _count(module: ModuleType) -> dict[str, Any]:
    """Totals over all launches since the last reset."""
    kernels = module.counters()
    total = {
        "launches": sum(k["launches"] for k in kernels),
        "float_atomics": sum(k["float_atomics"] for k in kernels),
        "atomics": sum(sum(k["atomics"].values()) for k in kernels),
    }
    for way in ("read", "write"):
        for key in ("bytes", "unique_bytes", "sectors", "full_sectors"):
            total[f"{way} {key}"] = sum(k[way][key] for k in kernels)
    return total


def _measure(emulator: ModuleType, dtype: torch.dtype, target: Tensor, reduction: str) -> list[Any]:
    """(pass, counts, least bytes) of each pass under both schedules."""
    x = torch.randn(ROWS, CLASSES).to(dtype)
    kernel = SigmoidFocal(emulator, x, target, reduction=reduction)
    one = torch.ones((), dtype=kernel.dtype)
    passes = []
    emulator.configure(count=True, race_check=False, seed=3)
    emulator.reset_counters()
    loss, scale, _ = kernel.forward(with_grad=False)
    passes.append(("forward", _count(emulator), _bytes(x, target, loss)))
    emulator.reset_counters()
    grad = kernel.backward(one, scale)
    passes.append(("backward", _count(emulator), _bytes(x, target, grad)))
    emulator.reset_counters()
    loss, scale, grad_in_forward = kernel.forward(with_grad=True)
    passes.append(("forward+grad", _count(emulator), _bytes(x, target, loss, grad_in_forward)))
    emulator.reset_counters()
    assert grad_in_forward is not None
    kernel.scaled(grad_in_forward, one, scale)
    # With a factor of 1 nothing moves; float16 is not prescaled, so it is read and written once.
    moved = 2 * _bytes(grad_in_forward) if dtype == torch.float16 else 0
    passes.append(("scale", _count(emulator), moved))
    return passes


def test_traffic_and_launches(emulator: ModuleType) -> None:
    print(f"\n{'workload':<18} {'pass':<13} {'launches':>8} {'bytes':>9} {'/ least':>8} {'full':>6}")
    for name, dtype, target, reduction in WORKLOADS:
        for what, counts, least in _measure(emulator, dtype, target, reduction):
            moved = counts["read unique_bytes"] + counts["write unique_bytes"]
            sectors = counts["read sectors"] + counts["write sectors"]
            full = (counts["read full_sectors"] + counts["write full_sectors"]) / sectors
            share = f"{moved / least:8.4f}" if least else "       -"
            print(f"{name:<18} {what:<13} {counts['launches']:8} {moved:9} {share} {full:6.3f}")
            assert counts["launches"] <= (2 if what.startswith("forward") else 1)
            assert counts["atomics"] == counts["float_atomics"] == 0
            if least:
                assert moved <= TRAFFIC_LIMIT * least, f"{name} {what}"
            else:
                assert counts["write bytes"] == 0, f"{name}: a factor of 1 must not write"
            if what != "scale":
                _check_sectors(name, what, counts, target, least)


def _check_sectors(name: str, what: str, counts: dict[str, Any], target: Tensor, least: int) -> None:
    """Written sectors are full; read ones are but for the labels, which a row's threads share."""
    written = counts["write sectors"]
    partial_writes = written - counts["write full_sectors"]
    # One total of 16 bytes a block, the loss and the scale.
    assert partial_writes <= 4 + least // (16 * SECTOR), f"{name} {what}: partly used sectors"
    if target.dim() > 1:
        partial_reads = counts["read sectors"] - counts["read full_sectors"]
        assert partial_reads <= 4 + least // (16 * SECTOR), f"{name} {what}: partly used sectors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("indexed", [True, False])
def test_every_misalignment(emulator: ModuleType, dtype: torch.dtype, indexed: bool) -> None:
    """Slides the logits through every alignment and length: the emulator reports any access beside the
    tensors, and poisoned outputs show any element that was left out."""
    emulator.configure(count=False, race_check=True, seed=9)
    store = torch.randn(4100).to(dtype)
    for offset in range(17):
        for rows, classes in ((1, 1), (1, 7), (3, 5), (23, 91), (9, 16)):
            x = store[offset : offset + rows * classes].view(rows, classes)
            target = (
                torch.arange(rows) % (classes + 1) if indexed else (torch.arange(x.numel()) % 3 == 0)
            )
            target = target if indexed else target.view(rows, classes)
            exact = reference.sigmoid_focal_loss(x.double(), target)
            eager = reference.sigmoid_focal_loss(x, target)
            for schedule in ("recompute", "forward"):
                loss, grad = SigmoidFocal(emulator, x, target).run(schedule)
                check_close(f"{dtype} offset {offset} {rows}x{classes}", loss, exact, eager)
                assert torch.isfinite(grad).all()


def test_gradient_in_forward_is_not_copied_where_the_factor_is_one(emulator: ModuleType) -> None:
    x = torch.randn(64, 80)
    target = _index(64, 80)
    emulator.configure(count=True, race_check=False, seed=0)
    kernel = SigmoidFocal(emulator, x, target)
    _, scale, grad = kernel.forward(with_grad=True)
    assert grad is not None
    assert float(scale) == 1.0
    before = grad.clone()
    emulator.reset_counters()
    kernel.scaled(grad, torch.ones(()), scale)
    assert _count(emulator)["write bytes"] == 0
    assert torch.equal(grad, before)
    kernel.scaled(grad, torch.tensor(2.0), scale)
    assert torch.equal(grad, before * 2)
