"""What the tests of the benchmark harness share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fusedloss.benchmarks import baselines_sigmoid_focal as sigmoid_focal
from fusedloss.benchmarks import (
    cases,
    inputs,
    machine,
)
from fusedloss.benchmarks.results import CaseResult, ContenderResult, Timing
from fusedloss.benchmarks.workload import Case

CPU = torch.device("cpu")
GOOD = {
    "eager": 100.0, "compile": 50.0, "smp": 900.0, "insightface": 40.0, "pml": 60.0,
    "monai": 200.0,
    "fusedloss": 5.0, "clone": 2.0, "products": 4.0,
}  # fmt: skip
FACTS: list[dict[str, Any]] = [
    {"kernel": "pointwise", "pass": "forward", "launches": 2, "bytes_moved": 101,
     "bytes_minimum": 100, "full_sectors": 1.0},
    {"kernel": "focal<float>", "arch": "sm_90", "registers": 40, "local_bytes": 16,
     "occupancy": 0.5},
]  # fmt: skip


@pytest.fixture(autouse=True)
def default_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch of malloc cannot be taken back: it would outlast the test."""
    monkeypatch.setattr(machine, "warm_malloc", lambda: True)


def quiet(_: str) -> None:
    """No progress."""


def tiny_case(index: bool = True, dtype: torch.dtype = torch.float32) -> Case:
    """64 anchors of 5 classes, contenders without fusedloss and packages."""
    eager = sigmoid_focal.index_eager if index else sigmoid_focal.dense_eager
    return Case(
        "tiny",
        "sigmoid focal",
        (64, 5),
        dtype,
        setup=inputs.focal_index if index else inputs.focal_dense,
        contenders=lambda: {"eager": eager},
        reference=sigmoid_focal.reference,
    )


def case_named(name: str, shape: tuple[int, ...]) -> Case:
    """The case of that name at another size."""
    case = next(case for case in cases.CASES if case.name == name)
    return dataclasses.replace(case, shape=shape)


def result(case: str, times: dict[str, float], peak: int = 100, logits: int = 100) -> CaseResult:
    """A result with the given medians in ms and one peak for all."""
    dtype = "bf16" if "bf16" in case else "fp32"
    made = CaseResult(
        case, "loss", "large", (5, 5), dtype, "cpu", 25, logits, rows=5, gradient_bytes=logits
    )
    for name, value in times.items():
        made.contenders[name] = ContenderResult(
            name, train=Timing((value,) * 7), peak_bytes=peak, saved_bytes=0
        )
    return made
