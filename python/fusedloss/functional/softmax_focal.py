"""Softmax focal loss."""

from __future__ import annotations

import math

from torch import Tensor

from .. import _backend, _checks, _ops, reference
from .._autograd import differentiates, evaluate
from .._row_autograd import RowSoftmax, SoftmaxFocalArguments


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    normalizer: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Softmax focal loss: cross entropy that easy samples or pixels hardly count in.

    .. math::
        L = \alpha_t\, (1 - p_t)^\gamma \left[ (1 - \epsilon) (-\log p_t)
            + \frac{\epsilon}{C} \sum_j (-\log p_j) \right], \qquad p = \mathrm{softmax}(x)

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``, float32, float64, float16 or
            bfloat16, any strides.
        target: class indices (int64, int32, int16, uint8) of the input's shape without ``C``.
        alpha: a tensor ``[C]`` gives each class its factor, a number >= 0 all classes the same; None
            means 1.
        gamma: focusing exponent, any number >= 0. Gradients stay finite for gamma in (0, 1) too.
        ignore_index: rows with this class index have no loss and no gradient, whatever their logits,
            and are not counted in the mean.
        label_smoothing: epsilon in [0, 1], of the cross entropy; the factor stays that of the label.
        normalizer: number > 0 or tensor of one element that the ``"mean"`` divides by instead of the
            number of rows that are not ignored. Read on the device. No effect on ``"sum"`` and
            ``"none"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. A mean over nothing is 0 with zero gradient.

    Returns:
        The loss: a scalar, or for ``"none"`` the input's shape without ``C``; float32 for half logits,
        else the input's dtype. First derivatives come from the fused kernels, second ones from the
        eager reference. So does everything where alpha or normalizer require a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017 (arXiv:1708.02002), over a softmax.
    """
    name = "softmax_focal_loss"
    input = _checks.class_logits(name, input)
    target = _checks.index_target(name, input, target)
    alpha, gamma, ignore_index, label_smoothing, reduction = check_softmax_focal_options(
        alpha, gamma, ignore_index, label_smoothing, reduction
    )
    if isinstance(alpha, Tensor):
        if alpha.dim() == 0:
            alpha = alpha.expand(input.size(_ops.class_dim(input)))
        alpha = _checks.class_weight(name, "alpha", alpha, input)
    normalizer = _checks.normalizer(name, normalizer, input)
    _checks.debug_labels(name, target, input.size(_ops.class_dim(input)), ignore_index)
    normalizer = _ops.as_divisor(normalizer, input)
    if differentiates(target, alpha, normalizer) or not _backend.use_kernels(input):
        return reference.softmax_focal_loss(
            input,
            target,
            alpha=alpha,
            gamma=gamma,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            normalizer=normalizer,
            reduction=reduction,
        )
    arguments = SoftmaxFocalArguments(
        1.0 if alpha is None or isinstance(alpha, Tensor) else alpha,
        gamma,
        label_smoothing,
        normalizer if isinstance(normalizer, float) else 0.0,
        ignore_index,
        _ops.REDUCTIONS[reduction],
    )
    keep = "nothing"
    if differentiates(input):
        divisor = "rows" if normalizer is None else "known"
        classes = input.size(_ops.class_dim(input))
        early = _backend.row_gradient_in_forward(input, classes, reduction, divisor)
        keep = "gradient" if early else "saved"
    return evaluate(
        RowSoftmax,
        input,
        target,
        _ops.as_class_weight(alpha, input) if isinstance(alpha, Tensor) else None,
        normalizer if isinstance(normalizer, Tensor) else None,
        None,
        arguments,
        keep,
        False,
    )


def check_softmax_focal_options(
    alpha: float | Tensor | None,
    gamma: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[float | Tensor | None, float, int, float, str]:
    """The options that need no input to be checked, in their right types."""
    return _checks.focal_options(
        "softmax_focal_loss",
        alpha,
        gamma,
        ignore_index,
        label_smoothing,
        reduction,
        (0.0, math.inf),
    )
