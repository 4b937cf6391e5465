"""Measures one case on one device: check, time, forward alone, memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import memory, timing
from .bars import SUBJECT
from .baselines import LossFn
from .machine import LoadMeter
from .results import CaseResult, ContenderResult, Errors
from .workload import Case, Inputs

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to measure. `rounds`: samples a contender, at least seven."""

    rounds: int = 11
    compile: bool = True
    forward: bool = True
    memory: bool = True


@dataclass
class Prepared:
    """Inputs and the contenders that were found to be right."""

    case: Case
    inputs: Inputs
    contenders: dict[str, LossFn] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Contenders that do not run here, with the reason."""

    @property
    def not_run(self) -> list[str]:
        """Sentences on the contenders that are left out."""
        names = {"compile": "torch.compile"}
        return [f"{self.case.name}: {names.get(n, n)} {why}" for n, why in self.left_out.items()]


def _compiled(case: Case, eager: LossFn) -> LossFn:
    """`torch.compile` of the eager form, from an empty cache: shapes of other cases do not count.

    Compiling in this process only: a pool of workers would still be starting while we time.
    """
    inductor: Any = importlib.import_module("torch._inductor.config")
    inductor.compile_threads = 1
    torch.compiler.reset()
    return torch.compile(eager, fullgraph=case.fullgraph, dynamic=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def prepare(case: Case, device: torch.device, options: Options, progress: Progress) -> Prepared:
    """Makes the inputs and checks each contender against the float64 reference of its function.

    Raises WrongResultError for a contender that is wrong. On a GPU one other than fusedloss's is left
    out with the reason instead, since there torch's own losses are wrong in some sizes; and so is a
    form that does not fit into the GPU's memory or cannot be compiled here, and a package's for GPUs
    that fails. Any other error is raised.
    """
    progress("inputs and reference")
    inputs = case.setup(case, device)
    ready = Prepared(case, inputs)
    reference = case.reference(inputs.logits, *inputs.args)
    contenders = case.contenders()
    packages = case.gpu_contenders() if device.type == "cuda" else {}
    for name, loss in {**contenders, **packages}.items():
        progress(f"checking {name}")
        other = case.other_functions.get(name)
        truth = other.reference(inputs.logits, *inputs.args) if other else reference
        label = f"{case.name}: {name}"
        try:
            allowed = other.allowed if other else 1.0
            ready.errors[name] = timing.check(label, loss, inputs, truth, allowed)
        except torch.OutOfMemoryError:
            ready.left_out[name] = "needs more memory than there is"
        except timing.WrongResultError as error:
            if name == SUBJECT or device.type == "cpu":
                raise
            ready.left_out[name] = str(error).removeprefix(f"{label} ")
        except Exception as error:
            if name not in packages:
                raise
            ready.left_out[name] = f"failed: {_first_line(error)}"
        else:
            ready.contenders[name] = loss
    if options.compile and "eager" in contenders:
        progress("compiling and checking compile")
        loss = _compiled(case, contenders["eager"])
        try:
            errors = timing.check(f"{case.name}: compile", loss, inputs, reference)
        except timing.WrongResultError as error:
            if device.type == "cpu":
                raise
            ready.left_out["compile"] = str(error).removeprefix(f"{case.name}: compile ")
        except Exception as error:  # the compiler has many ways to fail, and is not ours
            ready.left_out["compile"] = f"failed: {_first_line(error)}"
        else:
            ready.errors["compile"] = errors
            ready.contenders["compile"] = loss
    return ready


def _training_steps(ready: Prepared) -> dict[str, timing.Step]:
    steps = {
        name: timing.training_step(loss, ready.inputs) for name, loss in ready.contenders.items()
    }
    for name, yardstick in ready.case.yardsticks.items():
        steps[name] = timing.yardstick_step(yardstick, ready.inputs)
    return steps


def _measure_memory(ready: Prepared, result: CaseResult, device: torch.device) -> None:
    inputs = ready.inputs
    for name, step in _training_steps(ready).items():
        step.reset()
        found = result.contenders[name]
        found.peak_bytes = memory.peak_bytes(step.run, device)
        step.reset()
        loss = ready.contenders.get(name)
        if loss is None:  # a yardstick
            continue
        # Bound as defaults: the call happens inside this turn of the loop, and linters cannot know.
        found.saved_bytes = memory.saved_bytes(
            lambda loss=loss: loss(inputs.logits, *inputs.args),  # type: ignore[misc]
            (inputs.logits, *inputs.args),
        )


def measure(
    ready: Prepared, device: torch.device, options: Options, progress: Progress
) -> CaseResult:
    """Times forward + backward and forward alone, then reads the memory, of every contender."""
    case = ready.case
    result = CaseResult(
        case.name, case.loss, case.series, case.shape, case.dtype_name, device.type, case.elements,
        case.logits_bytes, rows=case.rows,
        gradient_bytes=sum(leaf.nbytes for leaf in ready.inputs.leaves), left_out=ready.left_out,
    )  # fmt: skip
    clock = timing.clock_for(device)
    meter = LoadMeter()
    train = timing.take_turns(_training_steps(ready), clock, options.rounds, progress=progress)
    for name, taken in train.items():
        other = case.other_functions.get(name)
        computes = other.computes if other else ""
        result.contenders[name] = ContenderResult(
            name, ready.errors.get(name), taken, other_function=computes
        )
    if options.forward:
        steps = {n: timing.forward_step(f, ready.inputs) for n, f in ready.contenders.items()}
        forward = timing.take_turns(
            steps, clock, options.rounds, progress=lambda words: progress(f"forward alone, {words}")
        )
        for name, taken in forward.items():
            result.contenders[name].forward = taken
    result.foreign_cores = meter.foreign_cores()
    if options.memory:
        progress("memory")
        _measure_memory(ready, result, device)
    return result
