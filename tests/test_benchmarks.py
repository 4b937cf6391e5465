"""The benchmark harness: protocol, checks, memory counts, bars, files. No time is asserted."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusedloss.benchmarks import (
    bars,
    baselines,
    cases,
    chart,
    cuda_facts,
    inputs,
    machine,
    measure,
    memory,
    report,
    run,
    timing,
)
from fusedloss.benchmarks import baselines_cross_entropy as cross_entropy
from fusedloss.benchmarks import baselines_sigmoid_focal as sigmoid_focal
from fusedloss.benchmarks import baselines_softmax_focal as softmax_focal
from fusedloss.benchmarks.results import CaseResult, ContenderResult, Timing
from fusedloss.benchmarks.workload import Case, OtherFunction

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _default_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
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


def result(case: str, times: dict[str, float], peak: int = 100, logits: int = 100) -> CaseResult:
    """A result with the given medians in ms and one peak for all."""
    dtype = "bf16" if "bf16" in case else "fp32"
    made = CaseResult(case, "loss", "large", (5, 5), dtype, "cpu", 25, logits, rows=5)
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


def small(case: Case) -> Case:
    """The case with few rows and its own number of classes."""
    shapes = {2: (16, case.shape[-1]), 3: (2, 30, case.shape[-1]), 4: (1, case.shape[1], 64, 48)}
    return dataclasses.replace(case, shape=shapes[len(case.shape)], gpu_shape=None)


# The series of one loss differ in their rows only.
@pytest.mark.parametrize(
    "case", [case for case in cases.CASES if case.series != "scaling"], ids=lambda case: case.name
)
def test_every_contender_of_every_case_is_right(case: Case) -> None:
    ready = measure.prepare(small(case), CPU, measure.Options(compile=False), quiet)
    assert {"eager", "fusedloss"} <= set(ready.contenders)


def test_the_references_do_not_depend_on_their_slices() -> None:
    case = tiny_case()
    made = case.setup(case, CPU)
    labels, normalizer = made.args
    whole = sigmoid_focal.reference(made.logits, labels, normalizer)
    sliced = sigmoid_focal.reference(made.logits, labels, normalizer, rows_at_once=7)
    torch.testing.assert_close(sliced, whole, rtol=1e-14, atol=0)


def softmax_inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64, of which the first rows are far apart, and labels, of which some are ignored."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    logits[:, 0].flatten()[:2] = 700.0
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels.flatten()[::5] = softmax_focal.IGNORE
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("rows_at_once", [1, 7, 16_384])
@pytest.mark.parametrize("shape", [(13, 6), (3, 4, 5, 2)], ids=["rows", "pixels"])
@pytest.mark.parametrize(
    ("make", "form"),
    [
        (
            lambda rows: cross_entropy.reference(0.1, softmax_focal.IGNORE, rows),
            cross_entropy.eager(0.1, softmax_focal.IGNORE),
        ),
        (
            lambda rows: functools.partial(softmax_focal.reference, rows_at_once=rows),
            softmax_focal.eager,
        ),
    ],
    ids=["cross entropy", "softmax focal"],
)
def test_the_softmax_references_are_those_of_torch_in_float64(
    make: Callable[[int], baselines.Reference],
    form: baselines.LossFn,
    shape: tuple[int, ...],
    rows_at_once: int,
) -> None:
    logits, labels = softmax_inputs(*shape)
    expected = form(logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    value, gradient = make(rows_at_once)(logits, labels)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-14)


def test_references_of_worked_rows() -> None:
    # p = 1/2 over two classes: CE = ln 2, with smoothing the same; focal (1/2)^2 ln 2; one class
    # against the rest: two sigmoids at x = 0 give (1/2)^2 ln 2 each. The other row is ignored.
    logits = torch.zeros(2, 2, dtype=torch.float64)
    labels = torch.tensor([1, softmax_focal.IGNORE])
    value, gradient = cross_entropy.reference(0.1, softmax_focal.IGNORE)(logits, labels)
    assert value.item() == pytest.approx(math.log(2))
    assert gradient.flatten().tolist() == pytest.approx([0.45, -0.45, 0, 0])
    assert softmax_focal.reference(logits, labels)[0].item() == pytest.approx(math.log(2) / 4)
    assert softmax_focal.smp_reference(logits, labels)[0].item() == pytest.approx(math.log(2) / 4)


def test_segmentation_labels_lie_in_patches_and_are_ignored_now_and_then() -> None:
    shape = (2, 19, 512, 1024)
    case = next(case for case in cases.CASES if case.name == "cityscapes-ce-fp32")
    assert case.shape == shape
    assert case.rows == 2 * 512 * 1024
    case = dataclasses.replace(case, shape=(2, 19, 256, 512))
    (labels,) = case.setup(case, CPU).args
    assert labels.dtype == torch.int64
    ignored = labels == softmax_focal.IGNORE
    assert 0.03 < ignored.double().mean() < 0.07
    assert set(labels[~ignored].unique().tolist()) == set(range(19))
    same_as_the_next = (labels[..., 1:] == labels[..., :-1]).double().mean()
    assert same_as_the_next > 0.9


def half_eager(logits: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
    """Another function than focal loss: half of it."""
    return sigmoid_focal.index_eager(logits, *args) / 2


def with_other_function(right: bool) -> Case:
    """A case one contender of which computes half, declared with the right or a wrong reference."""

    def reference(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = sigmoid_focal.reference(*args)  # type: ignore[arg-type]
        return value / 2, gradient / (2 if right else 3)

    return dataclasses.replace(
        tiny_case(),
        contenders=lambda: {"eager": sigmoid_focal.index_eager, "half": half_eager},
        other_functions={"half": OtherFunction(reference, "half of it")},
    )


def test_a_contender_of_another_function_is_checked_and_marked(tmp_path: Path) -> None:
    options = measure.Options(7, compile=False, forward=False, memory=False)
    ready = measure.prepare(with_other_function(right=True), CPU, options, quiet)
    found = measure.measure(ready, CPU, options, quiet)
    lines = report.case_table(found).splitlines()
    assert any(line.strip().startswith("half *") for line in lines)
    assert not any("eager *" in line for line in lines)
    assert lines[-1].endswith("another function than the case's: half of it")
    written = report.Report({}, {}, cases=[found])
    report.write_csv(written, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        functions = {row["contender"]: row["other_function"] for row in csv.DictReader(file)}
    assert functions == {"eager": "", "half": "half of it", "clone": ""}

    with pytest.raises(timing.WrongResultError, match="half is wrong"):
        measure.prepare(with_other_function(right=False), CPU, options, quiet)
    undeclared = dataclasses.replace(with_other_function(right=True), other_functions={})
    with pytest.raises(timing.WrongResultError, match="half is wrong"):
        measure.prepare(undeclared, CPU, options, quiet)


class _WrongGradient(torch.autograd.Function):
    """The right value with a gradient that is 2 % off."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 1.02


WRONG: dict[str, Callable[..., torch.Tensor]] = {
    "value": lambda *args: sigmoid_focal.index_eager(*args) + 0.01,
    "gradient": lambda *args: _WrongGradient.apply(sigmoid_focal.index_eager(*args)),
    "nan": lambda *args: sigmoid_focal.index_eager(*args) * float("nan"),
    "without gradient": lambda x, *args: (
        sigmoid_focal.index_eager(x, *args)
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
    monkeypatch.setattr(sigmoid_focal, "dense_eager", lambda x, *_: x.sum())
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

GOOD = {"eager": 100.0, "compile": 50.0, "smp": 900.0, "fusedloss": 5.0, "clone": 2.0}


def statuses(verdicts: list[bars.Verdict]) -> dict[str, str]:
    return {verdict.bar: verdict.status for verdict in verdicts}


def test_good_figures_pass_every_bar() -> None:
    good = [
        result(case.name, GOOD | ({"fusedloss": 4.9} if case.dtype_name == "bf16" else {}))
        for case in cases.CASES
    ]
    found = bars.evaluate(good)
    assert all(verdict.status in ("PASS", "INFO") for verdict in found), found
    assert not bars.failed(found)


def test_an_informative_bar_is_reported_and_never_fails() -> None:
    slow = result("cityscapes-ce-bf16", GOOD | {"eager": 5.1})
    found = {v.bar: v for v in bars.evaluate([slow, result("cityscapes-ce-fp32", GOOD)])}
    verdict = found["cityscapes-ce-bf16: at least 2.5x faster than eager"]
    assert (verdict.status, verdict.measured) == ("INFO", pytest.approx(1.02))
    assert verdict.line().startswith("INFO")
    assert not bars.failed(list(found.values()))
    alone = [v for v in found.values() if v.status in ("INFO", "NOT RUN")]
    assert bars.failed(alone)  # nothing was checked


def test_every_large_case_has_every_kind_of_bar() -> None:
    for case in cases.CASES:
        if case.series != "large":
            continue
        kinds = {
            (bar.measure, bar.against) for bar in bars.BARS if fnmatch.fnmatch(case.name, bar.cases)
        }
        assert {m for m, _ in kinds} & {"peak_over_logits", "peak_beyond_gradient"}, case.name
        assert ("in_units_of", "clone") in kinds, case.name
        if case.dtype_name == "bf16":
            assert ("time_over_case", "bf16>fp32") in kinds, case.name
        else:
            assert {("times_faster_than", c) for c in ("eager", "compile")} <= kinds, case.name


def test_memory_beyond_the_gradient_is_per_row() -> None:
    found = result("imagenet-ce-8192x1000-fp32", GOOD, peak=140)  # of 5 rows, 100 bytes of logits
    assert found.peak_beyond_gradient("fusedloss") == 8.0
    assert found.peak_beyond_gradient("fusedloss", let_go=30) == 2.0
    assert found.peak_beyond_gradient("fusedloss", let_go=50) == 0.0
    assert found.peak_beyond_gradient("nobody") is None


@pytest.mark.parametrize(
    ("case", "times", "peak", "failing"),
    [
        ("retinanet-index-fp32", {"eager": 49.0}, 100, "10x faster than eager"),
        ("retinanet-index-fp32", {"compile": 19.0}, 100, "4x faster than compile"),
        ("retinanet-index-fp32", {"clone": 1.2}, 100, "4 clone"),
        ("retinanet-index-fp32", {}, 106, "peak above the inputs"),
        ("imagenet-ce-smooth-8192x1000-fp32", {"eager": 14.9}, 100, "3x faster than eager"),
        ("imagenet-ce-smooth-8192x1000-fp32", {"compile": 7.4}, 100, "1.5x faster than compile"),
        ("imagenet-ce-8192x1000-fp32", {"eager": 12.4}, 100, "2.5x faster than eager"),
        ("cityscapes-ce-fp32", {"compile": 6.9}, 100, "1.4x faster than compile"),
        ("cityscapes-softmax-focal-fp32", {"smp": 49.0}, 100, "10x faster than smp"),
        ("cityscapes-softmax-focal-fp32", {"compile": 9.9}, 100, "2x faster than compile"),
        ("cityscapes-ce-fp32", {}, 100 + 4096 + 41, "at most 8 bytes a row"),
        ("imagenet-ce-8192x1000-bf16", {"clone": 0.6}, 100, "8 clone"),
        ("retinanet-dense-bf16", {"fusedloss": 5.1}, 100, "the time of retinanet-dense-fp32"),
        ("retinanet-dense-bf16", {"clone": 0.6}, 100, "8 clone"),
        ("small-focal-dense-256x80", {"eager": 4.9}, 100, "1x faster than eager"),
    ],
)
def test_a_figure_beyond_its_bar_fails_that_bar_alone(
    case: str, times: dict[str, float], peak: int, failing: str
) -> None:
    others = [result(name, GOOD) for name in ("retinanet-dense-fp32", "imagenet-ce-8192x1000-fp32")]
    others = [other for other in others if other.case != case]
    found = bars.evaluate([*others, result(case, GOOD | times, peak)])
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
