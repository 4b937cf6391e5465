"""The page of a benchmark run: its figures are the run's, it stands alone, and words stay words."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmark_helpers import FACTS, GOOD, default_malloc, result  # noqa: F401
from fusedloss.benchmarks import bars, blocks, cases, cuda_facts, machine, page, run, saved, svg
from fusedloss.benchmarks import report as reports
from fusedloss.benchmarks.report import Report
from fusedloss.benchmarks.results import CaseResult, ContenderResult, Errors, Timing

NAN, INFINITY = float("nan"), float("inf")
COMMITTED = Path(__file__).parents[1] / "benchmarks" / "results"
HOSTILE = "</title></style><script>alert('x')</script><img src=http://x onerror=y> & \""
VOID = {"meta", "hr", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.rows: list[list[tuple[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append(("", found.get("data-v")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, value)

    @property
    def text(self) -> str:
        """All words, one space between."""
        return " ".join(" ".join(self.words).split())

    def section(self, heading: str) -> str:
        """The words from a heading on."""
        return self.text.partition(heading)[2]

    def values(self, tag: str, attribute: str) -> list[str]:
        """An attribute of all elements of a kind."""
        return [found[attribute] for name, found in self.tags if name == tag and attribute in found]


def scaled(rows: int, times: dict[str, float]) -> CaseResult:
    made = result(f"scaling-focal-{rows}x80", times)
    made.series, made.elements, made.shape = "scaling", rows * 80, (rows, 80)
    return made


def example() -> Report:
    """Both dtypes, small and scaling rows, a starred contender, one that failed, facts and bars."""
    full = result("retinanet-index-fp32", GOOD | {"fusedloss": 4.7}, peak=110)
    full.contenders["eager"].peak_bytes, full.contenders["eager"].saved_bytes = 900, 512
    full.contenders["eager"].errors = Errors(1.25e-7, 3.5e-8, 1e-6)
    full.contenders["eager"].forward = Timing((31.0,) * 7)
    full.contenders["smp"].other_function = "something else"
    full.left_out = {"torchvision": "needs more memory than there is"}
    half = result("retinanet-index-bf16", GOOD | {"fusedloss": 120.0})
    half.foreign_cores = 0.75
    small = result("small-focal-index-256x80", {"eager": 0.0213, "fusedloss": 0.0171})
    small.series, small.shape = "small", (256, 80)
    sizes = [scaled(rows, {name: t * rows for name, t in GOOD.items()}) for rows in (16, 4_096)]
    made = Report({"processor": "a processor", "torch": "9.9"}, {"command": "bench --x"})
    made.cases = [full, half, small, *sizes]
    made.cuda_rows, made.cuda_source = list(FACTS), "facts.json"
    made.verdicts = bars.evaluate(made.cases) + cuda_facts.evaluate(FACTS)
    made.not_run = ["the default allocator: left out"]
    return made


def read(report: Report) -> Page:
    return Page(page.render(report))


# --- figures --------------------------------------------------------------------------------------


def test_the_full_table_holds_every_figure_as_it_is() -> None:
    report = example()
    found = [row for row in read(report).rows if row[0][0].startswith(("retina", "small-", "scal"))]
    expected = [reports.csv_row(c, r) for c in report.cases for r in c.contenders.values()]
    failed = [row for row in found if "not timed" in row[-1][0]]
    assert [(row[0][0], row[1][0]) for row in failed] == [("retinanet-index-fp32", "torchvision")]
    kept = [row for row in found if row not in failed]
    assert len(kept) == len(expected) == 9 * 4 + 2
    for cells, row in zip(kept, expected, strict=True):
        shown = {float(value) for _, value in cells if value is not None}
        numbers = {v for name, v in row.items() if name not in page.EXACT and v is not None}
        assert shown == numbers
        assert cells[0][0] == row["case"]


def test_the_headline_is_the_median_over_the_large_cases() -> None:
    text = read(example()).text
    faster = [GOOD["eager"] / 4.7, GOOD["eager"] / 120.0]
    assert f"{statistics.median(faster):.1f}x faster than eager PyTorch" in text
    assert "median of 2 workloads; 0.83x to 21.3x; slower in 1" in text
    # insightface's 40 ms are the best alternative's; smp computes something else in one of them.
    assert f"{(40 / 4.7 + 40 / 120) / 2:.2f}x faster than the best alternative" in text


def test_factors_times_and_memory_stand_beside_their_bars() -> None:
    report = example()
    first = blocks.speed(report.cases[:2])[0]
    assert first.columns == ["fp32", "bf16"]
    eager, smp = first.rows[0], next(row for row in first.rows if row.name.startswith("smp"))
    assert [cell.figure for cell in eager.cells] == ["21.3x", "0.83x"]
    assert [cell.aside for cell in eager.cells] == ["100 ms", "100 ms"]
    assert ["faster" in eager.cells[0].bar, "slower" in eager.cells[1].bar] == [True, True]
    assert smp.name == "smp *"
    clones = blocks.clones(report.cases[:2])[0]
    assert [cell.figure for cell in clones.rows[-1].cells] == ["2.35x", "60.0x"]
    assert clones.notes[0] == "logits.clone() in fp32: 2.00 ms, bf16: 2.00 ms"
    memory = blocks.memory(report.cases[:1])[0]
    assert [cell.figure for cell in memory.rows[0].cells] == ["9.00x", "900 B", "512 B"]
    assert memory.notes == ["fusedloss: 790 B (88 %) less than eager, as much as torch.compile"]


def test_sizes_have_a_chart_that_can_be_read_without_seeing_it() -> None:
    found = read(example())
    assert "Time against size: loss, fp32" in found.text
    assert "eager, 4,096 x 80: 409,600 ms" in found.text
    points = [tag for tag, _ in found.tags if tag == "circle"]
    assert len(points) == 2 * len(GOOD)


def test_bars_and_cuda_figures_are_shown_as_they_were_judged() -> None:
    report = example()
    found = read(report)
    counts = [sum(v.status == s for v in report.verdicts) for s in ("PASS", "FAIL")]
    assert f"{counts[0]} hold, {counts[1]} fail" in found.text
    shown = [v for v in report.verdicts if v.measured is not None]
    for verdict in shown:
        rows = [row for row in found.rows if len(row) == 5 and row[1][0] == verdict.bar]
        assert [float(row[2][1] or NAN) for row in rows] == [verdict.measured]
    assert "UNSAFE, other processes used 0.75 cores" in found.text
    assert "fails: CUDA local_bytes at most 8 in all of 1" in found.text
    for cell in ("pointwise forward", "101", "1.010", "focal<float> sm_90", "40", "not timed here"):
        assert any(text == cell for row in found.rows for text, _ in row), cell


def test_what_did_not_run_is_said() -> None:
    text = read(example()).text
    assert "fp32: torchvision needs more memory than there is" in text
    assert "the default allocator: left out" in text
    assert "timings on a GPU: not in this run" in text
    assert "unsafe: other processes used 0.75 cores" in text
    assert "bf16 †" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_value_that_is_no_number_is_shown_as_what_it_is() -> None:
    case = result("retinanet-index-fp32", GOOD | {"eager": NAN, "compile": INFINITY})
    case.contenders["eager"].errors = Errors(NAN, INFINITY, NAN)
    case.contenders["untimed"] = ContenderResult("untimed")
    report = Report({}, {}, cases=[case], verdicts=bars.evaluate([case]))
    html = page.render(report)
    block = blocks.speed([case])[0]
    figures = {row.name: row.cells[0] for row in block.rows}
    assert [figures[n].figure for n in ("eager", "torch.compile", "untimed")] == ["NaN", "inf", "-"]
    assert not any("rect" in figures[n].bar for n in ("eager", "torch.compile", "untimed"))
    assert "rect" in figures["pml"].bar
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', html, re.IGNORECASE)
    rows = {row[1][0]: row for row in Page(html).rows if row[0][0] == case.case}
    assert rows["eager"][2] == ("NaN", None)
    assert rows["untimed"][2] == ("-", None)


# --- the page as a file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [None, *sorted(COMMITTED.glob("**/results.json"))], ids=lambda path: str(path)[-30:]
)
def test_the_page_stands_alone(source: Path | None) -> None:
    html = page.render(example() if source is None else saved.load(source))
    found = Page(html)
    names = found.values("h2", "id")
    assert len(names) == len(set(names)) == 10
    links = found.values("a", "href")
    assert sorted(links) == sorted(f"#{name}" for name in names)
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert not {"src", "xlink:href", "srcset", "onclick"} & set(attributes), attributes
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert all(value.startswith("#") for value in links)


def test_hostile_words_stay_words() -> None:
    report = example()
    case = report.cases[0]
    case.loss = case.case = HOSTILE
    case.contenders[HOSTILE] = ContenderResult(HOSTILE, train=Timing((3.0,) * 7), peak_bytes=5)
    case.contenders[HOSTILE].other_function = HOSTILE
    for some in report.cases:
        some.left_out[HOSTILE] = f"failed: {HOSTILE}"
    sizes = report.cases[-1]
    sizes.loss = HOSTILE
    sizes.contenders[HOSTILE] = ContenderResult(HOSTILE, train=Timing((3.0,) * 7))
    report.machine |= {"processor": HOSTILE, HOSTILE: "not installed", "date": HOSTILE}
    report.settings[HOSTILE] = HOSTILE
    report.warnings, report.not_run = [HOSTILE], [HOSTILE]
    report.verdicts.append(bars.Verdict(HOSTILE, "FAIL", 1.0, 2.0, HOSTILE))
    report.cuda_rows.append({"kernel": HOSTILE, "registers": 3})
    report.cuda_source = HOSTILE
    found = read(report)
    kinds = [tag for tag, _ in found.tags]
    assert kinds.count("script") == kinds.count("style") == 1
    assert "img" not in kinds
    assert found.text.count("<script>alert('x')</script>") > 20


def test_a_terminal_shows_long_tables_by_their_worst_rows() -> None:
    many = [{"kernel": f"k{i}", "registers": i, "local_bytes": i} for i in range(300)]
    text = reports.cuda_section(Report({}, {}, cuda_rows=[*FACTS, *many]))
    assert "compiled: 301 rows, in results.json and report.html" in text
    assert "FAIL    CUDA local_bytes at most 8 in all of 301, worst in k299" in text
    assert len(text.splitlines()) < 20
    assert "focal<float> sm_90" in reports.cuda_section(Report({}, {}, cuda_rows=list(FACTS)))


def test_only_busy_cores_make_times_unsafe() -> None:
    interrupted = Report({}, {}, warnings=["interrupted: [3/9] was not finished"])
    text = read(interrupted).text
    assert "interrupted: [3/9] was not finished" in text
    assert "unsafe" not in text


def test_sections_without_figures_say_so() -> None:
    text = read(Report({}, {})).text
    assert "Nothing was measured in this run" in text
    assert "Not in this run: no emulator counts" in text
    assert "No bar was evaluated in this run" in text
    case = result("retinanet-index-fp32", {"eager": 2.0, "fusedloss": 1.0})
    for taken in case.contenders.values():
        taken.peak_bytes = taken.saved_bytes = None
    text = read(Report({"timm": "not installed"}, {}, cases=[case])).text
    for words in (
        "No large workload was timed beside a yardstick on the CPU",
        "No memory was measured on the CPU",
        "The scaling rows were not run on the CPU",
        "bf16: not in this run",
        "timm: not installed",
    ):
        assert words in text, words


def test_both_devices_have_their_own_figures() -> None:
    report = example()
    twin = dataclasses.replace(report.cases[0], device="cuda", contenders={})
    twin.contenders = result("x", {"eager": 7.0, "fusedloss": 2.0, "clone": 1.0}).contenders
    report.cases.append(twin)
    text = read(report).text
    assert "on the GPU : fusedloss" in text
    assert "3.50x faster than eager PyTorch one workload" in text
    assert "timings on a GPU: not in this run" not in text
    assert "The scaling rows were not run on the GPU" in text


# --- bars and axes --------------------------------------------------------------------------------


def test_bars_begin_at_one_and_end_at_their_value() -> None:
    axis = svg.Axis(0.1, 10.0)
    assert [axis.place(value) for value in (0.1, 1.0, 10.0, 1e9)] == pytest.approx([0, 0.5, 1, 1])
    assert 'x="50.00%" width="50.00%"' in svg.bar(axis, 10.0, "faster")
    assert 'x="0.00%" width="50.00%"' in svg.bar(axis, 0.1, "slower")
    assert "rect" not in svg.bar(axis, None, "faster")
    assert svg.axis_for([None, NAN, -1.0]) == svg.axis_for([])


@pytest.mark.parametrize("high", [0.02, 1.0, 3.3, 16.4, 700.0])
def test_a_linear_axis_has_a_few_round_ticks(high: float) -> None:
    ticks = svg.axis_for([high], logarithmic=False).ticks()
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0


# --- saved runs, and the command ------------------------------------------------------------------


def test_a_saved_run_comes_back_as_it_was(tmp_path: Path) -> None:
    report = example()
    reports.write_json(report, tmp_path / "results.json")
    again = saved.load(tmp_path / "results.json")
    assert again == report
    assert page.render(again) == page.render(report)


def test_a_saved_run_is_rendered_and_anything_else_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports.write_json(example(), tmp_path / "results.json")
    out = tmp_path / "out"
    assert run.main(["--render", str(tmp_path / "results.json"), "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["report.html"]
    Page((out / "report.html").read_text())
    for name, content in (("a.json", "{}"), ("b.json", "[1]"), ("c.json", "no"), ("d.json", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert run.main(["--render", str(tmp_path / name), "--out", str(tmp_path / "no")]) == 1
        assert name in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_quick_has_something_of_everything() -> None:
    quick = cases.select(quick=True)
    for series in ("large", "small", "scaling"):
        assert [case for case in quick if case.series == series]
    large = [case for case in quick if case.series == "large"]
    assert {case.dtype_name for case in large} == {"fp32", "bf16"}
    sizes = [case.loss for case in quick if case.series == "scaling"]
    assert sizes
    assert all(sizes.count(loss) >= 3 for loss in sizes)


def test_the_machine_says_what_was_built_and_from_what() -> None:
    facts = machine.facts()
    assert re.fullmatch(r"unknown|[0-9a-f]{7,40}(-dirty)?", facts["commit"])
    assert facts["compiler"]
    assert json.dumps(facts)
