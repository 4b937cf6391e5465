"""A user's file for mypy --strict: `python tests/wheel_check.py --types` checks it against a wheel.

What is assigned to a declared type is checked. Lines that must be errors say so: with --strict an ignored
error that is none is an error itself.
"""

from __future__ import annotations

from collections.abc import Callable

import fusedloss
import torch
from fusedloss import functional, reference
from torch import Tensor, nn

logits = torch.randn(4, 7, requires_grad=True)
labels = torch.randint(0, 7, (4,))

focal: Tensor = fusedloss.sigmoid_focal_loss(logits, labels, alpha=None, gamma=1.5, reduction="sum")
entropy: Tensor = functional.cross_entropy(logits, labels, torch.ones(7), label_smoothing=0.1)
arc: Tensor = fusedloss.arcface_loss(logits.tanh(), labels, margin=0.5)
region: Tensor = fusedloss.dice_loss(logits, labels, smooth=(1.0, 1.0), ignore_index=None)
mined: Tensor = fusedloss.ohem_cross_entropy_loss(logits, labels, min_kept=2)
linear: Tensor = fusedloss.linear_cross_entropy(logits, torch.randn(7, 7), labels)
boxes: Tensor = fusedloss.smooth_l1_loss(
    logits, torch.randn(4, 7), beta=0.5, weight=torch.rand(4, 1)
)
eager: Tensor = reference.cross_entropy(logits, labels)

criteria: list[nn.Module] = [
    fusedloss.DiceCrossEntropyLoss(batch=True),
    fusedloss.ArcFaceLoss(7, 7),
    fusedloss.SmoothL1Loss(0.5),
]
criterion: Callable[[Tensor, Tensor], Tensor] = fusedloss.CrossEntropyLoss(reduction="mean")
value: Tensor = fusedloss.SigmoidFocalLoss(gamma=2.0)(logits, labels)
text: str = fusedloss.show_config()
version: str = fusedloss.__version__

with fusedloss.backend("reference"), fusedloss.gradient_schedule("forward"), fusedloss.debug(True):
    fusedloss.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call, unused-ignore]

fusedloss.dice_loss(logits, labels, smoth=1.0)  # type: ignore[call-arg]
fusedloss.topk_cross_entropy_loss(logits, labels, k="all")  # type: ignore[arg-type]
wrong: str = fusedloss.cross_entropy(logits, labels)  # type: ignore[assignment]
fusedloss.no_such_loss(logits)  # type: ignore[attr-defined]
