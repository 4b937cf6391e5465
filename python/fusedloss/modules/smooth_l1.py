"""Smooth L1 loss and L1 loss as modules."""

from __future__ import annotations

from .. import _checks, functional
from ._base import ElementLoss


class SmoothL1Loss(ElementLoss):
    """Smooth L1 loss; options and shapes as in :func:`fusedloss.smooth_l1_loss`."""

    _function = staticmethod(functional.smooth_l1_loss)
    _option_names = ("beta", "reduction")

    def __init__(self, beta: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__()
        self.beta = _checks.number("smooth_l1_loss", "beta", beta, low=0.0)
        self.reduction = _checks.reduction("smooth_l1_loss", reduction)


class L1Loss(ElementLoss):
    """L1 loss; options and shapes as in :func:`fusedloss.l1_loss`."""

    _function = staticmethod(functional.l1_loss)
    _option_names = ("reduction",)

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = _checks.reduction("l1_loss", reduction)
