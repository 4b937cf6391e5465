"""The benchmark harness: protocol, memory counts, cases, files. No time is asserted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark_helpers import CPU, FACTS, GOOD, default_malloc, quiet, result, tiny_case  # noqa: F401
from fusedloss.benchmarks import (
    bars,
    cases,
    chart,
    measure,
    memory,
    run,
    timing,
)
from fusedloss.benchmarks.results import Timing

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


def test_each_loss_has_its_own_chart_of_sizes() -> None:
    found = []
    for loss in ("one loss", "another loss"):
        for rows in (5, 50):
            made = result(f"scaling-{rows}", GOOD)
            made.series, made.loss, made.elements = "scaling", loss, rows
            found.append(made)
    found.append(result("retinanet-index-fp32", GOOD))
    found[-1].contenders["smp"].other_function = "something else"
    assert len(chart._panels(found)) == 3 + 2
    assert len(chart._panels(found[2:])) == 3 + 1
    linear = result("linear", {name: time for name, time in GOOD.items() if name != "clone"})
    assert len(chart._panels([linear])) == 2  # nothing to count in clones


def test_the_memory_of_a_case_is_that_of_its_contenders() -> None:
    case = tiny_case(index=False)
    options = measure.Options(7, compile=False, forward=False)
    ready = measure.prepare(case, CPU, options, quiet)
    found = measure.measure(ready, CPU, options, quiet)
    assert found.contenders["clone"].peak_bytes == case.logits_bytes
    assert found.peak_over_logits("eager") > 3  # type: ignore[operator]


def test_a_run_writes_table_json_csv_page_and_chart(
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
    page = (tmp_path / "report.html").read_text()
    assert "not timed here" in page
    assert content["settings"]["command"].endswith(f"--out {tmp_path}")
    assert content["settings"]["command"] in page
    pytest.importorskip("matplotlib")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
