"""Recognition of digits cut out of their scenes, trained with label-smoothing cross entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fusedloss import cross_entropy

from .calibration import expected_calibration_error
from .drawing import RIGHT, WRONG, draw_box, draw_image, draw_label
from .networks import DigitNetwork, in_use
from .scenes import EMPTY, NUM_CLASSES, Scenes, digit_crops
from .task import EAGER, FUSED, Loss, Outputs, Task

SMOOTHING = 0.1


def fused_smoothing(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with label smoothing by fusedloss: logits ``[N, C]``, labels ``[N]`` int64."""
    return cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def eager_smoothing(logits: Tensor, labels: Tensor) -> Tensor:
    """The same in PyTorch."""
    return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


class Recognizer(DigitNetwork):
    """Crops ``[N, 1, 16, 16]`` to class logits ``[N, C]``."""

    def __init__(self) -> None:
        super().__init__(NUM_CLASSES)


class Recognition(Task):
    """Classes of the digits, whose boxes are given; see ``task.Task``."""

    name = "recognition"
    loss_name = "label-smoothing cross entropy"
    losses: Mapping[str, Loss] = {FUSED: fused_smoothing, EAGER: eager_smoothing}
    network = Recognizer

    def forward(self, model: nn.Module, scenes: Scenes) -> Outputs:
        """Logits ``[D, C]`` of the D digits of the scenes; argument labels ``[D]``."""
        crops, labels = digit_crops(scenes)
        return Outputs(model(crops), (labels,))

    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Accuracy, and how sure the model is: smoothing keeps the confidence below 1 - e + e/C."""
        confidence, answers, labels = recognize(model, scenes)
        right = answers == labels
        return {
            "accuracy": float(right.double().mean()),
            "mean confidence": float(confidence.double().mean()),
            "calibration error": expected_calibration_error(confidence, right),
        }

    def draw_scene(self, axes: Any, model: nn.Module, scene: Scenes) -> None:
        """The digits' boxes with the answer and its confidence, coloured by right or wrong."""
        draw_image(axes, scene)
        boxes = scene.boxes[scene.labels != EMPTY]
        for box, confidence, answer, label in zip(boxes, *recognize(model, scene), strict=True):
            colour = RIGHT if answer == label else WRONG
            draw_box(axes, box, colour, "-")
            draw_label(axes, box, f"{int(answer)}  {float(confidence):.2f}", colour)

    def legend(self) -> list[tuple[str, str, str]]:
        """The two kinds of answers."""
        return [("recognised, right", RIGHT, "-"), ("recognised, wrong", WRONG, "-")]


def recognize(model: nn.Module, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, answer and label of every digit, ``[D]`` each, in evaluation mode."""
    crops, labels = digit_crops(scenes)
    with in_use(model):
        confidence, answers = model(crops).softmax(-1).max(-1)
    return confidence, answers, labels
