"""Benchmarks on a GPU, as far as they can be tried without one: a pretended device, inputs on the CPU."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_helpers import CPU, case_named, default_malloc, quiet  # noqa: F401
from fusedloss.benchmarks import baselines, cases, inputs, measure, run, timing
from fusedloss.benchmarks.workload import Case, Inputs

CUDA = torch.device("cuda")


def on_a_pretended_gpu(case: Case) -> Case:
    """The case with inputs on the CPU, whatever the device."""
    return dataclasses.replace(case, setup=lambda case, device: classification(case))


def classification(case: Case) -> Inputs:
    return inputs.classification(case, CPU)


def test_liger_contends_on_a_gpu_and_gets_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrites(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits, labels, **options)
        with torch.no_grad():
            logits.zero_()
        return loss

    package = types.ModuleType("liger_kernel.transformers.functional")
    package.liger_cross_entropy = overwrites  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    case = case_named("imagenet-ce-smooth-8192x1000-fp32", (16, 7))
    options = measure.Options(compile=False)
    assert "liger with clone" not in measure.prepare(case, CPU, options, quiet).contenders
    ready = measure.prepare(on_a_pretended_gpu(case), CUDA, options, quiet)
    assert {"eager", "fusedloss", "liger with clone"} <= set(ready.contenders)
    assert ready.inputs.logits.any()


def test_liger_vanishes_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # has the import fail
    monkeypatch.setattr(baselines, "_missing", {})
    case = on_a_pretended_gpu(case_named("imagenet-ce-8192x1000-fp32", (16, 7)))
    ready = measure.prepare(case, CUDA, measure.Options(compile=False), quiet)
    assert "liger with clone" not in ready.contenders
    assert ready.not_run == []
    assert "liger_kernel" in baselines.unavailable()[-1]
    pixels = next(case for case in cases.CASES if case.name == "cityscapes-ce-fp32")
    assert pixels.gpu_contenders() == {}


def test_a_package_that_fails_on_the_gpu_is_left_out() -> None:
    case = case_named("imagenet-ce-8192x1000-fp32", (16, 7))
    case = dataclasses.replace(on_a_pretended_gpu(case), gpu_contenders=lambda: {"wrong": wrong})
    ready = measure.prepare(case, CUDA, measure.Options(compile=False), quiet)
    assert "wrong" not in ready.contenders
    assert "wrong is wrong and is not timed" in ready.not_run[0]


def test_the_triton_backend_is_timed_on_a_gpu_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--backend", "triton"]) == 1
    assert "--device cuda" in capsys.readouterr().err


def wrong(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.sum()


@pytest.mark.parametrize("name", ["eager", "fusedloss"])
def test_torch_may_be_wrong_on_a_gpu_but_fusedloss_may_not(name: str) -> None:
    right = case_named("imagenet-ce-8192x1000-fp32", (16, 7))
    contenders = {**right.contenders(), name: wrong}
    case = dataclasses.replace(right, contenders=lambda: contenders)
    options = measure.Options(compile=False)
    with pytest.raises(timing.WrongResultError, match=f"{name} is wrong"):
        measure.prepare(case, CPU, options, quiet)
    pretended = on_a_pretended_gpu(case)
    if name == "fusedloss":
        with pytest.raises(timing.WrongResultError, match=f"{name} is wrong"):
            measure.prepare(pretended, CUDA, options, quiet)
    else:
        ready = measure.prepare(pretended, CUDA, options, quiet)
        assert "fusedloss" in ready.contenders
        assert name not in ready.contenders
        assert f"{name} is wrong and is not timed" in ready.not_run[0]


def test_a_case_that_does_not_fit_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def greedy(case: Case, device: torch.device) -> Inputs:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fits = case_named("imagenet-ce-8192x1000-fp32", (16, 7))
    large = dataclasses.replace(fits, name="large", setup=greedy)
    monkeypatch.setattr(cases, "select", lambda **_: [large, fits])
    argv = ["--quick", "--no-compile", "--device", "cpu", "--out", str(tmp_path)]
    assert run.main(argv) == 0
    printed = capsys.readouterr().out
    assert "large: needs more memory than there is" in printed
    assert f"{fits.name}: cross entropy" in printed
