"""The bars of the benchmarks, and the facts about CUDA kernels that they judge."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import cuda_report
import pytest
from benchmark_helpers import CPU, FACTS, GOOD, default_malloc, quiet, result, tiny_case  # noqa: F401
from fusedloss.benchmarks import (
    bars,
    cases,
    cuda_facts,
)

# --- bars -----------------------------------------------------------------------------------------


COMPARED_WITH = (
    "retinanet-dense-fp32",
    "imagenet-ce-8192x1000-fp32",
    "faces-128x93431-fp32",
    "cityscapes-ce-fp32",
)
"""The cases whose times are the measure of others."""


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
        assert {m for m, _ in kinds} & set(bars.SIZES), case.name
        for yardstick in case.yardsticks:
            assert ("in_units_of", yardstick) in kinds, case.name
        if case.dtype_name == "bf16":
            assert ("time_over_case", "bf16>fp32") in kinds, case.name
        else:
            assert {("times_faster_than", c) for c in ("eager", "compile")} <= kinds, case.name


def test_memory_beyond_the_gradients() -> None:
    found = result("imagenet-ce-8192x1000-fp32", GOOD, peak=140)  # 100 bytes of logits and gradient
    assert found.beyond_gradient("fusedloss") == 40
    assert found.beyond_gradient("fusedloss", let_go=30) == 10
    assert found.beyond_gradient("fusedloss", let_go=50) == 0
    assert found.beyond_gradient("nobody") is None
    found.gradient_bytes = 120  # of two inputs, say
    assert found.beyond_gradient("fusedloss") == 20


@pytest.mark.parametrize(
    ("measure", "peak", "figure"),
    [("peak_beyond_gradient", 100 + 4096 + 40, 8.0), ("workspace_over_logits", 130, 0.3)],
)
def test_memory_beyond_the_gradients_is_per_row_or_per_logit(
    measure: bars.Measure, peak: int, figure: float
) -> None:
    found = bars.evaluate([result("x", GOOD, peak)], [bars.Bar("x", measure, figure)])  # of 5 rows
    assert [verdict.measured for verdict in found] == [pytest.approx(figure)]
    assert bars.evaluate([result("x", {})], [bars.Bar("x", measure, 1.0)])[0].status == "NOT RUN"


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
        ("cityscapes-ohem-fp32", {"eager": 19.9}, 100, "4x faster than eager"),
        ("cityscapes-ohem-fp32", {"compile": 9.9}, 100, "2x faster than compile"),
        ("cityscapes-ohem-fp32", {"fusedloss": 7.1}, 100, "1.4x the time of cityscapes-ce-fp32"),
        ("cityscapes-ohem-fp32", {"clone": 1.2}, 100, "4 clone"),
        ("cityscapes-ohem-fp32", {}, 100 + 4096 + 61, "at most 12 bytes a row"),
        ("cityscapes-topk-fp32", {"compile": 9.9}, 100, "2x faster than compile"),
        ("cityscapes-topk-fp32", {}, 100 + 4096 + 61, "at most 12 bytes a row"),
        ("text-balanced-bce-fp32", {"eager": 39.9}, 100, "8x faster than eager"),
        ("text-balanced-bce-fp32", {"compile": 39.9}, 100, "8x faster than compile"),
        ("text-balanced-bce-fp32", {}, 100 + 4096 + 61, "at most 12 bytes a row"),
        ("small-ohem-256x19", {"eager": 4.9}, 100, "1x faster than eager"),
        ("imagenet-ce-8192x1000-bf16", {"clone": 0.6}, 100, "8 clone"),
        ("retinanet-dense-bf16", {"fusedloss": 5.1}, 100, "the time of retinanet-dense-fp32"),
        ("retinanet-dense-bf16", {"clone": 0.6}, 100, "8 clone"),
        ("faces-256x100000-fp32", {"eager": 49.0}, 100, "10x faster than eager"),
        ("faces-256x100000-fp32", {"compile": 24.0}, 100, "5x faster than compile"),
        ("faces-256x100000-fp32", {"insightface": 14.9}, 100, "3x faster than insightface"),
        ("faces-256x100000-fp32", {"pml": 14.9}, 100, "3x faster than pml"),
        ("faces-128x93431-fp32", {"clone": 1.2}, 100, "4 clone"),
        ("faces-128x93431-fp32", {}, 106, "peak above the inputs at most 1.05x"),
        ("faces-128x93431-bf16", {"clone": 0.6}, 100, "8 clone"),
        ("faces-128x93431-bf16", {"fusedloss": 5.1}, 100, "the time of faces-128x93431-fp32"),
        ("linear-arcface-512x512x100000-fp32", {}, 131, "at most 0.3x the logits"),
        ("linear-arcface-512x512x100000-fp32", {"products": 3.8}, 100, "1.3 times its matrix"),
        ("linear-arcface-512x512x100000-fp32", {"eager": 4.9}, 100, "1x faster than eager"),
        ("small-focal-dense-256x80", {"eager": 4.9}, 100, "1x faster than eager"),
        ("small-arcface-256x100", {"eager": 4.9}, 100, "1x faster than eager"),
    ],
)
def test_a_figure_beyond_its_bar_fails_that_bar_alone(
    case: str, times: dict[str, float], peak: int, failing: str
) -> None:
    others = [result(name, GOOD) for name in COMPARED_WITH]
    others = [other for other in others if other.case != case]
    found = bars.evaluate([*others, result(case, GOOD | times, peak)])
    failures = [verdict for verdict in found if verdict.status == "FAIL"]
    assert len(failures) == 1, found
    assert case in failures[0].bar
    assert failing in failures[0].bar
    assert bars.failed(found)


def test_mined_rows_may_have_twelve_bytes_a_pixel() -> None:
    for name in ("cityscapes-ohem-fp32", "cityscapes-topk-fp32", "text-balanced-bce-fp32"):
        made = [result("cityscapes-ce-fp32", GOOD), result(name, GOOD, 100 + 4096 + 60)]
        assert not bars.failed(bars.evaluate(made))


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


def test_cuda_facts_are_tabulated_judged_and_never_timed(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS))
    rows, source = cuda_facts.load(path)
    assert source == str(path)
    for _, table in cuda_facts.tables(rows):
        assert [row[-1] for row in table] == ["time", cuda_facts.NOT_TIMED]
    failures = [verdict.bar for verdict in cuda_facts.evaluate(rows) if verdict.status == "FAIL"]
    assert failures == ["CUDA local_bytes at most 8 in all of 1, worst in focal<float> sm_90"]


def test_cuda_facts_of_a_wrong_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"kernel": 1}')
    with pytest.raises(ValueError, match="list of objects"):
        cuda_facts.load(path)


def test_each_kernel_has_its_number_of_launches() -> None:
    def row(kernel: str, launches: int) -> dict[str, object]:
        return {"kernel": kernel, "workload": "w", "launches": launches}

    documented = {"pointwise": 2, "row softmax": 2, "regions": 3, "mining": 4}
    assert documented.keys() == cuda_report.WORKLOADS.keys()
    found = cuda_facts.evaluate([row(kernel, most) for kernel, most in documented.items()])
    assert statuses(found) == {
        f"CUDA launches of {kernel} at most {most} in all of 1, worst in {kernel} w": "PASS"
        for kernel, most in documented.items()
    }
    found = cuda_facts.evaluate([row(kernel, most + 1) for kernel, most in documented.items()])
    assert [verdict.status for verdict in found] == ["FAIL"] * 4
