"""Cross entropy and negative log-likelihood as modules."""

from __future__ import annotations

from torch import Tensor

from .. import _checks, functional
from ..functional.cross_entropy import check_cross_entropy_options, check_nll_options
from ._base import LossModule


def _check_weight(function: str, weight: object) -> None:
    """A class weight as far as it can be judged without logits."""
    if weight is None:
        return
    shape = tuple(_checks.tensor(function, "weight", weight).shape)
    if len(shape) != 1:
        raise ValueError(f"{function}: weight has shape {shape}, accepted are (C,)")


class CrossEntropyLoss(LossModule):
    """Cross entropy; options and shapes as in :func:`fusedloss.cross_entropy`.

    A drop-in for :class:`torch.nn.CrossEntropyLoss`: ``weight`` is a buffer here too.
    """

    weight: Tensor | None
    _option_names = (
        "weight",
        "ignore_index",
        "reduction",
        "label_smoothing",
        "smoothing",
        "z_loss",
        "inplace_backward",
    )

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        smoothing: str = "uniform",
        z_loss: float = 0.0,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__()
        check_cross_entropy_options(
            ignore_index, reduction, label_smoothing, smoothing, z_loss, inplace_backward
        )
        _check_weight("cross_entropy", weight)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.smoothing = smoothing
        self.z_loss = z_loss
        self.inplace_backward = inplace_backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` (logits ``[N, C, ...]``) for class indices or probabilities."""
        return functional.cross_entropy(input, target, **self._options())


class LabelSmoothingCrossEntropyLoss(CrossEntropyLoss):
    """:class:`CrossEntropyLoss` that smooths by default, its first argument being epsilon."""

    def __init__(
        self,
        label_smoothing: float = 0.1,
        *,
        smoothing: str = "uniform",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        z_loss: float = 0.0,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            smoothing=smoothing,
            z_loss=z_loss,
            inplace_backward=inplace_backward,
        )


class NLLLoss(LossModule):
    """Negative log-likelihood; options and shapes as in :func:`fusedloss.nll_loss`."""

    weight: Tensor | None
    _option_names = ("weight", "ignore_index", "reduction")

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_nll_options(ignore_index, reduction)
        _check_weight("nll_loss", weight)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` (log-probabilities ``[N, C, ...]``) for class indices ``target``."""
        return functional.nll_loss(input, target, **self._options())
