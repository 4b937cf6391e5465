"""Segmentation of the digits of a scene, trained with dice and cross entropy joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedloss import dice_cross_entropy_loss

from .drawing import RIGHT, TRUTH, WRONG, draw_image, draw_label, draw_mask
from .metrics import class_iou
from .networks import block, in_use
from .scenes import BACKGROUND, EMPTY, NUM_CLASSES, Scenes
from .task import EAGER, FUSED, Loss, Outputs, Task

SMOOTH = 1e-5
_EVALUATION_CHUNK = 32  # scenes


def fused_dice_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice and cross entropy by fusedloss, straight from class indices.

    Args:
        logits: ``[N, C + 1, H, W]``, background last.
        mask: ``[N, H, W]`` uint8, class of every pixel.
    """
    return dice_cross_entropy_loss(logits, mask, smooth=SMOOTH)


def eager_dice_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """The same as it is commonly written in PyTorch; arguments as the fused one's."""
    labels = mask.long()
    p = logits.softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(p.dtype)
    pixels = (2, 3)
    overlap = (p * truth).sum(pixels)
    dice = (2 * overlap + SMOOTH) / (p.sum(pixels) + truth.sum(pixels) + SMOOTH)
    return (1 - dice).mean() + F.cross_entropy(logits, labels)


class Segmenter(nn.Module):
    """Images ``[N, 1, H, W]`` to logits ``[N, C + 1, H, W]``: a small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = block(1, 16)
        self.middle = nn.Sequential(nn.MaxPool2d(2), block(16, 32))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), block(32, 64), nn.MaxPool2d(2), block(64, 64))
        self.join = block(32 + 64, 48)
        self.head = nn.Conv2d(16 + 48, NUM_CLASSES + 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        fine = self.fine(images)
        middle = self.middle(fine)
        joined = self.join(torch.cat((middle, _widened(self.coarse(middle), middle)), 1))
        logits: Tensor = self.head(torch.cat((fine, _widened(joined, fine)), 1))
        return logits


def _widened(x: Tensor, to: Tensor) -> Tensor:
    return F.interpolate(x, size=to.shape[-2:], mode="bilinear")


class Segmentation(Task):
    """The class of every pixel; see ``task.Task``."""

    name = "segmentation"
    loss_name = "dice + cross entropy"
    losses: Mapping[str, Loss] = {FUSED: fused_dice_cross_entropy, EAGER: eager_dice_cross_entropy}
    network = Segmenter

    def forward(self, model: nn.Module, scenes: Scenes) -> Outputs:
        """Logits ``[N, C + 1, H, W]``; argument mask ``[N, H, W]`` uint8."""
        # The trainer keeps networks in channels-last; segmentation logits come class by class.
        return Outputs(model(scenes.images).contiguous(), (scenes.mask,))

    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """IoU of the digits' classes over all scenes: their mean, and the worst one's; pixels."""
        found = answers(model, scenes)
        iou = class_iou(found, scenes.mask.long(), NUM_CLASSES + 1)[:NUM_CLASSES]
        iou = iou[~iou.isnan()]  # of digits that these scenes have
        return {
            "mean IoU of the digits": float(iou.mean()),
            "IoU of the worst digit": float(iou.min()),
            "pixels right": float((found == scenes.mask).double().mean()),
        }

    def draw_scene(self, axes: Any, model: nn.Module, scene: Scenes) -> None:
        """The mask coloured by class, the digits' true outlines, and what most of each became."""
        answer = segment(model, scene)[0]
        draw_image(axes, scene)
        draw_mask(axes, answer, scene.mask[0], BACKGROUND)
        for box, label in zip(scene.boxes[0], scene.labels[0], strict=True):
            if label == EMPTY:
                continue
            x0, y0, x1, y1 = (int(side) for side in box)
            part = answer[y0:y1, x0:x1][scene.mask[0, y0:y1, x0:x1] == label]
            found = int(part.mode().values)
            text = "missed" if found == BACKGROUND else str(found)
            draw_label(axes, box, text, RIGHT if found == label else WRONG)

    def legend(self) -> list[tuple[str, str, str]]:
        """The lines and labels."""
        return [
            ("digit in the scene", TRUTH, "--"),
            ("most of its pixels right", RIGHT, "-"),
            ("most of its pixels wrong", WRONG, "-"),
        ]


def segment(model: nn.Module, scenes: Scenes) -> Tensor:
    """Class ``[S, H, W]`` int64 of every pixel, in evaluation mode."""
    with in_use(model):
        answer: Tensor = model(scenes.images).argmax(1)
    return answer


def answers(model: nn.Module, scenes: Scenes) -> Tensor:
    """The same of any number of scenes, some at a time."""
    parts = [
        segment(model, scenes[start : start + _EVALUATION_CHUNK])
        for start in range(0, len(scenes), _EVALUATION_CHUNK)
    ]
    return torch.cat(parts)
