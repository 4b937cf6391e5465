"""Margin softmax: ArcFace and its family."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import class_dim
from .common import arithmetic, labels, pick, reduce


def _zero(x: Tensor) -> Tensor:
    """0, but its derivative by `x` is 1; NaN where `x` is not finite."""
    return x - x.detach()


def _curve(x: Tensor, m1: Tensor, m2: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """cos(m1 theta + m2), for `linear` and m1 != 1 the form that goes on falling; and its slope."""
    sine = torch.sqrt((1 - x) * (1 + x))
    angle = m1 * torch.atan2(sine, x) + m2
    k = torch.where(m1 != 1, torch.floor(angle / math.pi), 0.0) if linear else 0.0 * angle.detach()
    rest = angle - k * math.pi
    return torch.cos(rest) - 2 * k, m1 * torch.sin(rest) / sine


def _with_margin(
    x: Tensor, m1: Tensor, m2: Tensor, m3: Tensor, *, easy: bool, linear: bool, closest: float
) -> Tensor:
    """The cosine of the label's class, made harder. `closest` to 1 is where slopes are still taken."""
    # Beyond it a curve goes on as its tangent, but has the value at x, at most that at +-1.
    near = x.abs() <= closest
    curve, slope = _curve(torch.where(near, x, closest * torch.sign(x)), m1, m2, linear)
    beyond, _ = _curve(x.detach().clamp(-1.0, 1.0), m1, m2, linear)
    psi = torch.where(near, curve, beyond + slope * _zero(x))
    # Straight lines: no angle at all, and theta > pi - m2.
    falls_below = torch.full_like(x, -torch.inf)
    if linear:
        end = torch.where(m2 < math.pi, -torch.cos(m2), torch.inf)
        falls_below = torch.where((m1 == 1) & (m2 > 0), end, falls_below)
    falls_below = torch.where((m1 == 1) & (m2 == 0), torch.inf, falls_below)
    psi = torch.where(x < falls_below, x - m2 * torch.sin(m2), psi) - m3
    return torch.where(x > (0.0 if easy else -torch.inf), psi, x)


def margin_softmax_loss(
    cosine: Tensor,
    target: Tensor,
    *,
    scale: float = 64.0,
    m1: float | Tensor = 1.0,
    m2: float | Tensor = 0.0,
    m3: float | Tensor = 0.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Margin softmax loss; see :func:`fusedloss.margin_softmax_loss`."""
    x, dim = arithmetic(cosine), class_dim(cosine)
    label, valid, bad = labels("margin_softmax_loss", cosine, target, ignore_index, "cosine")
    x = torch.where(valid.unsqueeze(dim), x, 0.0)
    own, place = pick(x, label, dim), label.unsqueeze(dim)
    margins = [torch.as_tensor(m, dtype=x.dtype, device=x.device) for m in (m1, m2, m3)]
    psi = _with_margin(
        own if gradient == "exact" else own.detach(),
        *(m[label] if m.dim() else m for m in margins),
        easy=easy_margin,
        linear=monotonic == "linear" and not easy_margin,
        closest=1 - torch.finfo(cosine.dtype).eps / 2,
    )
    if gradient != "exact":
        psi = torch.where(psi == own, own, psi + _zero(own))  # -inf on a straight line stays -inf
    # -log p_t = log(1 + e^z) with z from the other classes, as in softmax_focal_loss; the floor stands
    # for -inf, of which there are no derivatives.
    floor = torch.finfo(x.dtype).min / 2
    others = scale * x
    if filter_threshold is not None:
        others = torch.where(x > filter_threshold, floor, others)
    others = others.clamp(min=floor).scatter(dim, place, floor)
    nothing = torch.isneginf(psi) & (others == floor).all(dim)  # 0 / 0
    top = others.amax(dim, keepdim=True).detach()
    z = torch.logsumexp(others - top, dim) + top.squeeze(dim) - scale * psi
    loss = -F.logsigmoid(-z)
    if label_smoothing:
        changed = (scale * x).scatter(dim, place, (scale * psi).unsqueeze(dim))
        spread = label_smoothing / x.size(dim)
        loss = (1 - label_smoothing) * loss - spread * F.log_softmax(changed, dim).sum(dim)
    loss = loss * torch.where(
        bad | nothing, torch.nan, 1.0
    )  # the gradient of the row is NaN as well
    loss = torch.where(valid, loss, 0.0)
    return reduce(loss, valid, reduction, None)
