"""Scenes of real handwritten digits: the data that all tasks of the demo share.

scikit-learn ships 1,797 handwritten digits of 8x8 pixels (UCI "optical recognition of
handwritten digits"). A scene is a grey canvas with uneven light, noise and thin strokes as
clutter, on which several digits lie at random places, sizes, angles and contrasts. Digits do
not touch each other, so the box of a digit is exactly the bounds of its pixels in the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .require import require

NUM_CLASSES = 10
#: Value of a mask pixel, and class index of a cell, that belongs to no digit.
BACKGROUND = NUM_CLASSES
#: Label of a slot that holds no digit.
EMPTY = -1

CANVAS = 64
MAX_DIGITS = 5
#: Side of a digit's 8x8 tile on the canvas, in pixels: smallest and largest.
TILE_SIDES = (15.0, 27.0)
#: Side of the square a digit is rendered into; holds the largest tile at any angle we draw.
_PATCH = 36
_MAX_ANGLE = 0.15  # radians
_MAX_SLANT = 0.12
_INK = 0.35  # a pixel with at least this much ink belongs to the digit
_CLUTTER_STROKES = 7
_CHUNK = 64  # scenes composed at a time, to keep the temporaries in the cache


@dataclass(frozen=True)
class Digits:
    """Digit images ``[D, 8, 8]`` with ink in [0, 1], labels ``[D]``, places in the set ``[D]``."""

    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Scenes:
    """S scenes with everything that detection, segmentation and recognition need.

    Attributes:
        images: ``[S, 1, H, W]`` float32, grey values of about [0, 1].
        boxes: ``[S, M, 4]`` float32, pixels, (x0, y0, x1, y1) with x1 and y1 exclusive.
        labels: ``[S, M]`` int64, the digit in each slot, ``EMPTY`` where there is none.
        digit_index: ``[S, M]`` int64, which of the 1,797 digits it is, ``EMPTY`` for none.
        mask: ``[S, H, W]`` uint8, class of every pixel, ``BACKGROUND`` outside the digits.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    digit_index: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(*(field[index] for field in self._fields()))

    def to(self, device: torch.device) -> Scenes:
        """The same scenes with all tensors on ``device``."""
        return Scenes(*(field.to(device) for field in self._fields()))

    def _fields(self) -> tuple[Tensor, ...]:
        return self.images, self.boxes, self.labels, self.digit_index, self.mask


@dataclass(frozen=True)
class SceneSplit:
    """Training scenes and held-out scenes, made from disjoint sets of digits."""

    train: Scenes
    held_out: Scenes


def load_digit_split(held_out: float = 0.2) -> tuple[Digits, Digits]:
    """The digits as (training, held-out).

    The held-out ones are the last part of the file, which is not shuffled: this is a harder
    test than a random split, since neighbours in the file resemble each other.
    """
    data = require("sklearn.datasets").load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32) / 16.0
    labels = torch.as_tensor(data.target, dtype=torch.int64)
    index = torch.arange(len(labels))
    cut = round(len(labels) * (1.0 - held_out))
    train = Digits(images[:cut], labels[:cut], index[:cut])
    return train, Digits(images[cut:], labels[cut:], index[cut:])


def make_split(num_train: int, num_held_out: int, seed: int) -> SceneSplit:
    """Compose both sets of scenes; the same arguments give the same scenes."""
    train_digits, held_out_digits = load_digit_split()
    return SceneSplit(
        train=compose(train_digits, num_train, seed=2 * seed),
        held_out=compose(held_out_digits, num_held_out, seed=2 * seed + 1),
    )


def compose(digits: Digits, count: int, seed: int) -> Scenes:
    """``count`` scenes of the given digits, determined by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _compose_chunk(digits, min(_CHUNK, count - start), generator)
        for start in range(0, count, _CHUNK)
    ]
    fields = zip(*(part._fields() for part in parts), strict=True)
    return Scenes(*(torch.cat(pieces) for pieces in fields))


def digit_crops(scenes: Scenes, side: int = 16) -> tuple[Tensor, Tensor]:
    """Cut every digit out of its scene, for recognition.

    Returns:
        crops ``[D, 1, side, side]`` float32, the box of each digit resampled bilinearly, and
        labels ``[D]`` int64, scene by scene.
    """
    height, width = scenes.images.shape[-2:]
    scene, slot = (scenes.labels != EMPTY).nonzero(as_tuple=True)
    x0, y0, x1, y1 = scenes.boxes[scene, slot].unbind(1)
    theta = torch.zeros(len(scene), 2, 3, device=scenes.boxes.device)
    theta[:, 0, 0] = (x1 - x0) / width
    theta[:, 1, 1] = (y1 - y0) / height
    theta[:, 0, 2] = (x0 + x1) / width - 1.0
    theta[:, 1, 2] = (y0 + y1) / height - 1.0
    grid = F.affine_grid(theta, [len(scene), 1, side, side], align_corners=False)
    crops = F.grid_sample(scenes.images[scene], grid, padding_mode="border", align_corners=False)
    return crops, scenes.labels[scene, slot]


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _compose_chunk(digits: Digits, count: int, generator: torch.Generator) -> Scenes:
    wanted = torch.randint(2, MAX_DIGITS + 1, (count, 1), generator=generator)
    sides = _uniform(generator, *TILE_SIDES, count, MAX_DIGITS)
    corners, placed = _place(sides, generator)
    used = placed & (torch.arange(MAX_DIGITS) < wanted)
    choice = torch.randint(len(digits.labels), (count, MAX_DIGITS), generator=generator)
    ink = _render(digits.images[choice], sides, generator)

    images = _background(count, generator)
    mask = torch.full((count, CANVAS, CANVAS), BACKGROUND, dtype=torch.uint8)
    strength = _uniform(generator, 0.6, 1.0, count, MAX_DIGITS)
    labels = torch.where(used, digits.labels[choice], EMPTY)
    boxes = torch.zeros(count, MAX_DIGITS, 4)
    for slot in range(MAX_DIGITS):
        layer = _paste(ink[:, slot], corners[:, slot]) * used[:, slot, None, None]
        images = images + layer * (strength[:, slot, None, None] - images).clamp(min=0.0)
        inside = layer >= _INK
        mask = torch.where(inside, labels[:, slot, None, None].to(torch.uint8), mask)
        boxes[:, slot] = _bounds(inside)
    images = images + 0.06 * torch.randn(images.shape, generator=generator)
    return Scenes(
        images=images[:, None],
        boxes=boxes,
        labels=labels,
        digit_index=torch.where(used, digits.index[choice], EMPTY),
        mask=mask,
    )


def _place(sides: Tensor, generator: torch.Generator, tries: int = 48) -> tuple[Tensor, Tensor]:
    """Places of patches ``[S, M, 2]`` (x, y of the corner) so that the digits do not touch.

    Each slot takes the first of ``tries`` random places that is free; the second result
    ``[S, M]`` says whether there was one.
    """
    count, slots = sides.shape
    reach = sides / 2 * 1.15 + 1.0  # the tile turns: half of its extent, and a free pixel
    corners = torch.zeros(count, slots, 2)
    placed = torch.zeros(count, slots, dtype=torch.bool)
    half = _PATCH // 2
    for slot in range(slots):
        low = reach[:, slot, None, None]
        spot = low + torch.rand(count, tries, 2, generator=generator) * (CANVAS - 2 * low)
        spot = spot.round()
        distance = (spot[:, :, None] - (corners[:, None, :slot] + half)).abs().amax(-1)
        free = distance >= reach[:, None, :slot] + reach[:, slot, None, None]
        free = (free | ~placed[:, None, :slot]).all(-1)  # [S, tries]
        first = free.to(torch.uint8).argmax(1)
        corners[:, slot] = spot[torch.arange(count), first] - half
        placed[:, slot] = free.any(1)
    return corners.long(), placed


def _render(tiles: Tensor, sides: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the tiles ``[S, M, 8, 8]`` at the given sides, a little distorted: ``[S, M, P, P]``."""
    count, slots = sides.shape
    angle = _uniform(generator, -_MAX_ANGLE, _MAX_ANGLE, count * slots)
    scale = _PATCH / sides.reshape(-1)
    theta = torch.zeros(count * slots, 2, 3)
    slant = _uniform(generator, -_MAX_SLANT, _MAX_SLANT, count * slots)
    squeeze = _uniform(generator, 0.95, 1.1, count * slots)
    theta[:, 0, 0] = angle.cos() * scale * squeeze
    theta[:, 0, 1] = (slant - angle.sin()) * scale * squeeze
    theta[:, 1, 0] = angle.sin() * scale
    theta[:, 1, 1] = angle.cos() * scale
    grid = F.affine_grid(theta, [count * slots, 1, _PATCH, _PATCH], align_corners=False)
    ink = F.grid_sample(tiles.reshape(-1, 1, 8, 8), grid, mode="bicubic", align_corners=False)
    return ink.clamp(0.0, 1.0).reshape(count, slots, _PATCH, _PATCH)


def _paste(patches: Tensor, corners: Tensor) -> Tensor:
    """Put patches ``[S, P, P]`` on empty canvases at ``corners`` ``[S, 2]``: ``[S, H, W]``."""
    count, padded = len(patches), CANVAS + 2 * _PATCH
    ramp = torch.arange(_PATCH) + _PATCH
    rows = (corners[:, 1, None] + ramp)[:, :, None]
    columns = (corners[:, 0, None] + ramp)[:, None, :]
    canvas = torch.zeros(count, padded * padded)
    canvas.scatter_(1, (rows * padded + columns).reshape(count, -1), patches.reshape(count, -1))
    inner = slice(_PATCH, _PATCH + CANVAS)
    return canvas.reshape(count, padded, padded)[:, inner, inner]


def _bounds(inside: Tensor) -> Tensor:
    """Bounds ``[S, 4]`` of the true pixels of ``[S, H, W]``; zeros where there is none."""
    sides = []
    for line in (inside.any(1).to(torch.uint8), inside.any(2).to(torch.uint8)):
        last = line.shape[1] - line.flip(1).argmax(1)
        sides.append((line.argmax(1), last * line.any(1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], 1).float()


def _background(count: int, generator: torch.Generator) -> Tensor:
    """Uneven light and thin strokes, ``[S, H, W]``."""
    light = _uniform(generator, 0.0, 0.35, count, 1, 4, 4)
    light = F.interpolate(light, (CANVAS, CANVAS), mode="bicubic", align_corners=False)[:, 0]
    shape = (count, _CLUTTER_STROKES, 1, 1)
    middle_x, middle_y = _uniform(generator, 0.0, CANVAS, 2, *shape)
    angle = _uniform(generator, 0.0, torch.pi, *shape)
    length = _uniform(generator, 2.0, 9.0, *shape)
    grey = _uniform(generator, 0.1, 0.7, *shape)
    ramp = torch.arange(CANVAS) + 0.5
    x, y = ramp - middle_x, ramp[:, None] - middle_y  # [S, L, 1, W] and [S, L, H, 1]
    cos, sin = angle.cos(), angle.sin()
    along = (x * cos + y * sin).abs_().sub_(length).clamp_(min=0.0)
    across = y * cos - x * sin
    squared_distance = along.square_().add_(across.square_())
    strokes: Tensor = squared_distance.neg_().add_(1.6).clamp_(0.0, 1.0).mul_(grey).amax(1)
    return light + strokes * (1.0 - light)
