"""The focal losses as modules."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ..functional.sigmoid_focal import check_sigmoid_focal_options
from ..functional.softmax_focal import check_softmax_focal_options
from ._base import ElementLoss, LossModule


class _FocalLoss(LossModule):
    """What the focal losses have in common: their options."""

    alpha: float | Tensor | None
    _option_names = ("alpha", "gamma", "ignore_index", "label_smoothing", "reduction")

    def __init__(
        self,
        alpha: float | Tensor | None,
        gamma: float,
        ignore_index: int,
        label_smoothing: float,
        reduction: str,
    ) -> None:
        super().__init__()
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction


class SigmoidFocalLoss(_FocalLoss, ElementLoss):
    """Sigmoid focal loss; options and shapes as in :func:`fusedloss.sigmoid_focal_loss`.

    A tensor ``alpha`` becomes a buffer: it moves with ``.to()`` and is saved with the module.
    """

    _function = staticmethod(functional.sigmoid_focal_loss)

    def __init__(
        self,
        alpha: float | Tensor | None = 0.25,
        gamma: float = 2.0,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        # Wrong options are refused here rather than at the first batch.
        check_sigmoid_focal_options(alpha, gamma, ignore_index, label_smoothing, reduction)
        super().__init__(alpha, gamma, ignore_index, label_smoothing, reduction)


class SoftmaxFocalLoss(_FocalLoss):
    """Softmax focal loss; options and shapes as in :func:`fusedloss.softmax_focal_loss`.

    A tensor ``alpha`` becomes a buffer: it moves with ``.to()`` and is saved with the module.
    """

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        # Wrong options are refused here rather than at the first batch.
        check_softmax_focal_options(alpha, gamma, ignore_index, label_smoothing, reduction)
        super().__init__(alpha, gamma, ignore_index, label_smoothing, reduction)

    def forward(
        self, input: Tensor, target: Tensor, *, normalizer: float | Tensor | None = None
    ) -> Tensor:
        """The loss of ``input`` (logits ``[N, C, ...]``) for class indices ``target``."""
        return functional.softmax_focal_loss(
            input, target, normalizer=normalizer, **self._options()
        )
