"""The region losses as modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import functional
from .._region_checks import check_region_options
from ._base import LossModule


class _RegionLoss(LossModule):
    """What the region losses have in common: checked options, tensors among them as buffers."""

    _function: str

    def __init__(self, **options: Any) -> None:
        super().__init__()
        # Wrong options are refused here rather than at the first batch.
        check_region_options(self._function, options)
        self._option_names = tuple(options)
        for name, value in options.items():
            if isinstance(value, Tensor) or name in ("weight", "class_weight"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` for ``target``, of the shapes that the function takes."""
        loss: Tensor = getattr(functional, self._function)(input, target, **self._options())
        return loss


class DiceLoss(_RegionLoss):
    """Dice loss; options and shapes as in :func:`fusedloss.dice_loss`.

    Tensors among the options become buffers: they move with ``.to()`` and are saved with the module.
    """

    _function = "dice_loss"

    def __init__(
        self,
        *,
        mode: str = "multiclass",
        from_logits: bool = True,
        smooth: float | tuple[float, float] = 1e-5,
        squared: bool = False,
        batch: bool = False,
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        absent: str = "keep",
        log: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            mode=mode,
            from_logits=from_logits,
            smooth=smooth,
            squared=squared,
            batch=batch,
            include_background=include_background,
            ignore_index=ignore_index,
            weight=weight,
            absent=absent,
            log=log,
            reduction=reduction,
        )


class JaccardLoss(_RegionLoss):
    """Jaccard (IoU) loss; options and shapes as in :func:`fusedloss.jaccard_loss`.

    Tensors among the options become buffers: they move with ``.to()`` and are saved with the module.
    """

    _function = "jaccard_loss"

    def __init__(
        self,
        *,
        mode: str = "multiclass",
        from_logits: bool = True,
        smooth: float | tuple[float, float] = 1e-5,
        squared: bool = False,
        batch: bool = False,
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        absent: str = "keep",
        log: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            mode=mode,
            from_logits=from_logits,
            smooth=smooth,
            squared=squared,
            batch=batch,
            include_background=include_background,
            ignore_index=ignore_index,
            weight=weight,
            absent=absent,
            log=log,
            reduction=reduction,
        )


class TverskyLoss(_RegionLoss):
    """Tversky loss and its focal form; options and shapes as in :func:`fusedloss.tversky_loss`.

    Tensors among the options become buffers: they move with ``.to()`` and are saved with the module.
    """

    _function = "tversky_loss"

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        mode: str = "multiclass",
        from_logits: bool = True,
        smooth: float | tuple[float, float] = 1e-5,
        batch: bool = False,
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        absent: str = "keep",
        log: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            mode=mode,
            from_logits=from_logits,
            smooth=smooth,
            batch=batch,
            include_background=include_background,
            ignore_index=ignore_index,
            weight=weight,
            absent=absent,
            log=log,
            reduction=reduction,
        )


class GeneralizedDiceLoss(_RegionLoss):
    """Generalized dice loss; options and shapes as in :func:`fusedloss.generalized_dice_loss`.

    Tensors among the options become buffers: they move with ``.to()`` and are saved with the module.
    """

    _function = "generalized_dice_loss"

    def __init__(
        self,
        *,
        weighting: str = "square",
        mode: str = "multiclass",
        from_logits: bool = True,
        smooth: float | tuple[float, float] = 1e-5,
        squared: bool = False,
        batch: bool = False,
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        absent: str = "keep",
        log: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weighting=weighting,
            mode=mode,
            from_logits=from_logits,
            smooth=smooth,
            squared=squared,
            batch=batch,
            include_background=include_background,
            ignore_index=ignore_index,
            weight=weight,
            absent=absent,
            log=log,
            reduction=reduction,
        )


class DiceCrossEntropyLoss(_RegionLoss):
    """Dice and cross entropy; options and shapes as in :func:`fusedloss.dice_cross_entropy_loss`.

    Tensors among the options become buffers: they move with ``.to()`` and are saved with the module.
    """

    _function = "dice_cross_entropy_loss"

    def __init__(
        self,
        *,
        mode: str = "multiclass",
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        smoothing: str = "uniform",
        smooth: float | tuple[float, float] = 1e-5,
        squared: bool = False,
        batch: bool = False,
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        absent: str = "keep",
        log: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            mode=mode,
            dice_weight=dice_weight,
            ce_weight=ce_weight,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            smoothing=smoothing,
            smooth=smooth,
            squared=squared,
            batch=batch,
            include_background=include_background,
            ignore_index=ignore_index,
            weight=weight,
            absent=absent,
            log=log,
            reduction=reduction,
        )


class DiceFocalLoss(_RegionLoss):
    """Dice and focal loss; options and shapes as in :func:`fusedloss.dice_focal_loss`.

    Tensors among the options become buffers: they move with ``.to()`` and are saved with the module.
    """

    _function = "dice_focal_loss"

    def __init__(
        self,
        *,
        mode: str = "multiclass",
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        smooth: float | tuple[float, float] = 1e-5,
        squared: bool = False,
        batch: bool = False,
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
        absent: str = "keep",
        log: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            mode=mode,
            dice_weight=dice_weight,
            focal_weight=focal_weight,
            alpha=alpha,
            gamma=gamma,
            label_smoothing=label_smoothing,
            smooth=smooth,
            squared=squared,
            batch=batch,
            include_background=include_background,
            ignore_index=ignore_index,
            weight=weight,
            absent=absent,
            log=log,
            reduction=reduction,
        )
