"""The benchmark harness: protocol, checks, memory counts, bars, files. No time is asserted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusedloss.benchmarks import (
    bars,
    baselines,
    cases,
    cuda_facts,
    machine,
    measure,
    memory,
    run,
    timing,
)
from fusedloss.benchmarks.results import CaseResult, ContenderResult, Timing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _default_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch of malloc cannot be taken back: it would outlast the test."""
    monkeypatch.setattr(machine, "warm_malloc", lambda: True)


def quiet(_: str) -> None:
    """No progress."""


def tiny_case(index: bool = True, dtype: torch.dtype = torch.float32) -> cases.Case:
    """64 anchors of 5 classes, contenders without fusedloss and packages."""
    eager = baselines.focal_index_eager if index else baselines.focal_dense_eager
    return cases.Case(
        "tiny",
        "sigmoid focal",
        (64, 5),
        dtype,
        setup=cases.focal_index_inputs if index else cases.focal_dense_inputs,
        contenders=lambda: {"eager": eager},
        reference=baselines.focal_reference,
    )


def result(case: str, times: dict[str, float], peak: int = 100, logits: int = 100) -> CaseResult:
    """A result with the given medians in ms and one peak for all."""
    dtype = "bf16" if "bf16" in case else "fp32"
    made = CaseResult(case, "loss", "large", (5, 5), dtype, "cpu", 25, logits)
    for name, value in times.items():
        made.contenders[name] = ContenderResult(
            name, train=Timing((value,) * 7), peak_bytes=peak, saved_bytes=0
        )
    return made


# --- the protocol ---------------------------------------------------------------------------------


class ScriptedClock:
    """Writes down who was measured, and answers from a list."""

    def __init__(self, names: dict[int, str], answers: Callable[[str, int], float]) -> None:
        self.names, self.answers = names, answers
        self.order: list[tuple[str, int]] = []

    def measure(self, step: timing.Step, calls: int) -> float:
        name = self.names[id(step)]
        self.order.append((name, calls))
        return self.answers(name, len(self.order))


def test_contenders_take_turns_after_the_warm_up() -> None:
    steps = {name: timing.Step(lambda: None, lambda: None) for name in "abc"}
    clock = ScriptedClock({id(step): name for name, step in steps.items()}, lambda *_: 1e3)
    taken = timing.take_turns(steps, clock, 7, warm_up=2)
    assert [name for name, _ in clock.order] == list("abc") * 9
    assert all(len(found.samples_ms) == 7 for found in taken.values())


def test_short_calls_are_repeated_and_long_ones_are_not() -> None:
    steps = {name: timing.Step(lambda: None, lambda: None) for name in ("short", "long")}
    clock = ScriptedClock(
        {id(step): name for name, step in steps.items()},
        lambda name, _: timing.SAMPLE_MS / 20 if name == "short" else 50.0,
    )
    taken = timing.take_turns(steps, clock, 7)
    assert (taken["short"].calls_per_sample, taken["long"].calls_per_sample) == (20, 1)


def test_fewer_than_seven_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 7"):
        timing.take_turns({}, timing.CpuClock(), 6)
    with pytest.raises(SystemExit):
        run.parser().parse_args(["--rounds", "3"])


def test_one_slow_sample_does_not_move_the_median() -> None:
    assert Timing((1.0, 1.0, 900.0, 2.0, 1.0, 2.0, 2.0)).median == 2.0


def test_reset_is_outside_the_clock_and_the_gradient_is_fresh() -> None:
    case = tiny_case()
    inputs = case.setup(case, CPU)
    step = timing.training_step(case.contenders()["eager"], inputs)
    step.run()
    first = inputs.logits.grad
    step.run()
    assert first is not None
    assert inputs.logits.grad is not first
    torch.testing.assert_close(inputs.logits.grad, first, rtol=0, atol=0)
    step.reset()
    assert inputs.logits.grad is None


def test_the_cuda_clock_flushes_before_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the GPU: only the order of things is tested here, never a time."""
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("synchronize")

        def elapsed_time(self, _: Event) -> float:
            return 3.0

    class Properties:
        L2_cache_size = 1 << 20

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    clock = timing.CudaClock(CPU)
    flush = type("Flush", (), {"zero_": lambda _: order.append("flush")})
    monkeypatch.setattr(clock, "_flush", flush())
    step = timing.Step(lambda: order.append("run"), lambda: order.append("reset"))
    assert clock.measure(step, 2) == 3.0
    assert order == ["reset", "flush", "record", "run", "record", "synchronize"] * 2


# --- contenders are checked -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("index", [True, False], ids=["index", "dense"])
def test_every_focal_contender_is_right(index: bool, dtype: torch.dtype) -> None:
    case = tiny_case(index, dtype)
    inputs = case.setup(case, CPU)
    reference = case.reference(inputs.logits, *inputs.args)
    for name, loss in (baselines.focal_index() if index else baselines.focal_dense()).items():
        timing.check(name, loss, inputs, reference)


def test_the_reference_does_not_depend_on_its_slices() -> None:
    case = tiny_case()
    inputs = case.setup(case, CPU)
    labels, normalizer = inputs.args
    whole = baselines.focal_reference(inputs.logits, labels, normalizer)
    sliced = baselines.focal_reference(inputs.logits, labels, normalizer, rows_at_once=7)
    torch.testing.assert_close(sliced, whole, rtol=1e-14, atol=0)


class _WrongGradient(torch.autograd.Function):
    """The right value with a gradient that is 2 % off."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 1.02


WRONG: dict[str, Callable[..., torch.Tensor]] = {
    "value": lambda *args: baselines.focal_index_eager(*args) + 0.01,
    "gradient": lambda *args: _WrongGradient.apply(baselines.focal_index_eager(*args)),
    "nan": lambda *args: baselines.focal_index_eager(*args) * float("nan"),
    "without gradient": lambda x, *args: (
        baselines.focal_index_eager(x, *args)
        if x.requires_grad and torch.is_grad_enabled()
        else x.sum()
    ),
}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("value", "value is off"),
        ("gradient", r"gradient \(relative L2\) is off"),
        ("nan", "value is off by nan"),
        ("without gradient", "value without gradient is off"),
    ],
)
def test_a_wrong_contender_is_refused(name: str, reason: str) -> None:
    case = tiny_case()
    inputs = case.setup(case, CPU)
    reference = case.reference(inputs.logits, *inputs.args)
    with pytest.raises(timing.WrongResultError, match=f"mine is wrong and is not timed: {reason}"):
        timing.check("mine", WRONG[name], inputs, reference)


def test_a_wrong_contender_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "focal_dense_eager", lambda x, *_: x.sum())
    monkeypatch.setattr(cases, "select", lambda **_: [tiny_case()])
    argv = ["--quick", "--no-compile", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert run.main(argv) == 1
    assert "tiny: eager is wrong and is not timed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- memory ---------------------------------------------------------------------------------------


def test_saved_bytes_of_known_functions() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert memory.saved_bytes(lambda: x.exp().sum(), [x]) == 4000
    assert memory.saved_bytes(lambda: (x * x).sum(), [x]) == 0
    assert memory.saved_bytes(lambda: x.exp().sin().sum(), [x]) == 8000 - 4000
    assert memory.saved_bytes(lambda: (x.exp() * x.sigmoid()).sum(), [x]) == 8000


def test_peak_bytes_of_known_functions() -> None:
    x = torch.randn(1_000_000)
    assert memory.peak_bytes(x.clone, CPU) == 4_000_000
    assert memory.peak_bytes(lambda: x.exp().sin().cos(), CPU) == 8_000_000
    in_place = memory.peak_bytes(lambda: x.add_(1), CPU)
    assert in_place is not None
    assert in_place < 64  # the scalar becomes a tensor


# --- bars -----------------------------------------------------------------------------------------

GOOD = {"eager": 100.0, "compile": 50.0, "fusedloss": 5.0, "clone": 2.0}


def statuses(verdicts: list[bars.Verdict]) -> dict[str, str]:
    return {verdict.bar: verdict.status for verdict in verdicts}


def test_good_figures_pass_every_bar() -> None:
    found = bars.evaluate(
        [
            result("retinanet-index-fp32", GOOD),
            result("retinanet-index-bf16", GOOD | {"fusedloss": 4.9}),
            result("small-focal-index-8x4", GOOD),
        ]
    )
    assert len(found) == len(bars.BARS) + 1  # the memory bar covers two of the cases
    assert all(verdict.status == "PASS" for verdict in found), found
    assert not bars.failed(found)


@pytest.mark.parametrize(
    ("case", "times", "peak", "failing"),
    [
        ("retinanet-index-fp32", {"eager": 49.0}, 100, "10x faster than eager"),
        ("retinanet-index-fp32", {"compile": 19.0}, 100, "4x faster than compile"),
        ("retinanet-index-fp32", {"clone": 1.2}, 100, "4 clone"),
        ("retinanet-index-fp32", {}, 106, "peak above the inputs"),
        ("retinanet-dense-bf16", {"fusedloss": 5.1}, 100, "the time of retinanet-dense-fp32"),
        ("retinanet-dense-bf16", {"clone": 0.6}, 100, "8 clone"),
        ("small-focal-dense-256x80", {"eager": 4.9}, 100, "1x faster than eager"),
    ],
)
def test_a_figure_beyond_its_bar_fails_that_bar_alone(
    case: str, times: dict[str, float], peak: int, failing: str
) -> None:
    other = result("retinanet-dense-fp32", GOOD)
    found = bars.evaluate([other, result(case, GOOD | times, peak)])
    failures = [verdict for verdict in found if verdict.status == "FAIL"]
    assert len(failures) == 1, found
    assert case in failures[0].bar
    assert failing in failures[0].bar
    assert bars.failed(found)


def test_a_bar_without_figures_is_not_run_and_a_run_without_bars_fails() -> None:
    found = bars.evaluate([result("retinanet-index-fp32", {"fusedloss": 1.0, "eager": 100.0})])
    words = statuses(found)
    assert words["retinanet-index-fp32: at least 4x faster than compile"] == "NOT RUN"
    assert words["retinanet-index-fp32: at least 10x faster than eager"] == "PASS"
    assert not bars.failed(found)
    assert bars.failed(bars.evaluate([]))


def test_a_time_taken_under_load_is_marked_and_a_size_is_not() -> None:
    busy = result("retinanet-index-fp32", GOOD)
    busy.foreign_cores = 1.0
    for verdict in bars.evaluate([busy]):
        if verdict.measured is not None:
            assert ("UNSAFE" in verdict.line()) == ("peak" not in verdict.bar)


def test_a_figure_that_is_not_a_number_fails() -> None:
    found = bars.evaluate([result("small-x", {"eager": float("nan"), "fusedloss": 1.0})])
    assert bars.failed(found)


# --- CUDA figures ---------------------------------------------------------------------------------

FACTS: list[dict[str, Any]] = [
    {"kernel": "focal", "pass": "forward", "launches": 2, "bytes_moved": 101,
     "bytes_minimum": 100, "full_sectors": 1.0},
    {"kernel": "focal<float>", "arch": "sm_90", "registers": 40, "spill_bytes": 8,
     "occupancy": 0.5},
]  # fmt: skip


def test_cuda_facts_are_tabulated_judged_and_never_timed(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS))
    rows, source = cuda_facts.load(path)
    assert source == str(path)
    for _, table in cuda_facts.tables(rows):
        assert [row[-1] for row in table] == ["time", cuda_facts.NOT_TIMED]
    failures = [verdict.bar for verdict in cuda_facts.evaluate(rows) if verdict.status == "FAIL"]
    assert failures == ["CUDA spill_bytes at most 0 in all of 1, worst in focal<float> sm_90"]


def test_cuda_facts_of_a_wrong_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"kernel": 1}')
    with pytest.raises(ValueError, match="list of objects"):
        cuda_facts.load(path)


# --- the table of cases, and a run from end to end ------------------------------------------------


def test_case_names_are_unique_and_can_be_selected() -> None:
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert {case.dtype_name for case in cases.select(dtype="bf16")} == {"bf16"}
    assert [c.name for c in cases.select(pattern="*-dense-fp32")] == ["retinanet-dense-fp32"]
    assert 0 < len(cases.select(quick=True)) < len(cases.CASES)
    assert cases.select(pattern="no such case") == []


def test_every_bar_names_a_case_of_the_table() -> None:
    for verdict in bars.evaluate([result(case.name, GOOD) for case in cases.CASES]):
        assert verdict.measured is not None, verdict


def test_the_memory_of_a_case_is_that_of_its_contenders() -> None:
    case = tiny_case(index=False)
    options = measure.Options(7, compile=False, forward=False)
    ready = measure.prepare(case, CPU, options, quiet)
    found = measure.measure(ready, CPU, options, quiet)
    assert found.contenders["clone"].peak_bytes == case.logits_bytes
    assert found.peak_over_logits("eager") > 3  # type: ignore[operator]


def test_a_run_writes_table_json_csv_and_chart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "select", lambda **_: [tiny_case()])
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(FACTS))
    argv = [
        "--quick",
        "--no-compile",
        "--device",
        "cpu",
        "--check-bars",
        "--cuda-facts",
        str(facts),
    ]
    assert run.main([*argv, "--out", str(tmp_path)]) == 1  # the planted spill

    text = capsys.readouterr().out
    for words in ("processor", "threads", "fwd+bwd ms", "eager", "clone", "not timed here",
                  "NOT RUN", "FAIL", "left out by --no-compile"):  # fmt: skip
        assert words in text
    content = json.loads((tmp_path / "results.json").read_text())
    contenders = content["cases"][0]["contenders"]
    assert set(contenders) == {"eager", "clone"}
    assert len(contenders["eager"]["train"]["samples_ms"]) == 7
    assert contenders["eager"]["errors"]["gradient"] < 1e-5
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["contender"] for row in rows] == ["eager", "clone"]
    assert float(rows[0]["train_ms"]) > 0
    pytest.importorskip("matplotlib")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
