"""Cross entropy as people write it, as timm and Liger have it, and fused.

Arguments of every form: logits [N, C, ...], labels int64 [N, ...]. Label smoothing e is torch's: e/C
for every class. The mean is over the rows that are not ignored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines import LossFn, Reference, optional, row_slices

IGNORE_NOTHING = -100
"""torch's default, which no label of ours has."""


def eager(smoothing: float, ignore_index: int) -> LossFn:
    """The function of torch.nn.functional."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=smoothing)

    return loss


def handwritten(smoothing: float) -> LossFn:
    """Label smoothing as it was written before torch had it, and often still is: one-hot, spread.

    For logits [N, C] without ignored rows.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[1]
        log_probability = logits.log_softmax(dim=1)
        with torch.no_grad():
            spread = torch.full_like(log_probability, smoothing / classes)
            spread.scatter_(1, labels[:, None], 1.0 - smoothing + smoothing / classes)
        return (-spread * log_probability).sum(dim=1).mean()

    return loss


def contenders(smoothing: float = 0.0, ignore_index: int = IGNORE_NOTHING) -> dict[str, LossFn]:
    """Eager and fused; with smoothing (then [N, C], nothing ignored) the handwritten form and timm."""
    found: dict[str, LossFn] = {"eager": eager(smoothing, ignore_index)}
    if smoothing:
        found["handwritten"] = handwritten(smoothing)
        package = optional("timm.loss", "LabelSmoothingCrossEntropy")
        if package is not None:
            found["timm"] = package(smoothing)
    function = optional("fusedloss", "cross_entropy")
    if function is not None:

        def fused(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = function(
                logits, labels, ignore_index=ignore_index, label_smoothing=smoothing
            )
            return value

        found["fusedloss"] = fused
    return found


def gpu_contenders(smoothing: float, ignore_index: int) -> dict[str, LossFn]:
    """Liger's Triton kernel, for logits [N, C]. It writes the gradient over the logits, which others
    still need: it gets a clone of them, and the clone is timed with it.
    """
    function = optional("liger_kernel.transformers.functional", "liger_cross_entropy")
    if function is None:
        return {}

    def liger(logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = function(
            logits.clone(), labels, ignore_index=ignore_index, label_smoothing=smoothing
        )
        return value

    return {"liger with clone": liger}


def reference(
    smoothing: float = 0.0, ignore_index: int = IGNORE_NOTHING, rows_at_once: int = 16_384
) -> Reference:
    """The float64 reference, slice by slice, with the gradient written out.

    Per row L = lse - (1 - e) x_t - e mean(x), dL/dx = softmax(x) - (1 - e) [j = t] - e/C.
    """

    def value_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows = logits.detach().reshape(*logits.shape[:2], -1)
        targets = labels.reshape(labels.shape[0], -1)
        divisor = (labels != ignore_index).sum().double()
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        gradient = torch.zeros(rows.shape, dtype=torch.float64, device=logits.device)
        for n, k in row_slices((rows.shape[0], rows.shape[1], rows.shape[2]), rows_at_once):
            x, t = rows[n, :, k].double(), targets[n, k]
            valid = (t != ignore_index)[:, None]
            hit = torch.arange(x.shape[1], device=x.device)[:, None] == t[:, None]
            largest = x.amax(1, keepdim=True)
            power = (x - largest).exp()
            mass = power.sum(1, keepdim=True)
            target_logit = (x * hit).sum(1, keepdim=True)
            wanted = (1 - smoothing) * target_logit + smoothing * x.mean(1, keepdim=True)
            total += ((mass.log() + largest - wanted) * valid).sum() / divisor
            slope = power / mass - (1 - smoothing) * hit.double() - smoothing / x.shape[1]
            gradient[n, :, k] = slope * valid / divisor
        return total, gradient.reshape(logits.shape)

    return value_and_gradient
