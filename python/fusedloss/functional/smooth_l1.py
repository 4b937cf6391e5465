"""Smooth L1 loss and L1 loss."""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from .._pointwise import SmoothL1Arguments, ending, pointwise_loss


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    beta: float = 1.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Smooth L1 loss, the loss of box regression: a parabola up to ``beta``, a line beyond.

    With :math:`d = x - t`, for every element:

    .. math:: L = w \cdot \begin{cases} d^2 / (2 \beta) & |d| < \beta \\ |d| - \beta / 2 & \text{else}
        \end{cases}

    Values and gradients are those of :func:`torch.nn.functional.smooth_l1_loss`, but that NaN has a NaN
    gradient for any ``beta``, where torch gives 0 with ``beta`` 0. Times ``beta`` it is torch's
    ``huber_loss`` with that ``delta``. The arithmetic is that of the input, float32 for half types: a
    target of a wider dtype is rounded to it.

    Args:
        input: predictions of any shape, for example box deltas ``[N, 4]``; float32, float64, float16
            or bfloat16, any strides.
        target: same shape, any float, integer or bool dtype.
        beta: where the parabola ends, >= 0; with 0 it is the L1 loss, whose gradient at 0 is 0.
        weight: factor of the loss, broadcastable to the input, for example ``[N, 1]``. It leaves the
            divisor of the mean as it is. There is no ``ignore_index``: a weight of 0 drops what is
            finite.
        normalizer: number > 0 or tensor of one element that the ``"mean"`` divides by instead of the
            number of elements, for example the number of positive anchors (``.clamp(min=1)``: a
            tensor is not checked for 0). Read on the device. No effect on ``"sum"`` and ``"none"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. A mean over nothing is NaN, as in torch.

    Returns:
        The loss: a scalar, or the input's shape for ``"none"``; float32 for half inputs, else the
        input's dtype. First derivatives come from the fused kernels, second ones from the eager
        reference. So does everything where another argument than the input requires a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.

    Source: Girshick, Fast R-CNN, 2015 (arXiv:1504.08083).
    """
    beta = _checks.number("smooth_l1_loss", "beta", beta, low=0.0)
    elements = _checks.elements("smooth_l1_loss", input, target, weight, normalizer, reduction)
    return pointwise_loss(*elements, SmoothL1Arguments(beta, *ending(normalizer, reduction)))


def l1_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""L1 loss: :math:`w \, |x - t|` of every element, whose gradient at 0 is 0.

    It is :func:`smooth_l1_loss` with ``beta`` 0, and takes its other arguments. Without a weight values
    and gradients are those of :func:`torch.nn.functional.l1_loss` (of NaN the gradient is NaN); with
    one, the mean of torch divides by the sum of the weights, which is ``normalizer=weight.sum()`` here.
    """
    elements = _checks.elements("l1_loss", input, target, weight, normalizer, reduction)
    return pointwise_loss(*elements, SmoothL1Arguments(0.0, *ending(normalizer, reduction)))
