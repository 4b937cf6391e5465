"""Hard example mining as the popular repositories write it, and fused.

OHEM and top-k: logits [N, C, ...], labels int64 [N, ...], of which `IGNORE` drops its pixel. Balanced
binary cross entropy: logits, targets of 0 and 1 and a mask of the same shape. The inputs have no loss
next to the bound of the selection, so that all forms select the same in any dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, optional, row_slices
from .baselines_softmax_focal import IGNORE

THRESHOLD = 0.7
RATIO = 3.0
EPSILON = 1e-6


@dataclass(frozen=True)
class Hard:
    """Pixels with p below `THRESHOLD`, at least `min_kept`; or a `share` of the valid ones."""

    min_kept: int = 100_000
    share: float = 0.0

    def fewest(self, labels: Tensor) -> int:
        """`min_kept`, of images that are too small for it a tenth."""
        return max(1, min(self.min_kept, labels.numel() // 10))

    def sorting(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The form of HRNet and mmsegmentation: the p of all valid pixels are sorted."""
        logits = logits.float()  # as under autocast
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").view(-1)
        mask = labels.view(-1) != IGNORE
        known = torch.where(labels == IGNORE, 0, labels)
        p = torch.softmax(logits, 1).gather(1, known.unsqueeze(1)).view(-1)[mask]
        p, order = p.sort()
        bound = p[min(self.fewest(labels), p.numel() - 1)].clamp(min=THRESHOLD)
        return losses[mask][order][p < bound].mean()

    def topk(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The form of BiSeNet: losses above the threshold, or the largest ones by topk."""
        logits = logits.float()
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").view(-1)
        if self.share:
            valid = int((labels != IGNORE).sum())
            return losses.topk(max(1, int(self.share * valid))).values.mean()
        hard = losses[losses > -math.log(THRESHOLD)]
        if hard.numel() < self.fewest(labels):
            hard = losses.topk(self.fewest(labels)).values
        return hard.mean()

    def contenders(self) -> dict[str, LossFn]:
        """The form that sorts, where there is a threshold, the form by topk, and fused."""
        found: dict[str, LossFn] = {"eager": self.topk}
        if not self.share:
            found = {"eager": self.sorting, "topk": self.topk}
        name = "topk_cross_entropy_loss" if self.share else "ohem_cross_entropy_loss"
        function = optional("fusedloss", name)
        if function is not None:

            def fused(logits: Tensor, labels: Tensor) -> Tensor:
                options: dict[str, float] = {"k": self.share}
                if not self.share:
                    options = {"threshold": THRESHOLD, "min_kept": self.fewest(labels)}
                value: Tensor = function(logits, labels, ignore_index=IGNORE, **options)
                return value

            found["fusedloss"] = fused
        return found

    def selects(self, losses: Tensor, valid: Tensor) -> Tensor:
        """Which of the losses [n] count."""
        ranked = torch.where(valid, losses, -math.inf).sort(descending=True).values
        wanted = int(self.share * int(valid.sum())) if self.share else self.fewest(losses)
        cut = ranked[min(wanted, int(valid.sum())) - 1]
        bound = cut if self.share else cut.clamp(max=-math.log(THRESHOLD))
        return valid & (losses >= bound)

    def reference(
        self, logits: Tensor, labels: Tensor, rows_at_once: int = 65_536
    ) -> tuple[Tensor, Tensor]:
        """Value (0-d) and gradient [N, C, ...] in float64: all losses, then the selected gradients."""
        rows = logits.detach().reshape(*logits.shape[:2], -1)
        targets = labels.reshape(labels.shape[0], -1)
        shape = (rows.shape[0], rows.shape[1], rows.shape[2])
        losses = torch.empty(targets.shape, dtype=torch.float64, device=logits.device)
        for n, k in row_slices(shape, rows_at_once):
            x, t = rows[n, :, k].double(), targets[n, k]
            losses[n, k] = F.cross_entropy(x, t, ignore_index=IGNORE, reduction="none")
        selected = self.selects(losses.view(-1), (targets != IGNORE).view(-1)).view(targets.shape)
        gradient = torch.empty(rows.shape, dtype=torch.float64, device=logits.device)
        for n, k in row_slices(shape, rows_at_once):
            x, t = rows[n, :, k].double(), targets[n, k]
            known = torch.where(t == IGNORE, 0, t).unsqueeze(1)
            part = torch.softmax(x, 1).scatter_add_(1, known, -torch.ones_like(x[:, :1]))
            gradient[n, :, k] = part * selected[n, k].unsqueeze(1) / selected.sum()
        return losses[selected].mean(), gradient.reshape(logits.shape)


def balanced_eager(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The form of DB: counts on the host, topk of the negatives."""
    positive, negative = target * mask, (1 - target) * mask
    positives = int(positive.sum())
    negatives = min(int(negative.sum()), int(positives * RATIO))
    losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    hardest = (losses * negative).view(-1).topk(negatives).values
    return ((losses * positive).sum() + hardest.sum()) / (positives + negatives + EPSILON)


def balanced_contenders() -> dict[str, LossFn]:
    """Eager and fused."""
    found: dict[str, LossFn] = {"eager": balanced_eager}
    function = optional("fusedloss", "balanced_bce_loss")
    if function is not None:

        def fused(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
            value: Tensor = function(logits, target, mask=mask, negative_ratio=RATIO, eps=EPSILON)
            return value

        found["fusedloss"] = fused
    return found


def balanced_reference(
    logits: Tensor, target: Tensor, mask: Tensor, rows_at_once: int = 65_536
) -> tuple[Tensor, Tensor]:
    """Value (0-d) and gradient of the logits' shape in float64; an element is a row, all at once."""
    del rows_at_once
    x, t = logits.detach().double(), target.double()
    losses = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    positive, negative = (t * mask) > 0.5, ((1 - t) * mask) > 0.5
    wanted = min(int(negative.sum()), int(int(positive.sum()) * RATIO))
    cut = losses[negative].sort(descending=True).values[wanted - 1]
    selected = positive | (negative & (losses >= cut))
    divisor = selected.sum() + EPSILON
    return losses[selected].sum() / divisor, (x.sigmoid() - t) * selected / divisor
