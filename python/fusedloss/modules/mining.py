"""The losses of hard example mining as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import functional
from ..functional.mining import (
    check_dims,
    check_negative_options,
    check_ohem_options,
    check_topk_options,
)
from ._base import LossModule


class OHEMCrossEntropyLoss(LossModule):
    """Online hard example mining; options and shapes as in :func:`fusedloss.ohem_cross_entropy_loss`.

    ``weight`` becomes a buffer: it moves with ``.to()`` and is saved with the module.
    """

    weight: Tensor | None
    _option_names = ("threshold", "min_kept", "weight", "ignore_index", "reduction")

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        # Wrong options are refused here rather than at the first batch.
        check_ohem_options(threshold, min_kept, ignore_index, reduction)
        super().__init__()
        self.register_buffer("weight", weight)
        self.threshold = threshold
        self.min_kept = min_kept
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` (logits ``[N, C, ...]``) for class indices ``target``."""
        return functional.ohem_cross_entropy_loss(input, target, **self._options())


class TopKCrossEntropyLoss(LossModule):
    """The k hardest pixels; options and shapes as in :func:`fusedloss.topk_cross_entropy_loss`.

    ``weight`` becomes a buffer: it moves with ``.to()`` and is saved with the module.
    """

    weight: Tensor | None
    _option_names = ("k", "weight", "ignore_index", "reduction")

    def __init__(
        self,
        k: int | float = 0.1,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        check_topk_options(k, ignore_index, reduction)
        super().__init__()
        self.register_buffer("weight", weight)
        self.k = k
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` (logits ``[N, C, ...]``) for class indices ``target``."""
        return functional.topk_cross_entropy_loss(input, target, **self._options())


class BalancedBCELoss(LossModule):
    """All positives and the hardest negatives; options as in :func:`fusedloss.balanced_bce_loss`."""

    _option_names: tuple[str, ...] = (
        "from_logits",
        "negative_ratio",
        "fallback_negatives",
        "eps",
        "reduction",
    )

    def __init__(
        self,
        negative_ratio: float = 3.0,
        *,
        from_logits: bool = True,
        fallback_negatives: int = 0,
        eps: float = 1e-6,
        reduction: str = "mean",
    ) -> None:
        check_negative_options(
            "balanced_bce_loss", from_logits, negative_ratio, fallback_negatives, eps, reduction
        )
        super().__init__()
        self.negative_ratio = negative_ratio
        self.from_logits = from_logits
        self.fallback_negatives = fallback_negatives
        self.eps = eps
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of ``input`` for ``target`` of its shape; ``mask`` leaves elements out."""
        return functional.balanced_bce_loss(input, target, mask=mask, **self._options())


class HardNegativeMiningLoss(BalancedBCELoss):
    """Each slice mines for itself; options as in :func:`fusedloss.hard_negative_mining_loss`."""

    _option_names = ("dim", *BalancedBCELoss._option_names)

    def __init__(
        self,
        dim: int | Sequence[int],
        negative_ratio: float = 3.0,
        *,
        from_logits: bool = True,
        fallback_negatives: int = 0,
        eps: float = 1e-6,
        reduction: str = "mean",
    ) -> None:
        check_dims("hard_negative_mining_loss", dim)
        super().__init__(
            negative_ratio,
            from_logits=from_logits,
            fallback_negatives=fallback_negatives,
            eps=eps,
            reduction=reduction,
        )
        self.dim = dim

    def forward(self, input: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of ``input`` for ``target`` of its shape; ``mask`` leaves elements out."""
        return functional.hard_negative_mining_loss(input, target, mask=mask, **self._options())
