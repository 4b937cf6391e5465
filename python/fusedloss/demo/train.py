"""Train a task twice, with the fused and with the eager loss, side by side.

Both trainings start from the same weights and see the same batches in the same order. They
advance in turns, one step each, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .measure import loss_memory, now, relative_error, timed_gradient
from .progress import Progress
from .scenes import Scenes, SceneSplit
from .task import EAGER, FUSED, Loss, Run, Task, TaskResult


@dataclass(frozen=True)
class Schedule:
    """Length of a training and where it starts."""

    steps: int
    batch: int
    seed: int
    learning_rate: float = 5e-3


class _Trainer:
    """One of the two trainings."""

    def __init__(self, task: Task, loss: Loss, schedule: Schedule, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(schedule.seed)
            model = task.network()
        self.run = Run(model.to(device).to(memory_format=torch.channels_last))
        self._task = task
        self._loss = loss
        self._device = device
        rate = schedule.learning_rate
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        self._rate = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, rate, total_steps=schedule.steps + 1, pct_start=0.15
        )

    def step(self, batch: Scenes) -> None:
        """One step of training, timed; the first one measures the loss's memory before."""
        run = self.run
        if not run.losses:
            self._measure_memory(batch)
        start = now(self._device)
        outputs = self._task.forward(run.model, batch)
        value, gradient, seconds = timed_gradient(self._loss, outputs.logits, outputs.arguments)
        self._optimizer.zero_grad()
        ends: list[tuple[Tensor, Tensor | None]] = [(outputs.logits, gradient)]
        if outputs.other_loss is not None:
            ends.append((outputs.other_loss, None))
        torch.autograd.backward([end for end, _ in ends], [upstream for _, upstream in ends])
        self._optimizer.step()
        self._rate.step()
        run.step_seconds.append(now(self._device) - start)
        run.loss_seconds.append(seconds)
        run.losses.append(value)

    def _measure_memory(self, batch: Scenes) -> None:
        self.run.model.eval()  # leaves the running statistics alone
        with torch.no_grad():
            outputs = self._task.forward(self.run.model, batch)
        self.run.model.train()
        logits = outputs.logits
        self.run.memory = loss_memory(self._loss, logits, outputs.arguments)
        self.run.logits_shape = tuple(logits.shape)
        self.run.logits_bytes = logits.numel() * logits.element_size()


def batches(count: int, schedule: Schedule) -> list[Tensor]:
    """Indices of the scenes of every step, ``[batch]`` each: shuffled anew in every epoch."""
    generator = torch.Generator().manual_seed(schedule.seed)
    per_epoch = max(count // schedule.batch, 1)
    order: list[Tensor] = []
    while len(order) < schedule.steps:
        shuffled = torch.randperm(count, generator=generator)
        order += [shuffled[k * schedule.batch :][: schedule.batch] for k in range(per_epoch)]
    return order[: schedule.steps]


def train_both(
    task: Task, scenes: SceneSplit, schedule: Schedule, device: torch.device
) -> TaskResult:
    """Train with each of the task's losses and evaluate all on the held-out scenes."""
    losses = {**task.losses, **task.beside}
    trainers = {name: _Trainer(task, loss, schedule, device) for name, loss in losses.items()}
    order = batches(len(scenes.train), schedule)
    with Progress(schedule.steps, f"training {task.name}") as progress:
        for step in progress:
            batch = scenes.train[order[step]].to(device)
            turns = list(trainers.values())
            for trainer in turns if step % 2 == 0 else reversed(turns):
                trainer.step(batch)
            progress.note = "loss " + ", ".join(
                f"{name} {trainer.run.losses[-1]:.4f}" for name, trainer in trainers.items()
            )
    held_out = scenes.held_out.to(device)
    train = scenes.train.to(device)
    for trainer in trainers.values():
        model = trainer.run.model = task.finish(_frozen(trainer.run.model), train)
        trainer.run.quality = task.evaluate(model, held_out)
    runs = {name: trainer.run for name, trainer in trainers.items()}
    last = scenes.train[order[-1]].to(device)
    value_error, gradient_error = same_logits(task, runs[FUSED].model, last)
    compared = {name: runs.pop(name) for name in task.losses}
    return TaskResult(task, compared, value_error, gradient_error, runs)


@torch.no_grad()
def same_logits(task: Task, model: nn.Module, batch: Scenes) -> tuple[float, float]:
    """Relative difference of both losses and of their gradients on the same logits."""
    outputs = task.forward(model, batch)
    with torch.enable_grad():
        value, gradient, _ = timed_gradient(task.losses[FUSED], outputs.logits, outputs.arguments)
        reference, reference_gradient, _ = timed_gradient(
            task.losses[EAGER], outputs.logits, outputs.arguments
        )
    value_error = abs(value - reference) / max(abs(reference), 1e-30)
    return value_error, relative_error(gradient, reference_gradient)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)
