"""Ctrl-C loses nothing: losses are as before it, results of what was finished are written, files of an
earlier run stay whole.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fusedloss
import pytest
from benchmark_helpers import GOOD, default_malloc, result, tiny_case  # noqa: F401
from fusedloss import cli
from fusedloss._files import replacing
from fusedloss.benchmarks import cases, chart, report, run, timing
from test_processes import LOSSES, same, step

INTERRUPTED = 128 + signal.SIGINT


# --- losses ---------------------------------------------------------------------------------------


def interrupt(work: Callable[[], object], seconds: float) -> None:
    """Ctrl-C while `work` is done again and again."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            work()
    except KeyboardInterrupt:
        timer.join()


@pytest.mark.parametrize("name", LOSSES)
def test_interrupted_losses_leave_nothing_behind(name: str) -> None:
    expected = step(name, 0)
    for milliseconds in (1, 2, 3, 5, 8, 13):
        interrupt(lambda: step(name, 1), milliseconds / 1e3)
        assert same(step(name, 0), expected)


def test_an_interrupt_puts_the_switches_back() -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        step("cross entropy", 1)

    before = fusedloss.show_config()
    with (
        pytest.raises(KeyboardInterrupt),
        fusedloss.backend("reference"),
        fusedloss.gradient_schedule("forward"),
        fusedloss.debug(True),
    ):
        work()
    assert fusedloss.show_config() == before


# --- files ----------------------------------------------------------------------------------------


def finished() -> report.Report:
    """A run with one case."""
    return report.Report({"processor": "p"}, {}, cases=[result("retinanet-index-fp32", GOOD)])


def draw_chart(path: Path) -> None:
    """The chart of that run."""
    pytest.importorskip("matplotlib")
    assert chart.draw(finished(), path)


def draw_demo(path: Path) -> None:
    """The picture of a demo, whose axes stay empty."""
    pytest.importorskip("matplotlib")
    from fusedloss.demo import report as demo_report

    with pytest.MonkeyPatch.context() as patch:
        for part in ("_draw_scenes", "_draw_curves", "_draw_time", "_draw_memory"):
            patch.setattr(demo_report, part, lambda *_: None)
        demo_report.save_picture([SimpleNamespace(beside={})], None, path)  # type: ignore


WRITERS: dict[str, Callable[[Path], None]] = {
    "results.json": lambda path: report.write_json(finished(), path),
    "results.csv": lambda path: report.write_csv(finished(), path),
    "chart.png": draw_chart,
    "demo.png": draw_demo,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_replaced_at_once_or_not_at_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at the last moment, when everything but the name is written."""
    path = tmp_path / name
    path.write_text("of the run before")
    written: list[int] = []

    def interrupted(part: Path, target: Path) -> None:
        written.append(part.stat().st_size)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            WRITERS[name](path)
    assert written[0] > 0
    assert path.read_text() == "of the run before"
    assert os.listdir(tmp_path) == [name]
    WRITERS[name](path)
    assert path.stat().st_size == written[0]
    assert os.listdir(tmp_path) == [name]


def test_a_link_stays_one(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(there / "file.txt")
    with replacing(link) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert (there / "file.txt").read_text() == "new"


# --- the benchmark --------------------------------------------------------------------------------


def bench_until(
    done: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: type[BaseException] = KeyboardInterrupt,
) -> int:
    """The exit status of a run of three cases that is ended in the one after `done`."""
    measured: list[str] = []
    measure = run.measure

    def ended(ready: Any, *rest: Any) -> Any:
        if len(measured) == done:
            raise how("mine is wrong")
        measured.append(ready.case.name)
        return measure(ready, *rest)

    monkeypatch.setattr(run, "measure", ended)
    three = [tiny_case(), tiny_case(index=False), tiny_case()]
    monkeypatch.setattr(cases, "select", lambda **_: three)
    arguments = ["--quick", "--no-compile", "--device", "cpu", "--check-bars"]
    return cli.main(["bench", *arguments, "--out", str(folder)])


def test_an_interrupted_benchmark_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_until(2, tmp_path, monkeypatch) == INTERRUPTED
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["cases"]) == 2
    assert any("interrupted: [3/3] tiny on cpu" in warning for warning in content["warnings"])
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 2 * 2
    output = capsys.readouterr()
    assert "INTERRUPTED" in output.err
    assert "Written to" in output.out


def test_a_benchmark_that_a_wrong_result_stops_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_until(2, tmp_path, monkeypatch, timing.WrongResultError) == 1
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["cases"]) == 2
    assert any("[3/3] tiny on cpu: mine is wrong" in warning for warning in content["warnings"])
    assert "STOPPED: mine is wrong" in capsys.readouterr().err


def test_interrupted_before_its_first_result_it_leaves_earlier_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").write_text("of the run before")
    assert bench_until(0, tmp_path, monkeypatch) == INTERRUPTED
    assert (tmp_path / "results.json").read_text() == "of the run before"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("command", "options", "last_line"),
    [
        (
            "bench",
            ["--filter", "small-focal*", "--no-compile", "--no-default-malloc"],
            "small-focal",
        ),
        ("demo", ["--quick"], "held-out scenes"),
    ],
)
def test_ctrl_c_on_the_command_line(
    command: str, options: list[str], last_line: str, tmp_path: Path
) -> None:
    """A process of its own: the benchmark with its first results, the demo before them."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    out = tmp_path / {"bench": "results", "demo": "demo.png"}[command]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "fusedloss", command, *options, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(last_line):
            process.send_signal(signal.SIGINT)
            break
    output, error = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, error
    assert "INTERRUPTED" in error
    assert "Traceback" not in error + output
    if command == "bench":
        assert 0 < len(json.loads((out / "results.json").read_text())["cases"]) < 3
        assert {"chart.png", "results.csv", "results.json"} <= set(os.listdir(out))
    else:
        assert os.listdir(tmp_path) == []


# --- the demo -------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1])
def test_an_interrupted_demo_draws_what_it_trained(
    done: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from fusedloss.demo import cli as demo
    from fusedloss.demo.recognition import Recognition
    from fusedloss.demo.verification import Verification

    trained: list[Any] = []
    train_both = demo.train_both

    def interrupted(*arguments: Any) -> Any:
        if len(trained) == done:
            raise KeyboardInterrupt
        trained.append(train_both(*arguments))
        return trained[-1]

    monkeypatch.setattr(demo, "train_both", interrupted)
    monkeypatch.setattr(demo, "tasks", lambda: [Recognition(), Verification()])
    picture = tmp_path / "demo.png"
    picture.write_text("of the run before")
    assert demo.main(["--quick", "--steps", "2", "--out", str(picture)]) == INTERRUPTED
    assert f"{done} of 2 trainings are finished" in capsys.readouterr().err
    assert picture.read_bytes().startswith(b"\x89PNG") is (done == 1)
    assert os.listdir(tmp_path) == ["demo.png"]
