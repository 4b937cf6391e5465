"""`python -m fusedloss bench`: runs the workloads, prints tables, writes JSON, CSV, chart and page."""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fusedloss import backend
from fusedloss.cli import INTERRUPTED

from . import bars, baselines, cases, chart, cuda_facts, machine, page, report, saved, timing
from .measure import Options, measure, prepare
from .report import Report
from .results import CaseResult, Timing
from .workload import DTYPE_NAMES, Case

CPU = torch.device("cpu")


class Progress:
    """Progress on stderr: one line that is overwritten on a terminal, one line a case elsewhere."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.title = ""
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def case(self, title: str) -> None:
        """Starts a case."""
        self.title = title
        if not self._terminal:
            self._write(f"{self._clock()} {title}\n")

    def __call__(self, stage: str) -> None:
        """A stage of the case."""
        if self._terminal:
            line = f"{self._clock()} {self.title}: {stage}"
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)

    def clear(self) -> None:
        """Removes the line before other output."""
        if self._terminal and self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{minutes:2d}:{seconds:02d}"

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < timing.MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"at least {timing.MIN_ROUNDS}, got {rounds}")
    return rounds


def _threads(text: str) -> int:
    threads = int(text)
    if threads < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {threads}")
    return threads


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m fusedloss bench",
        description="Speed and memory of the fused losses beside eager, torch.compile, packages.",
    )
    p.add_argument("--quick", action="store_true", help="fourteen cases, in minutes; one allocator")
    p.add_argument("--filter", default="", metavar="NAME", help="cases by part of name or glob")
    p.add_argument("--dtype", default="", choices=["", *DTYPE_NAMES.values()])
    p.add_argument("--rounds", type=_rounds, help="samples each (default 11, quick 7)")
    p.add_argument("--threads", type=_threads, help="CPU threads (default: torch's)")
    p.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument("--backend", default="auto", choices=["auto", "triton"], help="of fusedloss")
    p.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    p.add_argument("--no-default-malloc", action="store_true", help="time warm malloc only")
    p.add_argument("--check-bars", action="store_true", help="exit 1 where a bar fails")
    p.add_argument("--cuda-facts", type=Path, metavar="FILE", help="emulator and compiler figures")
    p.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    p.add_argument("--wait-idle", type=float, default=0.0, metavar="S", help="for a quiet machine")
    p.add_argument(
        "--render", type=Path, metavar="FILE", help="only write report.html of a results.json"
    )
    p.add_argument("--list", action="store_true", help="list the cases and exit")
    return p


def _time_default_malloc(
    selected: Sequence[Case], options: Options, progress: Progress
) -> dict[str, dict[str, Timing]]:
    """Forward + backward of the large CPU cases before malloc is told to keep its memory."""
    found: dict[str, dict[str, Timing]] = {}
    large = [case for case in selected if case.series == "large"]
    for number, case in enumerate(large, 1):
        progress.case(f"[{number}/{len(large)}] {case.name}, default malloc")
        ready = prepare(case, CPU, options, progress)
        result = measure(ready, CPU, options, progress)
        found[case.name] = {n: c.train for n, c in result.contenders.items() if c.train is not None}
    return found


def _measure_case(
    case: Case, device: torch.device, options: Options, out: Report, progress: Progress
) -> CaseResult | None:
    """The result, or None with the reason in the report where the GPU's memory does not suffice."""
    try:
        ready = prepare(case, device, options, progress)
        out.not_run += ready.not_run
        return measure(ready, device, options, progress)
    except torch.OutOfMemoryError:
        out.not_run.append(f"{case.name}: needs more memory than there is")
        return None


def _free(device: torch.device) -> None:
    """What a case left in compiled code, in cycles and in the allocator would crowd out the next."""
    if device.type == "cuda":
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def _run_cases(
    selected: Sequence[Case],
    device: torch.device,
    options: Options,
    out: Report,
    progress: Progress,
    default_malloc: Mapping[str, Mapping[str, Timing]] | None = None,
) -> None:
    """Measures every case, prints its table and adds it to the report."""
    for number, case in enumerate(selected, 1):
        sized = case.at_full_size() if device.type == "cuda" else case
        progress.case(f"[{number}/{len(selected)}] {case.name} on {device.type}")
        result = _measure_case(sized, device, options, out, progress)
        _free(device)
        if result is None:
            progress.clear()
            continue
        busy = result.foreign_cores
        if device.type == "cpu" and busy is not None and busy > machine.BUSY_CORES:
            out.warnings.append(
                f"{case.name}: other processes used {busy:.2f} cores meanwhile; unsafe times"
            )
        for name, taken in (default_malloc or {}).get(case.name, {}).items():
            result.contenders[name].train_default_malloc = taken
        out.cases.append(result)
        progress.clear()
        print(report.case_table(result), end="\n\n", flush=True)


def _run_cpu(
    selected: Sequence[Case], args: argparse.Namespace, options: Options, out: Report,
    progress: Progress,
) -> None:  # fmt: skip
    default: dict[str, dict[str, Timing]] = {}
    if args.quick or args.no_default_malloc:
        out.not_run.append("the default allocator: left out by --quick or --no-default-malloc")
    else:
        few = Options(timing.MIN_ROUNDS, options.compile, forward=False, memory=False)
        default = _time_default_malloc(selected, few, progress)
    warm = machine.warm_malloc()
    if not warm:
        out.warnings.append("malloc could not be told to keep its memory: these times are not warm")
    out.settings["allocator"] = "warm (mallopt: freed memory is kept)" if warm else "default"
    progress.clear()
    print(f"allocator: {out.settings['allocator']}\n", flush=True)
    _run_cases(selected, CPU, options, out, progress, default)


def _cuda(
    selected: Sequence[Case], args: argparse.Namespace, options: Options, out: Report,
    progress: Progress,
) -> None:  # fmt: skip
    """Real timings on a GPU; without one, the figures of the emulator and the compiler."""
    if torch.cuda.is_available() and args.device != "cpu":
        _run_cases(selected, torch.device("cuda"), options, out, progress)
        return
    out.cuda_rows, out.cuda_source = cuda_facts.load(args.cuda_facts)
    why = "--device cpu" if torch.cuda.is_available() else "no GPU in this machine"
    out.not_run.append(f"timings on a GPU: {why}; CUDA figures are counts, not times")
    print(report.cuda_section(out), end="\n\n")


def _write(out: Report, folder: Path) -> list[str]:
    """Writes the files of the report; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["results.json", "results.csv", "report.html", "chart.png"]
    if not chart.draw(out, folder / names[3]):
        out.not_run.append("the chart: matplotlib is not installed, or nothing was measured")
        del names[3]
    report.write_json(out, folder / names[0])
    report.write_csv(out, folder / names[1])
    page.write(out, folder / names[2])
    return names


def _render(source: Path, folder: Path) -> int:
    """Writes the page of a run that was saved; the exit status."""
    try:
        found = saved.load(source)
    except (OSError, ValueError) as error:
        print(f"--render: {error}", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    page.write(found, folder / "report.html")
    print(f"Written to {folder}/: report.html")
    return 0


def _start(args: argparse.Namespace, options: Options, selected: Sequence[Case]) -> Report:
    """Machine facts and the load before anything runs, printed and noted."""
    settings: dict[str, Any] = {
        "command": args.command,
        "cases": f"{len(selected)} of {len(cases.CASES)}",
        "rounds": options.rounds,
        "protocol": "contenders checked against float64, then timed in turns; medians;"
        " gradient freshly allocated; forward alone under no_grad",
        "backend of fusedloss": args.backend,
    }
    out = Report(machine.facts(), settings)
    busy, sentence = machine.wait_idle(args.wait_idle)
    settings["load before"] = sentence
    print(report.header(out), end="\n\n", flush=True)
    if busy is not None and busy > machine.BUSY_CORES:
        out.warnings.append(f"the machine was busy before the run: {sentence}")
        print(f"WARNING: {out.warnings[-1]}. Times below are unsafe.\n", flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks. Returns 1 for a wrong contender or, with --check-bars, a failed bar; 130 where
    it was interrupted. What was measured until it ended early is in its files.
    """
    args = parser().parse_args(argv)
    args.command = shlex.join(
        ["python", "-m", "fusedloss", "bench", *(sys.argv[1:] if argv is None else argv)]
    )
    if args.render:
        return _render(args.render, args.out)
    selected = cases.select(pattern=args.filter, dtype=args.dtype, quick=args.quick)
    if args.list:
        width = max((len(case.name) for case in selected), default=0) + 2
        print("\n".join(f"{case.name:{width}}{case.loss}, {case.shape}" for case in selected))
        return 0
    if not selected:
        print("no case matches; --list shows them", file=sys.stderr)
        return 1
    if args.backend == "triton" and args.device != "cuda":
        print("--backend triton: has kernels for GPUs, give --device cuda too", file=sys.stderr)
        return 1
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: no GPU in this machine", file=sys.stderr)
        return 1
    with backend(args.backend):
        return _run(selected, args)


def _run(selected: Sequence[Case], args: argparse.Namespace) -> int:
    """Measures the cases; the exit status."""
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds = args.rounds or (timing.MIN_ROUNDS if args.quick else Options.rounds)
    options = Options(rounds, compile=not args.no_compile)
    progress = Progress()
    out = _start(args, options, selected)
    try:
        if args.device != "cuda":
            _run_cpu(selected, args, options, out, progress)
        _cuda(selected, args, options, out, progress)
    except timing.WrongResultError as error:
        progress.clear()
        print(f"STOPPED: {error}", file=sys.stderr)
        _keep(args, out, f"stopped in {progress.title}: {error}; what follows was not run")
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print("INTERRUPTED", file=sys.stderr)
        _keep(args, out, f"interrupted: {progress.title} was not finished, nor what follows")
        return INTERRUPTED
    return _finish(args, out)


def _keep(args: argparse.Namespace, out: Report, warning: str) -> None:
    """Finishes a run that ended early, unless it measured nothing: an earlier run's files say more."""
    if out.cases:
        out.warnings.append(warning)
        _finish(args, out)


def _finish(args: argparse.Namespace, out: Report) -> int:
    """Bars, what was not run, files; the exit status."""
    out.not_run += baselines.unavailable()
    run = {case.case for case in out.cases}
    if skipped := [case.name for case in cases.CASES if case.name not in run]:
        out.not_run.append(f"{len(skipped)} cases were not run: {', '.join(skipped)}")
    if args.no_compile:
        out.not_run.append("torch.compile: left out by --no-compile")
    out.verdicts = bars.evaluate(out.cases) + cuda_facts.evaluate(out.cuda_rows)
    written = _write(out, args.out)
    print(report.closing(out, verdicts=args.check_bars))
    print(f"\nWritten to {args.out}/: {', '.join(written)}")
    return 1 if args.check_bars and bars.failed(out.verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(main())
