"""What a task of the demo is: a network, two spellings of one loss, and a way to judge it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from .scenes import Scenes

#: The names of the two trainings, in the order of printing.
FUSED, EAGER = "fused", "eager"

#: ``loss(logits, *arguments)`` -> 0-d tensor.
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Outputs:
    """A forward pass, up to the loss that is compared.

    Attributes:
        logits: what the compared loss reads.
        arguments: what it is called with besides (targets, normalizer, ...).
        other_loss: 0-d, losses that are not compared, the same in both trainings; None for none.
    """

    logits: Tensor
    arguments: tuple[Tensor, ...]
    other_loss: Tensor | None = None


@dataclass(frozen=True)
class LossMemory:
    """Memory of one call of the loss, in bytes; logits and targets are not counted.

    Attributes:
        saved: distinct storages that autograd keeps from forward to backward.
        peak: the most that is allocated at a time in forward + backward, gradient included.
    """

    saved: int
    peak: int


@dataclass
class Run:
    """One training: the model, and one entry per step in each list.

    Attributes:
        losses: the compared loss.
        loss_seconds: its forward and its gradient with respect to the logits.
        step_seconds: the whole step: network, losses, backward, optimizer.
        memory: of the compared loss, measured in the first step.
        logits_shape: of the compared loss's input in the first step.
        logits_bytes: of the same.
        quality: metric -> value on held-out scenes.
    """

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    memory: LossMemory = LossMemory(0, 0)
    logits_shape: tuple[int, ...] = ()
    logits_bytes: int = 0
    quality: dict[str, float] = field(default_factory=dict)


class Task(ABC):
    """One thing to learn from the scenes.

    Attributes:
        name: such as "detection".
        loss_name: such as "sigmoid focal loss".
        losses: the compared loss as ``FUSED`` and as ``EAGER``.
        beside: other losses by name, trained in the same way for the quality of their answers.
        network: made without arguments, with initial weights of torch's global generator.
    """

    name: str
    loss_name: str
    losses: Mapping[str, Loss]
    beside: Mapping[str, Loss] = MappingProxyType({})
    network: type[nn.Module]

    @abstractmethod
    def forward(self, model: nn.Module, scenes: Scenes) -> Outputs:
        """Run the network on a batch of scenes and prepare the loss's arguments."""

    def finish(self, model: nn.Module, train: Scenes) -> nn.Module:
        """The trained model as it is used: with what is chosen on training scenes afterwards."""
        return model

    @abstractmethod
    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Metric -> value in [0, 1] on scenes the model has not seen."""

    def draw(self, row: Sequence[Any], model: nn.Module, held_out: Scenes) -> None:
        """Fill a row of matplotlib axes with the model's answers: a scene in each."""
        for index, axes in enumerate(row):
            self.draw_scene(axes, model, held_out[index : index + 1])

    @abstractmethod
    def draw_scene(self, axes: Any, model: nn.Module, scene: Scenes) -> None:
        """Show one scene (a ``Scenes`` of length 1) and the model's answer on matplotlib axes."""

    @abstractmethod
    def legend(self) -> list[tuple[str, str, str]]:
        """Meaning of the lines that ``draw_scene`` uses: (text, colour, line style)."""


@dataclass(frozen=True)
class TaskResult:
    """A task after its trainings.

    Attributes:
        runs: by ``FUSED`` and ``EAGER``.
        beside: by the names of the task's other losses.
        value_error, gradient_error: relative difference between the fused and the eager loss,
            and between their gradients (L2), on the very same logits: those of the trained
            model for a batch of training scenes. Here no training drifts apart.
    """

    task: Task
    runs: dict[str, Run]
    value_error: float
    gradient_error: float
    beside: dict[str, Run] = field(default_factory=dict)
