"""The demo's command line: ``python -m fusedloss demo``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cli import INTERRUPTED
from .detection import Detection
from .mining import Mining
from .recognition import Recognition
from .report import save_picture, summary
from .require import MissingPackageError, require
from .scenes import EMPTY, Scenes, make_split
from .segmentation import Segmentation
from .task import Task, TaskResult
from .train import Schedule, train_both
from .verification import Verification


@dataclass(frozen=True)
class Length:
    """Steps of a training, and scenes in each of them."""

    steps: int
    batch: int


@dataclass(frozen=True)
class Size:
    """How much the demo does; a length for every task, by name."""

    train_scenes: int
    held_out_scenes: int
    lengths: Mapping[str, Length]


#: Recognition and verification learn from the digits' crops alone: their steps are far cheaper.
FULL = Size(
    train_scenes=6144,
    held_out_scenes=256,
    lengths={
        "detection": Length(500, 32),
        "segmentation": Length(300, 16),
        "mining": Length(200, 16),
        "recognition": Length(300, 64),
        "verification": Length(300, 64),
    },
)
#: Only shows that everything runs; too short to learn much.
QUICK = Size(
    train_scenes=128,
    held_out_scenes=16,
    lengths={
        "detection": Length(16, 8),
        "segmentation": Length(16, 8),
        "mining": Length(16, 8),
        "recognition": Length(16, 8),
        "verification": Length(16, 8),
    },
)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be in 0 .. 2^31 - 1, got {value}")
    return value


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"folder {str(path.parent)!r} does not exist")
    return path


def _device(text: str) -> torch.device:
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("no CUDA device is available")
    return torch.device(text)


# argparse names the type in "invalid ... value".
_positive.__name__ = _seed.__name__ = "integer"


def build_parser() -> argparse.ArgumentParser:
    """The options; their help is the reference."""
    names = [task.name for task in tasks()]
    steps = ", ".join(f"{name} {FULL.lengths[name].steps}" for name in names)
    parser = argparse.ArgumentParser(
        prog="python -m fusedloss demo",
        description="Train on scenes of handwritten digits, once with fusedloss and once with "
        "the loss as written in PyTorch, and compare the two.",
    )
    parser.add_argument(
        "--steps", type=_positive, help=f"training steps of each task (default {steps})"
    )
    parser.add_argument("--task", choices=names, help="train this one only (default: all)")
    parser.add_argument("--seed", type=_seed, default=0, help="of scenes and weights (default 0)")
    parser.add_argument(
        "--quick", action="store_true", help="few steps on few scenes: only shows that it runs"
    )
    parser.add_argument(
        "--out",
        type=_picture,
        default=Path("fusedloss_demo.png"),
        help="picture to write, .png (default fusedloss_demo.png)",
    )
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: as torch)")
    parser.add_argument(
        "--device", type=_device, default="cpu", metavar="cpu|cuda", help="(default cpu)"
    )
    return parser


def tasks() -> list[Task]:
    """What the demo trains, in this order."""
    return [Detection(), Segmentation(), Mining(), Recognition(), Verification()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status. Bad arguments exit with status 2 and a message."""
    options = build_parser().parse_args(argv)
    try:
        for module in ("matplotlib", "sklearn"):  # before minutes of training
            require(module)
    except MissingPackageError as error:
        print(f"fusedloss demo: {error}", file=sys.stderr)
        return 1
    threads = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        return _run(options)
    finally:
        torch.set_num_threads(threads)


def _run(options: argparse.Namespace) -> int:
    """Trains and draws; the exit status. Interrupted, it draws the tasks that are finished."""
    start = time.monotonic()
    size = QUICK if options.quick else FULL
    device = options.device
    print(f"fusedloss demo on {device}, {torch.get_num_threads()} CPU threads, seed {options.seed}")
    scenes = make_split(size.train_scenes, size.held_out_scenes, options.seed)
    print(f"training scenes: {_describe(scenes.train)}")
    print(f"held-out scenes: {_describe(scenes.held_out)}, none of them in a training scene")
    results: list[TaskResult] = []
    wanted = [task for task in tasks() if options.task in (None, task.name)]
    try:
        for task in wanted:
            length = size.lengths[task.name]
            schedule = Schedule(options.steps or length.steps, length.batch, options.seed)
            results.append(train_both(task, scenes, schedule, device))
            print(f"\n{summary(results[-1])}\n")
    except KeyboardInterrupt:
        print(
            f"\nINTERRUPTED: {len(results)} of {len(wanted)} trainings are finished",
            file=sys.stderr,
        )
        if not results:  # a picture of an earlier run shows more
            return INTERRUPTED
    save_picture(results, scenes.held_out.to(device), options.out)
    if options.quick:
        print("--quick is too short to learn from: the quality of its answers says nothing.")
    print(f"picture: {options.out}    time: {time.monotonic() - start:.0f} s")
    return 0 if len(results) == len(wanted) else INTERRUPTED


def _describe(scenes: Scenes) -> str:
    digits = scenes.digit_index[scenes.digit_index != EMPTY]
    distinct = len(set(digits.tolist()))
    return f"{len(scenes):,} with {len(digits):,} digits, of {distinct:,} drawings"
