"""The losses as modules: the options are given once, the call takes logits and targets."""

from __future__ import annotations

from torch import Tensor, nn

from . import functional

__all__ = ["SigmoidFocalLoss"]


class SigmoidFocalLoss(nn.Module):
    """Sigmoid focal loss; options and shapes as in :func:`fusedloss.sigmoid_focal_loss`.

    A tensor ``alpha`` becomes a buffer: it moves with ``.to()`` and is saved with the module.
    """

    alpha: float | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor | None = 0.25,
        gamma: float = 2.0,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
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
        # Wrong options are refused here rather than at the first batch.
        functional.check_sigmoid_focal_options(
            alpha, gamma, ignore_index, label_smoothing, reduction
        )

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
            input,
            target,
            alpha=self.alpha,
            gamma=self.gamma,
            weight=weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            normalizer=normalizer,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The options, as ``repr`` shows them."""
        alpha = f"tensor[{self.alpha.numel()}]" if isinstance(self.alpha, Tensor) else self.alpha
        return (
            f"alpha={alpha}, gamma={self.gamma}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )
