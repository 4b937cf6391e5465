"""A small one-stage dense detector: every pixel says class and box.

Anchor-free, after FCOS (Tian et al. 2019): a cell near the middle of a digit predicts its class
and its distances to the four sides. The features have stride 2 and each gives a square of 2x2
cells (sub-pixel convolution), so cells are pixels: most of the logits are easy background, which
is what focal loss is for. The classes are trained with sigmoid focal loss and start
from the prior of RetinaNet (Lin et al. 2017).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import block
from .scenes import BACKGROUND, EMPTY, NUM_CLASSES

#: Pixels per cell.
STRIDE = 1
#: Class index of cells that are no example of anything: inside a digit's box, off its middle.
IGNORE = -100
#: A cell is positive within this fraction of the box's sides around its centre ...
_CORE = 0.4
#: ... and ignored beyond that up to this fraction.
_RIM = 0.8
#: Distances are predicted as the exponential of the output, in this unit of pixels.
_UNIT = 8.0
#: Probability of every class at the start of training (RetinaNet's pi).
_PRIOR = 0.01


class Detector(nn.Module):
    """Images ``[N, 1, H, W]`` to class logits ``[N, A, C]`` and distances ``[N, A, 4]``.

    A = H * W cells, row by row. Distances are in pixels from the middle of the
    cell to the left, top, right and lower side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16, 2)
        self.down4 = nn.Sequential(block(16, 32, 2), block(32, 32))
        self.down8 = nn.Sequential(block(32, 96, 2), block(96, 96), block(96, 96))
        self.lateral4 = nn.Conv2d(32, 32, 1)
        self.lateral8 = nn.Conv2d(96, 32, 1)
        self.merge4 = block(32, 32)
        self.lateral2 = nn.Conv2d(16, 32, 1)
        self.merge2 = block(32, 32)
        self.classes = nn.Conv2d(32, 4 * NUM_CLASSES, 3, padding=1)
        self.distances = nn.Conv2d(32, 4 * 4, 3, padding=1)
        rare = -math.log((1.0 - _PRIOR) / _PRIOR)
        for head, bias in ((self.classes, rare), (self.distances, 0.0)):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.constant_(head.get_parameter("bias"), bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x2 = self.stem(images.contiguous(memory_format=torch.channels_last))
        x4 = self.down4(x2)
        x8 = self.down8(x4)
        x4 = self.merge4(self.lateral4(x4) + F.interpolate(self.lateral8(x8), scale_factor=2))
        x2 = self.merge2(self.lateral2(x2) + F.interpolate(x4, scale_factor=2))
        distances = _to_cells(self.distances(x2)).clamp(max=3.0).exp() * _UNIT
        return _to_cells(self.classes(x2)), distances


def _to_cells(features: Tensor) -> Tensor:
    """Head output ``[N, 4 K, h, w]`` to cells ``[N, 2 h * 2 w, K]``."""
    count, channels, height, width = features.shape
    squares = features.reshape(count, 2, 2, channels // 4, height, width)
    return squares.permute(0, 4, 1, 5, 2, 3).reshape(count, -1, channels // 4)


def cell_centers(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Middle (x, y) of every cell in pixels, ``[A, 2]``."""
    rows = (torch.arange(height // STRIDE, device=device) + 0.5) * STRIDE
    columns = (torch.arange(width // STRIDE, device=device) + 0.5) * STRIDE
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def assign(boxes: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Say for every cell what it shall predict.

    Args:
        boxes: ``[N, M, 4]`` in pixels.
        labels: ``[N, M]``, ``EMPTY`` for slots without a digit.
        centers: ``[A, 2]`` of ``cell_centers``.

    Returns:
        class indices ``[N, A]`` int64 (0..C-1, C for background, ``IGNORE``), and the box of
        the cell's digit ``[N, A, 4]``, meaningful at positive cells only.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1.0)
    # Distance from the middle as a fraction of the half sides, [N, A, M].
    offset = (centers[None, :, None] - middle[:, None]).abs() / (size[:, None] / 2)
    fraction = offset.amax(-1).masked_fill((labels == EMPTY)[:, None], float("inf"))
    nearest, slot = fraction.min(-1)
    target = labels.gather(1, slot)
    target = torch.where(nearest <= _RIM, torch.where(nearest <= _CORE, target, IGNORE), BACKGROUND)
    return target, boxes.gather(1, slot[..., None].expand(-1, -1, 4))


def to_boxes(distances: Tensor, centers: Tensor) -> Tensor:
    """Distances ``[..., A, 4]`` from the cells' middles to boxes ``[..., A, 4]``, pixels."""
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)


def giou_loss(boxes: Tensor, wanted: Tensor) -> Tensor:
    """1 - generalized IoU (Rezatofighi et al. 2019) of matching boxes ``[K, 4]``: ``[K]``."""
    low, high = torch.minimum(boxes, wanted), torch.maximum(boxes, wanted)
    overlap, hull = low[:, 2:] - high[:, :2], high[:, 2:] - low[:, :2]
    intersection = overlap.clamp(min=0.0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (wanted[:, 2:] - wanted[:, :2]).prod(1)
    union = areas - intersection
    hull_area = hull.prod(1)
    return 1.0 - intersection / union + (hull_area - union) / hull_area
