"""Verification: do two drawings show the same digit? Embeddings trained with ArcFace.

The embedding has three dimensions, so that the sphere its directions live on can be drawn whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedloss import ArcFaceLoss, arcface_loss

from .drawing import RIGHT, TRUTH, WRONG, draw_box, draw_image, draw_label, draw_sphere
from .networks import DigitNetwork, in_use
from .pairs import Pairs, accepted_at, accuracy, all_pairs, best_threshold
from .scenes import EMPTY, NUM_CLASSES, Scenes, digit_crops
from .task import EAGER, FUSED, Loss, Outputs, Task

EMBEDDING = 3
MARGIN = 0.5  # radians
#: The usual 64 is for many classes.
SCALE = 16.0
FALSE_ACCEPTS = 0.01
#: The threshold is chosen on all pairs of the digits of so many training scenes.
_THRESHOLD_SCENES = 256


def fused_arcface(cosine: Tensor, labels: Tensor) -> Tensor:
    """ArcFace by fusedloss: cosines ``[N, C]``, labels ``[N]`` int64."""
    return arcface_loss(cosine, labels, margin=MARGIN, scale=SCALE)


def eager_arcface(cosine: Tensor, labels: Tensor) -> Tensor:
    """The same as it is commonly written in PyTorch."""
    sine = (1.0 - cosine.square()).clamp(min=1e-9).sqrt()
    moved = cosine * math.cos(MARGIN) - sine * math.sin(MARGIN)
    beyond = cosine - math.sin(MARGIN) * MARGIN
    moved = torch.where(cosine > math.cos(math.pi - MARGIN), moved, beyond)
    one_hot = F.one_hot(labels, cosine.shape[-1]).to(cosine.dtype)
    return F.cross_entropy(SCALE * (one_hot * moved + (1.0 - one_hot) * cosine), labels)


class Verifier(nn.Module):
    """Crops ``[N, 1, 16, 16]`` to embeddings ``[N, E]`` and cosines ``[N, C]`` with the classes.

    ``head`` holds a direction for each class; ``threshold`` is the cosine above which two
    embeddings are taken for the same digit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = DigitNetwork(EMBEDDING)
        self.head = ArcFaceLoss(NUM_CLASSES, EMBEDDING, margin=MARGIN, scale=SCALE)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """See the class. ``head(embeddings, labels)`` would be these cosines and the loss at once."""
        embeddings = self.embed(crops)
        return embeddings, self.head.logits(embeddings) / SCALE


class Verification(Task):
    """Which digits of a scene are the same as its first one; see ``task.Task``."""

    name = "verification"
    loss_name = "ArcFace"
    losses: Mapping[str, Loss] = {FUSED: fused_arcface, EAGER: eager_arcface}
    network = Verifier

    def forward(self, model: nn.Module, scenes: Scenes) -> Outputs:
        """Cosines ``[D, C]`` of the D digits of the scenes; argument labels ``[D]``."""
        crops, labels = digit_crops(scenes)
        return Outputs(model(crops)[1], (labels,))

    def finish(self, model: nn.Module, train: Scenes) -> nn.Module:
        """Choose the threshold on pairs of training digits."""
        threshold = best_threshold(_pairs(model, train[:_THRESHOLD_SCENES]))
        model.get_buffer("threshold").fill_(threshold)
        return model

    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Over all pairs of digits, and how many digits are nearest to their own class."""
        pairs = _pairs(model, scenes)
        _, cosine, labels = embed(model, scenes)
        return {
            "accuracy, same or different": accuracy(pairs, float(model.get_buffer("threshold"))),
            f"same accepted at {FALSE_ACCEPTS:.0%} false accepts": accepted_at(
                pairs, FALSE_ACCEPTS
            ),
            "accuracy of the nearest class": float((cosine.argmax(-1) == labels).double().mean()),
        }

    def draw(self, row: Sequence[Any], model: nn.Module, held_out: Scenes) -> None:
        """The embeddings of all digits on their sphere, then scenes, first those with a same digit."""
        embeddings, _, labels = embed(model, held_out)
        draw_sphere(row[0], embeddings, labels)
        repeated = (held_out.labels[:, 1:] == held_out.labels[:, :1]).any(1)
        order = repeated.int().argsort(descending=True, stable=True)
        super().draw(row[1:], model, held_out[order])

    def draw_scene(self, axes: Any, model: nn.Module, scene: Scenes) -> None:
        """The first digit, and of the others whether they are the same and the cosine with it."""
        draw_image(axes, scene)
        embeddings, _, labels = embed(model, scene)
        directions = F.normalize(embeddings)
        cosines = (directions @ directions[0]).tolist()
        threshold = float(model.get_buffer("threshold"))
        boxes = scene.boxes[scene.labels != EMPTY]
        draw_box(axes, boxes[0], TRUTH, "--")
        for box, cosine, same in zip(boxes[1:], cosines[1:], labels[1:] == labels[0], strict=True):
            answer = cosine >= threshold
            colour = RIGHT if answer == same else WRONG
            draw_box(axes, box, colour, "-")
            draw_label(axes, box, f"{'same' if answer else 'other'}  {cosine:.2f}", colour)

    def legend(self) -> list[tuple[str, str, str]]:
        """The first digit and the two kinds of answers."""
        return [
            ("first digit of the scene", TRUTH, "--"),
            ("same or other digit, right", RIGHT, "-"),
            ("same or other digit, wrong", WRONG, "-"),
        ]


def embed(model: nn.Module, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding ``[D, E]``, cosines with the classes ``[D, C]``, label ``[D]`` of every digit."""
    crops, labels = digit_crops(scenes)
    with in_use(model):
        embeddings, cosine = model(crops)
    return embeddings, cosine, labels


def _pairs(model: nn.Module, scenes: Scenes) -> Pairs:
    embeddings, _, labels = embed(model, scenes)
    return all_pairs(embeddings, labels, scenes.digit_index[scenes.labels != EMPTY])
