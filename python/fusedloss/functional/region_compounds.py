"""Dice joined with cross entropy, and with focal loss."""

from __future__ import annotations

from torch import Tensor

from ._region_loss import region_loss


def dice_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Dice loss and cross entropy of the same logits, which are read as often as for one of them.

    .. math::
        L = \lambda_d\, \mathrm{dice}(x, t) + \lambda_c\, \mathrm{CE}(x, t)

    Args:
        input: logits; shapes and dtypes as in :func:`dice_loss`.
        target: as in :func:`dice_loss`; soft multiclass targets are cross entropy's probabilities.
        mode: ``"multiclass"`` joins softmax cross entropy; ``"multilabel"`` and ``"binary"`` join binary
            cross entropy, whose mean is over elements.
        dice_weight: factor >= 0 of the dice loss.
        ce_weight: factor >= 0 of the cross entropy.
        class_weight: ``[C]``, cross entropy's class weights, by whose sum over the labels its mean
            divides; ``"multiclass"`` only.
        label_smoothing: epsilon in [0, 1] of the cross entropy; dice sees the labels as they are. Binary
            targets become ``t (1 - e) + e / 2``.
        smoothing: ``"uniform"`` or ``"others"``, as in :func:`cross_entropy`.
        smooth: dice's, and all that follows: see :func:`dice_loss`.
        squared: see there.
        batch: see there.
        include_background: see there; cross entropy always has all classes.
        ignore_index: pixels or elements with this target count in neither term.
        weight: ``[C]``, dice's class weights.
        absent: see there.
        log: see there.
        reduction: ``"mean"`` or ``"sum"``, of each term by itself. A mean over nothing is 0, that of
            cross entropy too.

    Returns:
        The loss, a scalar; float32 for half logits, else the input's dtype. Beside the gradient, 8 bytes
        a pixel are kept (12 with probabilities, or weights and smoothing together). First derivatives
        come from the fused kernels, second ones from the eager reference. So does everything where
        another argument than the input requires a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU the loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    Source: Isensee et al., nnU-Net, 2018 (arXiv:1809.10486).
    """
    return region_loss(
        "dice_cross_entropy_loss",
        input,
        target,
        {
            "mode": mode,
            "dice_weight": dice_weight,
            "ce_weight": ce_weight,
            "class_weight": class_weight,
            "label_smoothing": label_smoothing,
            "smoothing": smoothing,
            "smooth": smooth,
            "squared": squared,
            "batch": batch,
            "include_background": include_background,
            "ignore_index": ignore_index,
            "weight": weight,
            "absent": absent,
            "log": log,
            "reduction": reduction,
        },
    )


def dice_focal_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Dice loss and focal loss of the same logits, which are read as often as for one of them.

    .. math::
        L = \lambda_d\, \mathrm{dice}(x, t) + \lambda_f\, \mathrm{focal}(x, t)

    Args:
        input: logits; shapes and dtypes as in :func:`dice_loss`.
        target: as in :func:`dice_loss`, but for ``"multiclass"`` class indices only: the focal factor is
            that of a label.
        mode: ``"multiclass"`` joins softmax focal loss; ``"multilabel"`` and ``"binary"`` join sigmoid
            focal loss, whose mean is over elements.
        dice_weight: factor >= 0 of the dice loss.
        focal_weight: factor >= 0 of the focal loss.
        alpha: the focal loss's, as in :func:`softmax_focal_loss` or :func:`sigmoid_focal_loss`; a tensor
            ``[C]`` has one number for each class, which is dimension 1. None: no balancing.
        gamma: focusing exponent, any number >= 0.
        label_smoothing: the focal loss's, in [0, 1]; dice sees the labels as they are.
        smooth: dice's, and all that follows: see :func:`dice_loss`.
        squared: see there.
        batch: see there.
        include_background: see there; the focal loss always has all classes.
        ignore_index: pixels or elements with this target count in neither term.
        weight: ``[C]``, dice's class weights.
        absent: see there.
        log: see there.
        reduction: ``"mean"`` or ``"sum"``, of each term by itself. A mean over nothing is 0.

    Returns:
        The loss, a scalar, as :func:`dice_cross_entropy_loss` returns it, which also tells the errors.

    Source: Zhu et al., AnatomyNet, 2018 (arXiv:1808.05238); Lin et al., Focal Loss for Dense Object
    Detection, 2017 (arXiv:1708.02002).
    """
    return region_loss(
        "dice_focal_loss",
        input,
        target,
        {
            "mode": mode,
            "dice_weight": dice_weight,
            "focal_weight": focal_weight,
            "alpha": alpha,
            "gamma": gamma,
            "label_smoothing": label_smoothing,
            "smooth": smooth,
            "squared": squared,
            "batch": batch,
            "include_background": include_background,
            "ignore_index": ignore_index,
            "weight": weight,
            "absent": absent,
            "log": log,
            "reduction": reduction,
        },
    )
