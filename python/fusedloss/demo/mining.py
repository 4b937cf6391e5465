"""Segmentation with the hardest pixels only, beside plain cross entropy over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedloss import cross_entropy, ohem_cross_entropy_loss

from .metrics import class_iou
from .scenes import NUM_CLASSES, Scenes
from .segmentation import Segmentation, answers
from .task import EAGER, FUSED, Loss

THRESHOLD = 0.7
_KEPT = 16  # at least one pixel in so many


def fused_ohem(logits: Tensor, mask: Tensor) -> Tensor:
    """OHEM by fusedloss, straight from class indices.

    Args:
        logits: ``[N, C + 1, H, W]``, background last.
        mask: ``[N, H, W]`` uint8, class of every pixel.
    """
    return ohem_cross_entropy_loss(
        logits, mask, threshold=THRESHOLD, min_kept=mask.numel() // _KEPT
    )


def eager_ohem(logits: Tensor, mask: Tensor) -> Tensor:
    """The same as HRNet and mmsegmentation write it, sorting all pixels; arguments as the fused one's."""
    labels = mask.long()
    losses = F.cross_entropy(logits, labels, reduction="none").view(-1)
    p, order = logits.softmax(1).gather(1, labels.unsqueeze(1)).view(-1).sort()
    bound = p[min(p.numel() // _KEPT, p.numel() - 1)].clamp(min=THRESHOLD)
    return losses[order][p < bound].mean()


def plain(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of all pixels; arguments as the fused one's."""
    return cross_entropy(logits, mask)


class Mining(Segmentation):
    """The class of every pixel, of which most are background and learnt soon; see ``task.Task``."""

    name = "mining"
    loss_name = "OHEM cross entropy"
    losses: Mapping[str, Loss] = {FUSED: fused_ohem, EAGER: eager_ohem}
    beside: Mapping[str, Loss] = {"plain": plain}

    def evaluate(self, model: nn.Module, scenes: Scenes) -> dict[str, float]:
        """IoU of the digits' classes over all scenes: their mean, the rarest one's; pixels."""
        found, truth = answers(model, scenes), scenes.mask.long()
        iou = class_iou(found, truth, NUM_CLASSES + 1)[:NUM_CLASSES]
        pixels = torch.bincount(truth.flatten(), minlength=NUM_CLASSES + 1)[:NUM_CLASSES]
        rarest = int(torch.where(pixels > 0, pixels, pixels.max() + 1).argmin())
        return {
            "mean IoU of the digits": float(iou[~iou.isnan()].mean()),
            f"IoU of the rarest digit, {rarest}": float(iou[rarest]),
            "pixels right": float((found == truth).double().mean()),
        }
