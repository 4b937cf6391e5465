"""Detection of the digits of a scene, trained with sigmoid focal loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedloss import sigmoid_focal_loss

from .detector import IGNORE, Detector, assign, cell_centers, giou_loss, to_boxes
from .drawing import RIGHT, TRUTH, WRONG, draw_box, draw_image, draw_label
from .metrics import Detections, decode, evaluate, match
from .networks import in_use
from .scenes import BACKGROUND, EMPTY, NUM_CLASSES, Scenes
from .task import EAGER, FUSED, Loss, Outputs, Task

ALPHA, GAMMA = 0.25, 2.0
#: Detections scored less are not counted in precision and recall, nor drawn.
SCORE_THRESHOLD = 0.4
_EVALUATION_CHUNK = 32  # scenes


def fused_focal(logits: Tensor, target: Tensor, num_positive: Tensor) -> Tensor:
    """Focal loss by fusedloss, straight from class indices.

    Args:
        logits: ``[N, A, C]``.
        target: ``[N, A]`` int64, C for background, ``IGNORE`` for cells that do not count.
        num_positive: 0-d, divisor of the sum.
    """
    return sigmoid_focal_loss(
        logits,
        target,
        alpha=ALPHA,
        gamma=GAMMA,
        ignore_index=IGNORE,
        normalizer=num_positive,
        reduction="mean",
    )


def eager_focal(logits: Tensor, target: Tensor, num_positive: Tensor) -> Tensor:
    """The same as it is commonly written in PyTorch; arguments as ``fused_focal``."""
    counts = target != IGNORE
    one_hot = F.one_hot(target.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES].to(logits.dtype)
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    p_t = p * one_hot + (1 - p) * (1 - one_hot)
    alpha_t = ALPHA * one_hot + (1 - ALPHA) * (1 - one_hot)
    loss = alpha_t * (1 - p_t) ** GAMMA * ce
    return (loss * counts[..., None]).sum() / num_positive


class Detection(Task):
    """Boxes and classes of the digits; see ``task.Task``."""

    name = "detection"
    loss_name = "sigmoid focal loss"
    losses: Mapping[str, Loss] = {FUSED: fused_focal, EAGER: eager_focal}
    network = Detector

    def forward(self, model: nn.Module, scenes: Scenes) -> Outputs:
        """Logits ``[N, A, C]``; arguments target ``[N, A]`` and the number of positives."""
        centers = _centers(scenes)
        target, wanted = assign(scenes.boxes, scenes.labels, centers)
        logits, distances = model(scenes.images)
        positive = (target != BACKGROUND) & (target != IGNORE)
        num_positive = positive.sum().clamp(min=1).to(logits.dtype)
        box_loss = giou_loss(to_boxes(distances, centers)[positive], wanted[positive])
        return Outputs(logits, (target, num_positive), box_loss.sum() / num_positive)

    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Precision and recall at ``SCORE_THRESHOLD``, and mean average precision."""
        parts = [
            detect(model, scenes[start : start + _EVALUATION_CHUNK])
            for start in range(0, len(scenes), _EVALUATION_CHUNK)
        ]
        found = Detections(
            boxes=torch.cat([part.boxes for part in parts]),
            scores=torch.cat([part.scores for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
        )
        scores = evaluate(found, scenes.boxes, scenes.labels, threshold=SCORE_THRESHOLD)
        return {
            f"precision (score >= {SCORE_THRESHOLD})": scores.precision,
            f"recall (score >= {SCORE_THRESHOLD})": scores.recall,
            "average precision at IoU 0.5": scores.average_precision,
        }

    def draw_scene(self, axes: Any, model: nn.Module, scene: Scenes) -> None:
        """Digits dashed, detections solid with class and score, coloured by right or wrong."""
        found = detect(model, scene)
        right = match(found, scene.boxes, scene.labels)[0]
        draw_image(axes, scene)
        for box, label in zip(scene.boxes[0], scene.labels[0], strict=True):
            if label != EMPTY:
                draw_box(axes, box, TRUTH, "--")
        for box, score, label, good in zip(
            found.boxes[0], found.scores[0], found.labels[0], right, strict=True
        ):
            if score >= SCORE_THRESHOLD:
                colour = RIGHT if good else WRONG
                draw_box(axes, box, colour, "-")
                text = f"{int(label)}  {float(score):.2f}"
                draw_label(axes, box, text, colour)

    def legend(self) -> list[tuple[str, str, str]]:
        """The three kinds of boxes."""
        return [
            ("digit in the scene", TRUTH, "--"),
            ("detection, right", RIGHT, "-"),
            ("detection, wrong", WRONG, "-"),
        ]


def detect(model: nn.Module, scenes: Scenes) -> Detections:
    """Run the detector as in use: evaluation mode, decoding, suppression."""
    with in_use(model):
        logits, distances = model(scenes.images)
    return decode(logits, to_boxes(distances, _centers(scenes)))


def _centers(scenes: Scenes) -> Tensor:
    height, width = scenes.images.shape[-2:]
    return cell_centers(height, width, scenes.images.device)
