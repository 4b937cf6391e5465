"""Dice loss over a softmax, alone and joined with cross entropy: as it is written, packaged, and fused.

Arguments of every form: logits [N, C, ...], labels int64 [N, ...], of which `IGNORE` drops its pixel
where the form ignores any. Regions are those of the whole batch, as segmentation-models-pytorch pools
them, or of each sample, as MONAI does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, optional, row_slices
from .baselines_softmax_focal import IGNORE

SMP_COMPUTES = "the same, its I being (P + T - sum |p - t|) / 2 in float32, which loses digits"
SMP_ALLOWED = 100.0
"""Times the accepted errors: it is off by a thousandth at a million pixels."""


@dataclass(frozen=True)
class Form:
    """Which loss: `smooth` is added to numerator and denominator of every region."""

    batch: bool
    smooth: float
    ignores: bool
    joined: bool = False

    def eager(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Softmax, one-hot, sums: the form of most training scripts, in float32 as under autocast."""
        classes = logits.shape[1]
        probability = torch.softmax(logits, 1, dtype=torch.float32)
        known = labels
        if self.ignores:
            valid = labels != IGNORE
            probability = probability * valid.unsqueeze(1)
            known = torch.where(valid, labels, 0)
        hot = F.one_hot(known, classes).movedim(-1, 1).float()
        if self.ignores:
            hot = hot * valid.unsqueeze(1)
        axes = [0] * self.batch + list(range(2, logits.dim()))
        if axes:
            overlap = (probability * hot).sum(axes)
            total = probability.sum(axes) + hot.sum(axes)
        else:
            overlap, total = probability * hot, probability + hot
        loss = (1 - (2 * overlap + self.smooth) / (total + self.smooth)).mean()
        return loss + self.cross_entropy(logits, labels) if self.joined else loss

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """torch's, in float32."""
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE)

    def smp(self, package: LossFn) -> LossFn:
        """segmentation-models-pytorch's dice, and torch's cross entropy where one is joined."""

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            dice = package(logits.float(), labels)  # as autocast has it
            return dice + self.cross_entropy(logits, labels) if self.joined else dice

        return loss

    def monai(self, package: LossFn) -> LossFn:
        """MONAI's class, which takes labels with a dimension for the class."""
        return lambda logits, labels: package(logits.float(), labels.unsqueeze(1))

    def contenders(self) -> dict[str, LossFn]:
        """Eager, fused, and the packages' classes that compute the same and are installed."""
        found: dict[str, LossFn] = {"eager": self.eager}
        if self.batch:
            package = optional("segmentation_models_pytorch.losses", "DiceLoss")
            if package is not None:  # its smooth stands beside I, not 2 I
                ignored = IGNORE if self.ignores else None
                made = package("multiclass", smooth=self.smooth / 2, ignore_index=ignored)
                found["smp"] = self.smp(made)
        if not (self.joined and self.ignores):  # MONAI's cross entropy ignores nothing
            package = optional("monai.losses", "DiceCELoss" if self.joined else "DiceLoss")
            if package is not None:
                given = {"ignore_index": IGNORE} if self.ignores else {}
                smooth = {"smooth_nr": self.smooth, "smooth_dr": self.smooth}
                made = package(to_onehot_y=True, softmax=True, batch=self.batch, **smooth, **given)
                found["monai"] = self.monai(made)
        function = optional("fusedloss", "dice_cross_entropy_loss" if self.joined else "dice_loss")
        if function is not None:

            def fused(logits: Tensor, labels: Tensor) -> Tensor:
                value: Tensor = function(
                    logits,
                    labels,
                    batch=self.batch,
                    smooth=self.smooth,
                    ignore_index=IGNORE if self.ignores else None,
                )
                return value

            found["fusedloss"] = fused
        return found

    def reference(
        self, logits: Tensor, labels: Tensor, rows_at_once: int = 65_536
    ) -> tuple[Tensor, Tensor]:
        """Value (0-d) and gradient [N, C, ...] in float64: sums slice by slice, then the gradient."""
        rows = logits.detach().reshape(*logits.shape[:2], -1)
        targets = labels.reshape(labels.shape[0], -1)
        shape = (rows.shape[0], rows.shape[1], rows.shape[2])
        sums = torch.zeros(3, *shape[:2], dtype=torch.float64, device=logits.device)
        for n, k in row_slices(shape, rows_at_once):
            sums[:, n] += _sums(rows[n, :, k].double(), targets[n, k])
        sums.requires_grad_()
        overlap, mass, truth = sums.sum(1, keepdim=True) if self.batch else sums
        ratio = (2 * overlap + self.smooth) / (mass + truth + self.smooth)
        value = (1 - ratio).mean()
        (slopes,) = torch.autograd.grad(value, sums)
        value = value.detach()
        count = (labels != IGNORE).sum().double()
        gradient = torch.empty(rows.shape, dtype=torch.float64, device=logits.device)
        for n, k in row_slices(shape, rows_at_once):
            x, t = rows[n, :, k].double().requires_grad_(), targets[n, k]
            linear = (slopes[:, n] * _sums(x, t)).sum()
            if self.joined:
                joined = F.cross_entropy(x, t, ignore_index=IGNORE, reduction="sum") / count
                value += joined.detach()
                linear = linear + joined
            (gradient[n, :, k],) = torch.autograd.grad(linear, x)
        return value, gradient.reshape(logits.shape)


def _sums(x: Tensor, t: Tensor) -> Tensor:
    """I, P and T [3, n, C] of logits [n, C, k]."""
    valid = (t != IGNORE).unsqueeze(1)
    hit = torch.arange(x.shape[1], device=x.device)[:, None] == t.unsqueeze(1)
    probability = torch.softmax(x, 1) * valid
    return torch.stack(
        ((probability * hit).sum(-1), probability.sum(-1), (hit & valid).double().sum(-1))
    )
