"""What the demo tells: a summary in text and a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median
from typing import Any

from .._files import replacing
from .require import require
from .scenes import Scenes
from .task import EAGER, FUSED, Run, TaskResult

#: Steps at the start over which rounding has not yet been amplified by the training.
EARLY_STEPS = 20
_COLOURS = {FUSED: "#1769aa", EAGER: "#e07b00"}
_OTHER = "#555555"
_EXAMPLES = 6
_ROW = 2.6
_TABLE_ROWS = 12
_UNITS = ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes"))


def relative_differences(result: TaskResult) -> list[float]:
    """|fused - eager| / |eager| of the compared loss, for every step."""
    pairs = zip(result.runs[FUSED].losses, result.runs[EAGER].losses, strict=True)
    return [abs(fused - eager) / max(abs(eager), 1e-30) for fused, eager in pairs]


def summary(result: TaskResult) -> str:
    """Loss curves side by side, quality, time and memory, as text."""
    fused = result.runs[FUSED]
    shape = ", ".join(map(str, fused.logits_shape))
    scale, unit = _unit(result)
    title = (
        f"{result.task.name}: {result.task.loss_name} on logits [{shape}] "
        f"({fused.logits_bytes / scale:.1f} {unit}), {len(fused.losses)} steps"
    )
    parts = [title + "\n" + "=" * len(title), _curves(result), _table(result)]
    parts += [_beside(result, name) for name in result.beside]
    parts.append(_notes())
    return "\n\n".join(parts)


def _unit(result: TaskResult) -> tuple[float, str]:
    """Bytes and name of the largest unit that is not above the size of the logits."""
    size = result.runs[FUSED].logits_bytes
    return next((unit for unit in _UNITS if unit[0] <= size), _UNITS[-1])


def _number(value: float) -> str:
    return f"{value:.2f}" if value >= 1.0 else f"{value:.3f}"


def _curves(result: TaskResult) -> str:
    fused, eager = result.runs[FUSED].losses, result.runs[EAGER].losses
    differences = relative_differences(result)
    steps = len(fused)
    rows = min(steps, _TABLE_ROWS)
    shown = sorted({round(row * (steps - 1) / max(rows - 1, 1)) for row in range(rows)})
    lines = [f"{'step':>8}{'loss, fused':>14}{'loss, eager':>14}{'relative difference':>22}"]
    for step in shown:
        lines.append(
            f"{step + 1:>8}{fused[step]:>14.6f}{eager[step]:>14.6f}{differences[step]:>22.1e}"
        )
    early = differences[:EARLY_STEPS]
    last_fused, last_eager = fmean(fused[-EARLY_STEPS:]), fmean(eager[-EARLY_STEPS:])
    last = abs(last_fused - last_eager) / max(abs(last_eager), 1e-30)
    lines += [
        "",
        f"largest relative difference in the first {len(early)} steps: {max(early):.1e}",
        f"mean of the last {len(fused[-EARLY_STEPS:])} steps: fused {last_fused:.5f}, "
        f"eager {last_eager:.5f}, relative difference {last:.1e}",
        f"both on the same logits, after training: relative difference of the value "
        f"{result.value_error:.1e}, of the gradient {result.gradient_error:.1e}",
        "(training amplifies rounding: the curves drift apart while the losses stay the same)",
    ]
    return "\n".join(lines)


def _table(result: TaskResult) -> str:
    fused, eager = result.runs[FUSED], result.runs[EAGER]
    scale, unit = _unit(result)
    memory, other_memory = fused.memory, eager.memory
    lines = [f"{'':<46}{'fused':>10}{'eager':>10}{'eager / fused':>16}"]
    lines += [
        f"{'held out: ' + name:<46}{value:>10.3f}{eager.quality[name]:>10.3f}"
        for name, value in fused.quality.items()
    ]
    for name, value, other in (
        ("loss time, median of the steps [ms] (1)", loss_ms(fused), loss_ms(eager)),
        ("loss time, all steps [s] (1)", sum(fused.loss_seconds), sum(eager.loss_seconds)),
        ("whole training step, median [ms]", step_ms(fused), step_ms(eager)),
        (f"loss: kept for backward [{unit}] (2)", memory.saved / scale, other_memory.saved / scale),
        (f"loss: peak memory [{unit}] (3)", memory.peak / scale, other_memory.peak / scale),
    ):
        ratio = f"{other / value:>15.2f}x" if value > 0 else ""
        lines.append(f"{name:<46}{_number(value):>10}{_number(other):>10}{ratio}")
    share, other_share = (sum(run.loss_seconds) / sum(run.step_seconds) for run in (fused, eager))
    lines.append(
        f"{'share of the loss in the training time':<46}{share:>10.1%}{other_share:>10.1%}"
    )
    return "\n".join(lines)


def _beside(result: TaskResult, name: str) -> str:
    """The answers of another loss's training beside the fused one's."""
    lines = [f"{f'{result.task.loss_name}, and {name} beside it':<46}{'fused':>10}{name:>10}"]
    other = result.beside[name]
    lines += [
        f"{'held out: ' + metric:<46}{value:>10.3f}{other.quality[metric]:>10.3f}"
        for metric, value in result.runs[FUSED].quality.items()
    ]
    ours, theirs = loss_ms(result.runs[FUSED]), loss_ms(other)
    lines.append(f"{'loss time, median [ms] (1)':<46}{_number(ours):>10}{_number(theirs):>10}")
    return "\n".join(lines)


def _notes() -> str:
    return (
        "(1) Forward of the loss and its gradient with respect to the logits, timed in the\n"
        "    training; the network's backward continues from that gradient in both.\n"
        "(2) Distinct storages that autograd saves for the backward of the loss, by\n"
        "    saved_tensors_hooks; the logits and targets themselves are not counted.\n"
        "(3) Most memory allocated at a time by forward and backward of the loss, by the\n"
        "    profiler (on CUDA by the allocator); includes the gradient of the logits."
    )


def loss_ms(run: Run) -> float:
    """Median time of the compared loss in a step, ms."""
    return median(run.loss_seconds) * 1e3


def step_ms(run: Run) -> float:
    """Median time of a whole training step, ms."""
    return median(run.step_seconds) * 1e3


def save_picture(results: list[TaskResult], held_out: Scenes, path: Path) -> None:
    """Draw every task: held-out scenes with the answers of both models, curves, bars.

    ``held_out`` is on the models' device; the first scenes of it are shown.
    """
    extra = [_ROW * len(result.beside) for result in results]  # inches, of further rows of scenes
    heights = [9.0 + more for more in extra]
    figure = require("matplotlib.figure").Figure(figsize=(15.0, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, result, more in zip(blocks, results, extra, strict=True):
        scenes, charts = block.subfigures(2, 1, height_ratios=[5.7 + more, 3.3])
        _draw_scenes(scenes, result, held_out)
        left, difference, time, memory = charts.subplots(
            1, 4, gridspec_kw={"width_ratios": [1.7, 1.3, 0.8, 1.2]}
        )
        _draw_curves(left, difference, result)
        _draw_time(time, result)
        _draw_memory(memory, result)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)


def _draw_scenes(figure: Any, result: TaskResult, held_out: Scenes) -> None:
    runs = {**result.runs, **result.beside}
    figure.suptitle(
        f"{result.task.name.capitalize()} of handwritten digits never seen in training, "
        f"trained with {result.task.loss_name}: {' and '.join(runs)}",
        fontsize=13,
    )
    columns = min(_EXAMPLES, len(held_out))
    rows = figure.subplots(len(runs), columns, squeeze=False)
    for row, (name, run) in zip(rows, runs.items(), strict=True):
        result.task.draw(row, run.model, held_out)
        for axes in row:
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=13, color=_COLOURS.get(name, _OTHER), weight="bold")
        text = "     ".join(f"{metric} {value:.3f}" for metric, value in run.quality.items())
        row[columns // 2].set_title(text, fontsize=10, x=0.0 if columns % 2 == 0 else 0.5)
    line = require("matplotlib.lines").Line2D
    handles = [
        line([], [], color=colour, linestyle=style, lw=2, label=text)
        for text, colour, style in result.task.legend()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        facecolor="#555",
        labelcolor="white",
    )


def _draw_curves(left: Any, difference: Any, result: TaskResult) -> None:
    steps = range(1, len(result.runs[FUSED].losses) + 1)
    for name, width in ((EAGER, 3.5), (FUSED, 1.1)):
        losses = result.runs[name].losses
        left.plot(steps, losses, lw=width, color=_COLOURS[name], label=name)
    left.set(yscale="log", xlabel="step", title=result.task.loss_name)
    ticker = require("matplotlib.ticker")
    left.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter("{x:g}")  # 0.5 rather than 5 x 10^-1
    left.yaxis.set_minor_formatter(ticker.NullFormatter())
    left.legend()
    left.grid(alpha=0.3)
    values = [max(value, 1e-9) for value in relative_differences(result)]
    difference.plot(steps, values, lw=1.0, color="#555555")
    difference.set(yscale="log", xlabel="step", title="relative difference of the two")
    difference.grid(alpha=0.3)


def _draw_time(axes: Any, result: TaskResult) -> None:
    names = list(result.runs)
    bars = axes.bar(
        names,
        [loss_ms(run) for run in result.runs.values()],
        color=[_COLOURS[name] for name in names],
    )
    axes.bar_label(bars, fmt=_number, padding=2)
    axes.set(title="loss, forward + backward", ylabel="ms per step")
    axes.margins(y=0.12)


def _draw_memory(axes: Any, result: TaskResult) -> None:
    width = 0.38
    scale, unit = _unit(result)
    for place, (name, run) in enumerate(result.runs.items()):
        offset = (place - 0.5) * width
        values = [run.memory.saved / scale, run.memory.peak / scale]
        bars = axes.bar([offset, 1 + offset], values, width, color=_COLOURS[name], label=name)
        axes.bar_label(bars, fmt="%.3g", padding=2)
    logits = result.runs[FUSED].logits_bytes / scale
    axes.axhline(logits, color="#555555", lw=1.0, linestyle=":", label="size of the logits")
    axes.set(xticks=[0, 1], title="memory of the loss", ylabel=unit)
    axes.set_xticklabels(["kept for backward", "peak"])
    axes.legend(loc="upper left", fontsize="small")
    axes.margins(y=0.5)  # room for the legend above the bars
