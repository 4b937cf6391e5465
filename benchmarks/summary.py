"""What a run says in one minute: how much faster, how much less memory, on what, and what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from . import units
from .bars import SUBJECT
from .baselines_linear import UNCHUNKED
from .machine import BUSY_CORES
from .palette import in_order
from .report import Report
from .results import CLONE, PRODUCTS, YARDSTICKS, CaseResult

EAGER, COMPILE = "eager", "compile"

OWN = (SUBJECT, UNCHUNKED)
"""Forms of this library: none of them is an alternative to it."""

NAMES = {COMPILE: "torch.compile", CLONE: "logits.clone()", PRODUCTS: "matrix products"}
"""What a contender is called where its key is short."""

CONTENDERS = {
    "eager": "the loss as most training scripts write it",
    "handwritten": "label smoothing with one-hot targets, as written before torch had it",
    "compile": "torch.compile of the eager form",
    "torchvision": "torchvision's function",
    "timm": "timm's module",
    "smp": "segmentation-models-pytorch's loss",
    "monai": "MONAI's loss",
    "topk": "hard pixels by torch.topk, as BiSeNet writes it",
    "insightface": "insightface's margin, written out",
    "pml": "pytorch-metric-learning's loss, given the cosines",
    "unchunked": "fusedloss's module with the logits whole",
    "liger with clone": "Liger's cross entropy and a clone of the logits it writes over",
    "fusedloss": "this library",
    "clone": "the yardstick: the cheapest thing that reads the logits and writes as much",
    "products": "the yardstick of a linear layer: its matrix products alone",
}


def name_of(contender: str) -> str:
    """The name a contender has on the page."""
    return NAMES.get(contender, contender)


@dataclass
class Workload:
    """The cases that differ in nothing but their dtype."""

    name: str
    loss: str
    shape: tuple[int, ...]
    device: str
    series: str
    cases: dict[str, CaseResult] = field(default_factory=dict)


def workloads(cases: Iterable[CaseResult]) -> list[Workload]:
    """Cases by what they measure, in the order of the run."""
    found: dict[tuple[str, str, tuple[int, ...]], Workload] = {}
    for case in cases:
        name = case.case.removesuffix(f"-{case.dtype}")
        key = (case.device, name, case.shape)
        made = Workload(name, case.loss, case.shape, case.device, case.series)
        found.setdefault(key, made).cases[case.dtype] = case
    return list(found.values())


def devices(cases: Sequence[CaseResult]) -> list[str]:
    """Devices of the run, in its order."""
    return list(dict.fromkeys(case.device for case in cases))


def dtypes(cases: Sequence[CaseResult]) -> list[str]:
    """Dtypes of the run, in its order."""
    return list(dict.fromkeys(case.dtype for case in cases))


def main_cases(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The large cases; where there are none, whatever was run."""
    return [case for case in cases if case.series == "large"] or list(cases)


def best_other(case: CaseResult) -> str | None:
    """The fastest package or other form, beside eager and torch.compile, of the same function."""
    return _fastest(case, (EAGER, COMPILE))


def best_alternative(case: CaseResult) -> str | None:
    """The fastest of everything that is not of this library and computes the same function."""
    return _fastest(case, ())


def _fastest(case: CaseResult, leave_out: Sequence[str]) -> str | None:
    others = [
        name
        for name, found in case.contenders.items()
        if name not in (*OWN, *YARDSTICKS, *leave_out)
        and not found.other_function
        and found.train is not None
        and math.isfinite(found.train.median)
    ]
    return min(others, key=lambda name: case.train_ms(name) or math.inf, default=None)


def over_best(case: CaseResult) -> float | None:
    """How many times faster fusedloss is than the best alternative."""
    best = best_alternative(case)
    return None if best is None else case.ratio(best, SUBJECT)


@dataclass(frozen=True)
class Tile:
    """One figure of the headline: a median, what it is, and from where to where it goes."""

    figure: str
    words: str
    detail: str


def _tile(
    cases: Sequence[CaseResult],
    of: Callable[[CaseResult], float | None],
    words: str,
    note: Callable[[Sequence[float]], str] = lambda _: "",
) -> Tile | None:
    values = [v for case in cases if (v := of(case)) is not None and math.isfinite(v)]
    if not values:
        return None
    low, high = units.times(min(values)), units.times(max(values))
    spread = f"median of {len(values)} workloads; {low} to {high}" if len(values) > 1 else ""
    detail = "; ".join(part for part in (spread or "one workload", note(values)) if part)
    return Tile(units.times(statistics.median(values)), words, detail)


def _slower(values: Sequence[float]) -> str:
    count = sum(value < 1 for value in values)
    return f"slower in {count}" if count else "never slower"


def tiles(cases: Sequence[CaseResult]) -> list[Tile]:
    """The headline of one device."""
    main = main_cases(cases)

    def eager_memory(_: Sequence[float]) -> str:
        eager = _tile(main, lambda case: case.peak_over_logits(EAGER), "")
        return f"eager {eager.figure}" if eager else ""

    made = [
        _tile(main, lambda case: case.ratio(EAGER, SUBJECT), "faster than eager PyTorch", _slower),
        _tile(main, lambda case: case.ratio(COMPILE, SUBJECT), "faster than torch.compile", _slower),
        _tile(main, over_best, "faster than the best alternative of each workload", _slower),
        _tile(
            main, lambda case: case.peak_over_logits(SUBJECT),
            "the size of the logits at the peak, gradient included", eager_memory,
        ),
        _tile(main, lambda case: case.ratio(SUBJECT, CLONE), "the time of logits.clone()"),
    ]  # fmt: skip
    return [tile for tile in made if tile is not None]


def unsafe(case: CaseResult) -> str:
    """Why the times of a case are not to be trusted, else empty."""
    busy = case.foreign_cores
    if case.device != "cpu" or busy is None or busy <= BUSY_CORES:
        return ""
    return f"unsafe: other processes used {busy:.2f} cores"


def marked(cases: Iterable[CaseResult], contender: str) -> str:
    """The name of a contender, with a star where it computes another function."""
    found = [case.contenders[contender] for case in cases if contender in case.contenders]
    return name_of(contender) + " *" * any(result.other_function for result in found)


def other_functions(cases: Sequence[CaseResult]) -> list[str]:
    """What the stars mean."""
    found = {
        f"* {name_of(name)} computes {result.other_function}": None
        for case in cases
        for name, result in case.contenders.items()
        if result.other_function
    }
    return list(found)


def contenders(cases: Sequence[CaseResult]) -> list[tuple[str, str]]:
    """Who took part, and what each is."""
    return [(name_of(name), CONTENDERS.get(name, "")) for name in in_order(cases)]


def not_measured(report: Report) -> list[str]:
    """What the run left out, in its own words, and what its results lack."""
    said = list(dict.fromkeys(report.not_run))
    ran, present = devices(report.cases), dtypes(report.cases)
    gpu_words = "timings on a GPU"
    gaps = []
    if "cuda" not in ran and not any(sentence.startswith(gpu_words) for sentence in said):
        gaps.append(f"{gpu_words}: not in this run")
    if "cpu" not in ran:
        gaps.append("timings on a CPU: not in this run")
    gaps += [f"{name}: not in this run" for name in ("fp32", "bf16") if name not in present]
    series = {case.series for case in report.cases}
    for name, words in (
        ("large", "the large workloads"),
        ("small", "small calls, where call overhead decides"),
        ("scaling", "time against size (the scaling rows)"),
    ):
        if name not in series:
            gaps.append(f"{words}: not in this run")
    gaps += [
        f"{package}: not installed, so it is no contender"
        for package, version in report.machine.items()
        if version == "not installed"
    ]
    return said + gaps
