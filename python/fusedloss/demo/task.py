"""What a task of the demo is: a network, two spellings of one loss, and a way to judge it.

Detection and recognition are there; segmentation of the same scenes fits the same frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Task(Protocol):
    """One thing to learn from the scenes."""

    @property
    def name(self) -> str:
        """Such as "detection"."""

    @property
    def loss_name(self) -> str:
        """Such as "sigmoid focal loss"."""

    @property
    def losses(self) -> Mapping[str, Loss]:
        """The compared loss as ``FUSED`` and as ``EAGER``."""

    def build_model(self) -> nn.Module:
        """A fresh network; its initial weights come from torch's global generator."""

    def forward(self, model: nn.Module, scenes: Scenes) -> Outputs:
        """Run the network on a batch of scenes and prepare the loss's arguments."""

    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Metric -> value in [0, 1] on scenes the model has not seen."""

    def draw(self, axes: Any, model: nn.Module, scene: Scenes) -> None:
        """Show one scene (a ``Scenes`` of length 1) and the model's answer on matplotlib axes."""

    def legend(self) -> list[tuple[str, str, str]]:
        """Meaning of the lines that ``draw`` uses: (text, colour, line style)."""


@dataclass(frozen=True)
class TaskResult:
    """A task after both of its trainings.

    Attributes:
        runs: by ``FUSED`` and ``EAGER``.
        value_error, gradient_error: relative difference between the fused and the eager loss,
            and between their gradients (L2), on the very same logits: those of the trained
            model for a batch of training scenes. Here no training drifts apart.
    """

    task: Task
    runs: dict[str, Run]
    value_error: float
    gradient_error: float
