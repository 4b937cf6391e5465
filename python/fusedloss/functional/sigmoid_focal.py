"""Sigmoid focal loss."""

from __future__ import annotations

import math

from torch import Tensor

from .. import _checks
from .._pointwise import FocalArguments, ending, pointwise_loss


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Sigmoid focal loss, the loss of dense detectors.

    .. math::
        L = w \, \alpha_t \, (1 - p_t)^\gamma \, \mathrm{BCE}(x, t), \qquad p = \sigma(x), \quad
        p_t = p t + (1 - p)(1 - t), \quad \alpha_t = \alpha t + (1 - \alpha)(1 - t)

    Args:
        input: logits ``[..., C]``, float32, float64, float16 or bfloat16, any strides.
        target: either of the input's shape (bool, integer or float; soft values in [0, 1] are
            allowed and not checked), or class indices of shape ``input.shape[:-1]`` (int64, int32,
            int16, uint8), where ``C`` or ``-1`` means background. No one-hot tensor is built.
        alpha: weight of positive targets in [0, 1]; a tensor ``[C]`` gives one for each entry of the
            last dimension; None or a negative number turns the balancing off.
        gamma: focusing exponent, any number >= 0.
        weight: factor of the loss, broadcastable to the input.
        ignore_index: class indices equal to it drop their row, targets of the input's shape equal to
            it drop their element: no loss, no gradient, not counted in the mean.
        label_smoothing: e in [0, 1]; the target becomes ``t (1 - e) + e / 2``.
        normalizer: number > 0 or tensor of one element that the ``"mean"`` divides by instead of the
            number of elements that are not ignored, for example the number of positive anchors
            (``.clamp(min=1)``: a tensor is not checked for 0). Read on the device. No effect on
            ``"sum"`` and ``"none"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. A mean over nothing is 0 with zero gradient.

    Returns:
        The loss: a scalar, or the input's shape for ``"none"``; float32 for half logits, else the
        input's dtype. First derivatives come from the fused kernels, second ones from the eager
        reference. So does everything where another argument than the input requires a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [-1, C] on the CPU. On a GPU its row's loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017 (arXiv:1708.02002).
    """
    name = "sigmoid_focal_loss"
    input = _checks.logits(name, input)
    target = _checks.elementwise_or_index_target(name, input, target)
    if isinstance(alpha, Tensor):
        _checks.per_class(name, "alpha", _checks.tensor(name, "alpha", alpha), input)
        _checks.same_device(name, "alpha", alpha, input)
    alpha, gamma, ignore_index, label_smoothing, reduction = check_sigmoid_focal_options(
        alpha, gamma, ignore_index, label_smoothing, reduction
    )
    weight = _checks.element_weight(name, weight, input)
    normalizer = _checks.normalizer(name, normalizer, input)
    if target.dim() != input.dim():
        _checks.debug_labels(name, target, input.size(-1), ignore_index, background=True)
    per_class = alpha if isinstance(alpha, Tensor) else None
    if per_class is not None and input.dim() == 0:
        per_class = per_class.reshape(())  # one number, like the input
    arguments = FocalArguments(
        -1.0 if alpha is None or isinstance(alpha, Tensor) else alpha,
        gamma,
        ignore_index,
        label_smoothing,
        *ending(normalizer, reduction),
    )
    return pointwise_loss(input, target, per_class, weight, normalizer, arguments)


def check_sigmoid_focal_options(
    alpha: float | Tensor | None,
    gamma: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[float | Tensor | None, float, int, float, str]:
    """The options that need no input to be checked, in their right types."""
    return _checks.focal_options(
        "sigmoid_focal_loss",
        alpha,
        gamma,
        ignore_index,
        label_smoothing,
        reduction,
        (-math.inf, 1.0),
    )
