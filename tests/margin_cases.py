"""Parametrisations and inputs that the tests of margin softmax share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases.margin_softmax import VARIANTS
from torch import Tensor

SCHEDULES = ("recompute", "forward")


BACKENDS = ("native", "reference")


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


each_backend = pytest.mark.parametrize("backend", BACKENDS)


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


each_variant = pytest.mark.parametrize("variant", VARIANTS)


def with_gradient(loss: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to `x`."""
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), grad


def cosines(rows: int, classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Cosines of all angles in float64, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, classes, generator=generator, dtype=torch.float64) * 1.96 - 0.98
    return x, torch.randint(0, classes, (rows,), generator=generator)


def psi_by_hand(
    x: float,
    closest: float,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
) -> tuple[float, float]:
    """The label's cosine with its margin, and the slope, in double precision from the definition."""
    if easy_margin and x <= 0:
        return x, 1.0
    linear = monotonic == "linear" and not easy_margin
    theta = math.acos(max(-1.0, min(1.0, x)))
    if m1 == 1.0 and m2 == 0.0:
        psi, slope = x, 1.0
    elif linear and m1 == 1.0 and m2 > 0 and theta > math.pi - m2:
        psi, slope = x - m2 * math.sin(m2), 1.0
    else:
        inside = max(-closest, min(closest, x))
        angle, angle_inside = m1 * theta + m2, m1 * math.acos(inside) + m2
        folds = linear and m1 != 1.0
        k = math.floor(angle / math.pi) if folds else 0
        k_inside = math.floor(angle_inside / math.pi) if folds else 0
        psi = (-1) ** k * math.cos(angle) - 2 * k
        slope = (-1) ** k_inside * m1 * math.sin(angle_inside)
        slope /= math.sqrt((1 - inside) * (1 + inside))
    return psi - m3, slope if gradient == "exact" else 1.0


def by_hand(x: Tensor, label: Tensor, scale: float, **options: Any) -> tuple[Tensor, Tensor]:
    """Losses and gradients of rows [N, C], in double precision."""
    closest = 1 - torch.finfo(x.dtype).eps / 2
    x = x.double()
    rows = torch.arange(len(x))
    found = [psi_by_hand(float(c), closest, **options) for c in x[rows, label]]
    psi, slope = torch.tensor(found, dtype=torch.float64).unbind(1)
    logits = scale * x
    logits[rows, label] = scale * psi
    p = torch.softmax(logits, 1)
    others = p.clone()
    others[rows, label] = 0.0
    grad = scale * p
    grad[rows, label] = -scale * others.sum(1) * slope
    return F.cross_entropy(logits, label, reduction="none"), grad
