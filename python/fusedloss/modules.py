"""The losses as modules: the options are given once, the call takes logits and targets."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import _checks, functional
from .functional.cross_entropy import check_cross_entropy_options, check_nll_options
from .functional.sigmoid_focal import check_sigmoid_focal_options
from .functional.softmax_focal import check_softmax_focal_options

__all__ = [
    "CrossEntropyLoss",
    "LabelSmoothingCrossEntropyLoss",
    "NLLLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
]


def _check_weight(function: str, weight: object) -> None:
    """A class weight as far as it can be judged without logits."""
    if weight is None:
        return
    shape = tuple(_checks.tensor(function, "weight", weight).shape)
    if len(shape) != 1:
        raise ValueError(f"{function}: weight has shape {shape}, accepted are (C,)")


class _LossModule(nn.Module):
    """A loss whose options are attributes of their own names."""

    _option_names: tuple[str, ...]

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._option_names}

    def extra_repr(self) -> str:
        """The options, as ``repr`` shows them: of a tensor its length."""
        return ", ".join(
            f"{name}=tensor[{value.numel()}]" if isinstance(value, Tensor) else f"{name}={value!r}"
            for name, value in self._options().items()
        )


class _FocalLoss(_LossModule):
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


class SigmoidFocalLoss(_FocalLoss):
    """Sigmoid focal loss; options and shapes as in :func:`fusedloss.sigmoid_focal_loss`.

    A tensor ``alpha`` becomes a buffer: it moves with ``.to()`` and is saved with the module.
    """

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

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of ``input`` (logits ``[..., C]``) for ``target``, dense or class indices."""
        return functional.sigmoid_focal_loss(
            input, target, weight=weight, normalizer=normalizer, **self._options()
        )


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


class CrossEntropyLoss(_LossModule):
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


class NLLLoss(_LossModule):
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
