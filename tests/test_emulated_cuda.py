"""What the CUDA kernels cost, counted by the emulator: launches, bytes, sectors, atomics. And that no
alignment, tail or order makes them touch memory beside their tensors.
"""

from __future__ import annotations

from types import ModuleType

import cuda_traffic
import pytest
import torch
from emulated import SigmoidFocal
from fusedloss import reference
from tolerances import check_close

TRAFFIC_LIMIT = 1.02


def test_traffic_and_launches(emulator: ModuleType) -> None:
    print(
        f"\n{'workload':<23} {'pass':<13} {'launches':>8} {'bytes':>9} {'/ least':>8} {'full':>6}"
    )
    for workload in cuda_traffic.WORKLOADS:
        for t in cuda_traffic.measure(emulator, workload):
            share = f"{t.moved / t.least:8.4f}" if t.least else "       -"
            full = t.full_sectors / t.sectors
            name = workload.name
            print(f"{name:<23} {t.what:<13} {t.launches:8} {t.moved:9} {share} {full:6.3f}")
            assert t.launches <= (2 if t.what.startswith("forward") else 1)
            assert t.atomics == 0
            if t.least:
                assert t.moved <= TRAFFIC_LIMIT * t.least, f"{name} {t.what}"
            else:
                assert t.written == 0, f"{name}: a factor of 1 must not write"
            if workload.target.dim() > 1 and t.least:  # labels are shared by the threads of a row
                # Totals of 16 bytes a block, written and read; the loss, the scale, their inputs.
                assert t.sectors - t.full_sectors <= 2 * t.blocks + 4, f"{name} {t.what}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("indexed", [True, False])
def test_every_misalignment(emulator: ModuleType, dtype: torch.dtype, indexed: bool) -> None:
    """Slides the logits through every alignment and length: the emulator reports any access beside the
    tensors, and poisoned outputs show any element that was left out.
    """
    emulator.configure(count=False, race_check=True, seed=9)
    store = torch.randn(4100).to(dtype)
    for offset in range(17):
        for rows, classes in ((1, 1), (1, 7), (3, 5), (23, 91), (9, 16)):
            x = store[offset : offset + rows * classes].view(rows, classes)
            target = (
                torch.arange(rows) % (classes + 1)
                if indexed
                else (torch.arange(x.numel()) % 3 == 0)
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
    target = cuda_traffic.class_indices(64, 80)
    emulator.configure(count=True, race_check=False, seed=0)
    kernel = SigmoidFocal(emulator, x, target)
    _, scale, grad = kernel.forward(with_grad=True)
    assert grad is not None
    assert float(scale) == 1.0
    before = grad.clone()
    kernel.scaled(grad, torch.ones(()), scale)
    assert torch.equal(grad, before)
    kernel.scaled(grad, torch.tensor(2.0), scale)
    assert torch.equal(grad, before * 2)


def test_a_long_gradient_is_scaled_by_few_blocks(emulator: ModuleType) -> None:
    """A block for every tile would cost a gradient of 1 GiB 0.2 ms where its factor is 1."""
    kernel = SigmoidFocal(emulator, torch.zeros(5, 900_001), torch.zeros(5, 900_001))
    grad = torch.arange(5 * 900_001, dtype=torch.float32).view(5, 900_001)
    expected = grad * 3
    emulator.configure(count=True, race_check=False, seed=0)
    emulator.reset_counters()
    kernel.scaled(grad, torch.tensor(1.5), torch.tensor(2.0))
    (counted,) = emulator.counters()
    assert torch.equal(grad, expected)
    assert counted["blocks"] <= 4096 < grad.numel() // 1024
