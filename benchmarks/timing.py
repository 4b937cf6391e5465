"""The timing protocol: check each contender, warm up, take turns, report medians.

All contenders of a case run in one process on the same inputs, A B C A B C, so that a slow spell
of the machine hits all of them. Times are in milliseconds per call.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .baselines import LossFn
from .results import Errors, Timing
from .workload import Inputs, Yardstick

MIN_ROUNDS = 7
WARM_UP_ROUNDS = 3
SAMPLE_MS = 10.0
"""Short calls are repeated until one sample takes about this long."""
MAX_CALLS = 1000
_AT_ONCE = 1 << 24
"""Elements of a gradient that are compared at a time, which keeps float64 copies small."""
_TINY = torch.finfo(torch.float64).tiny


class WrongResultError(RuntimeError):
    """A contender's value or gradient is not the reference's: its time would mean nothing."""


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted errors, measured as in `results.Errors`."""

    value: float
    gradient: float
    worst: float


# Wide enough for an eager form that computes in the dtype of its logits, and far below what a wrong
# alpha, gamma, sign, divisor or target costs. The value is loose in fp32 too, since compiled code
# adds up millions of terms one after the other in float32; the gradient as far as that of eager ArcFace,
# whose scale of 64 multiplies the rounding of a cosine: on some CPUs it is off by 1.1e-5.
TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-9, 1e-9),
    torch.float32: Tolerance(1e-4, 2e-5, 1e-4),
    torch.bfloat16: Tolerance(2e-2, 2e-2, 4e-2),
    torch.float16: Tolerance(5e-3, 5e-3, 2e-2),
}


@dataclass(frozen=True)
class Step:
    """What is timed: `run`; `reset` comes before it, outside the clock."""

    run: Callable[[], object]
    reset: Callable[[], None]


def training_step(loss: LossFn, inputs: Inputs) -> Step:
    """Forward and backward; the gradients are freshly allocated in each call."""
    logits, args, leaves = inputs.logits, inputs.args, inputs.leaves

    def reset() -> None:
        for leaf in leaves:
            leaf.grad = None

    def run() -> None:
        reset()
        loss(logits, *args).backward()  # type: ignore[no-untyped-call]

    return Step(run, reset)


def forward_step(loss: LossFn, inputs: Inputs) -> Step:
    """The value alone, under no_grad, as in validation."""

    def run() -> Tensor:
        with torch.no_grad():
            return loss(inputs.logits, *inputs.args)

    return Step(run, lambda: None)


def yardstick_step(yardstick: Yardstick, inputs: Inputs) -> Step:
    """A yardstick on these inputs."""
    return Step(yardstick(inputs), lambda: None)


class Clock(Protocol):
    """Times `calls` calls of a step; returns milliseconds per call."""

    def measure(self, step: Step, calls: int) -> float:
        """Milliseconds per call."""


class CpuClock:
    """Wall time of this process."""

    def measure(self, step: Step, calls: int) -> float:
        """Milliseconds per call. The last result is freed after the clock has stopped."""
        result: object = None
        step.reset()
        start = time.perf_counter()
        for _ in range(calls):
            result = step.run()
        elapsed = time.perf_counter() - start
        del result
        return elapsed * 1e3 / calls


class CudaClock:
    """CUDA events around each call, after a write over more than L2 has flushed it.

    The time runs from when the GPU reaches the first event, with the launches of the call queued
    behind the flush; a call that is short beside its launches shows its call overhead.
    """

    def __init__(self, device: torch.device) -> None:
        cache_bytes: int = torch.cuda.get_device_properties(device).L2_cache_size
        words = max(4 * cache_bytes, 64 << 20) // 4
        self._flush = torch.empty(words, dtype=torch.int32, device=device)
        # torch.cuda.Event has no annotations.
        event: Callable[..., Any] = torch.cuda.Event
        self._begin, self._end = event(enable_timing=True), event(enable_timing=True)

    def measure(self, step: Step, calls: int) -> float:
        """Milliseconds per call on the GPU's own clock, mean of `calls` flushed calls."""
        total = 0.0
        for _ in range(calls):
            step.reset()
            self._flush.zero_()
            self._begin.record()
            result = step.run()
            self._end.record()
            self._end.synchronize()
            total += float(self._begin.elapsed_time(self._end))
            del result
        return total / calls


def clock_for(device: torch.device) -> Clock:
    """Events on a GPU, wall time otherwise."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def take_turns(
    steps: Mapping[str, Step],
    clock: Clock,
    rounds: int,
    *,
    warm_up: int = WARM_UP_ROUNDS,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Timing]:
    """Timings per contender over `rounds` rounds, each round one sample of every contender.

    Raises ValueError for fewer than seven rounds: a median of less says little.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"rounds must be at least {MIN_ROUNDS}, got {rounds}")
    samples: dict[str, list[float]] = {name: [] for name in steps}
    single: dict[str, float] = {}
    for turn in range(warm_up):
        progress(f"warm-up {turn + 1}/{warm_up}")
        for name, step in steps.items():
            single[name] = clock.measure(step, 1)
    calls = {name: _calls_per_sample(single.get(name, math.inf)) for name in steps}
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            progress(f"round {turn + 1}/{rounds}")
            for name, step in steps.items():
                samples[name].append(clock.measure(step, calls[name]))
    finally:
        if was_enabled:
            gc.enable()
    for step in steps.values():
        step.reset()
    return {name: Timing(tuple(taken), calls[name]) for name, taken in samples.items()}


def _calls_per_sample(milliseconds: float) -> int:
    return max(1, min(MAX_CALLS, math.ceil(SAMPLE_MS / max(milliseconds, 1e-6))))


def errors_of(value: Tensor, gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> Errors:
    """Errors of a value (0-d) and its gradients against those of the reference, in float64."""
    true_value, *true_gradients = reference
    pairs = [_gradient_errors(*pair) for pair in zip(gradients, true_gradients, strict=True)]
    gradient, worst = torch.stack(pairs).amax(0).tolist()  # a NaN stays one
    difference = (value.double() - true_value).abs() / true_value.abs().clamp_min(_TINY)
    return Errors(float(difference), gradient, worst)


def _gradient_errors(gradient: Tensor, truth: Tensor) -> Tensor:
    """Relative L2 error, and the largest error over the largest gradient: [2], a part at a time."""
    pieces = zip(
        gradient.reshape(-1).split(_AT_ONCE), truth.reshape(-1).split(_AT_ONCE), strict=True
    )
    figures = []
    for part, true_part in pieces:
        difference = part.double() - true_part
        squares = [difference.square().sum(), true_part.square().sum()]
        figures.append(torch.stack([*squares, difference.abs().max(), true_part.abs().max()]))
    found = torch.stack(figures)
    off, size = found[:, :2].sum(0).sqrt()
    worst, largest = found[:, 2:].amax(0)
    return torch.stack([off / size.clamp_min(_TINY), worst / largest.clamp_min(_TINY)])


def check(
    name: str,
    loss: LossFn,
    inputs: Inputs,
    reference: Sequence[Tensor],
    times_allowed: float = 1.0,
) -> Errors:
    """Runs a contender once and returns its errors; the value under no_grad is checked too.

    Raises WrongResultError, naming the contender, when an error is above the tolerance or NaN.
    """
    logits, leaves = inputs.logits, inputs.leaves
    for leaf in leaves:
        leaf.grad = None
    value = loss(logits, *inputs.args)
    value.backward()  # type: ignore[no-untyped-call]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    if len(gradients) < len(leaves):
        raise WrongResultError(f"{name} gives an input that requires a gradient none")
    errors = errors_of(value.detach(), gradients, reference)
    del gradients
    for leaf in leaves:
        leaf.grad = None
    with torch.no_grad():
        alone = loss(logits, *inputs.args)
    forward_error = float((alone.double() - reference[0]).abs() / reference[0].abs())
    allowed = TOLERANCES[logits.dtype]
    for what, error, limit in (
        ("value", errors.value, allowed.value),
        ("value without gradient", forward_error, allowed.value),
        ("gradient (relative L2)", errors.gradient, allowed.gradient),
        ("gradient (largest)", errors.worst, allowed.worst),
    ):
        if not error <= times_allowed * limit:
            raise WrongResultError(
                f"{name} is wrong and is not timed: {what} is off by {error:.3g} from the float64"
                f" reference, accepted in {logits.dtype} is {times_allowed * limit:g}"
            )
    return errors
