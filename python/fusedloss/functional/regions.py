"""Dice, Tversky, Jaccard and generalized dice losses."""

from __future__ import annotations

from torch import Tensor

from ._region_loss import region_loss


def dice_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Soft dice loss: how far each predicted region is from covering the true one.

    .. math::
        L_{nc} = w_c \left(1 - \frac{2 I_{nc} + s_0}{P_{nc} + T_{nc} + s_1}\right), \qquad
        I = \sum_i p_i t_i, \quad P = \sum_i p_i, \quad T = \sum_i t_i

    over the pixels i of class c in sample n. Neither one-hot targets nor probabilities are made: the
    logits are read once for the sums, and once more for the gradient.

    Args:
        input: logits, float32, float64, float16 or bfloat16, any strides. ``[N, C]`` or
            ``[N, C, d1, ...]``; with ``mode="binary"`` ``[N, 1, ...]`` or ``[N, ...]``. ``[C]`` is one
            sample of one pixel.
        target: for ``"multiclass"`` class indices (int64, int32, int16, uint8) of the input's shape
            without ``C``, or soft targets (floating point) of its shape; for ``"multilabel"`` numbers
            in [0, 1] (bool, integer or float; not checked) of the input's shape; for ``"binary"`` the
            same, with or without the dimension of size 1.
        mode: ``"multiclass"`` (softmax over the classes), ``"multilabel"`` (a sigmoid for each) or
            ``"binary"`` (a sigmoid, one region a sample).
        from_logits: False: ``input`` holds probabilities, taken as they are.
        smooth: s >= 0, added to numerator and denominator; a pair gives ``(s0, s1)``. With 0 a region
            that is empty in prediction and target is 0 / 0, NaN, unless ``absent="skip"``.
        squared: P and T are sums of squares (V-Net's form).
        batch: regions are those of the whole batch: pools I, P and T over N.
        include_background: False leaves class 0 out of the loss and of the mean. It stays in the
            softmax.
        ignore_index: pixels (``"multiclass"``) or elements whose target equals it count in no sum and
            have no gradient, whatever their logits; no effect with soft multiclass targets. None: all
            count.
        weight: ``[C]``, one factor for each class's loss; with ``include_background=False`` entry 0
            is not used.
        absent: ``"skip"`` drops regions without a target pixel: loss 0, no gradient, not counted in the
            mean. ``"keep"`` has them pull their probabilities down.
        log: the loss of a region is ``-log`` of the ratio rather than 1 minus it.
        reduction: ``"mean"`` over the regions that are left (weights do not divide), ``"sum"`` or
            ``"none"``. A mean over nothing is 0 with zero gradient, and so is an empty input.

    Returns:
        The loss: a scalar, or for ``"none"`` ``[N, C]``, with ``batch`` ``[C]``, without background one
        class less; float32 for half logits, else the input's dtype. Sums are taken in float32 and
        float64, never in a half type. First derivatives come from the fused kernels, second ones from
        the eager reference. So does everything where target or weight require a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU the loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    The defaults are those of MONAI's ``DiceLoss(to_onehot_y=True, softmax=True)``; docs/recipes.md has a
    table of the options that give MONAI's and segmentation-models-pytorch's losses.

    Source: Milletari et al., V-Net, 2016 (arXiv:1606.04797).
    """
    return region_loss(
        "dice_loss",
        input,
        target,
        {
            "mode": mode,
            "from_logits": from_logits,
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


def jaccard_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Soft Jaccard loss, also called IoU loss.

    .. math::
        L_{nc} = w_c \left(1 - \frac{I_{nc} + s_0}{P_{nc} + T_{nc} - I_{nc} + s_1}\right)

    Arguments, shapes, results and errors are those of :func:`dice_loss`.

    Source: Rahman and Wang, Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation, 2016.
    """
    return region_loss(
        "jaccard_loss",
        input,
        target,
        {
            "mode": mode,
            "from_logits": from_logits,
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


def tversky_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Tversky loss: dice with a price of its own for each kind of error, and its focal form.

    .. math::
        L_{nc} = w_c \left(1 - \frac{I_{nc} + s_0}
            {I_{nc} + \alpha\, FP_{nc} + \beta\, FN_{nc} + s_1}\right)^{\gamma}, \qquad
        FP = P - I, \quad FN = T - I

    Args:
        input: and all that is not named here as in :func:`dice_loss`.
        target: see there.
        alpha: factor >= 0 of false positives. 0.5 for both is dice, 1 for both Jaccard.
        beta: factor >= 0 of false negatives; beta > alpha seeks recall.
        gamma: exponent > 0 of each region's loss. Above 1 it makes much of regions that are far off,
            below 1 (the paper's 0.75) of those that are close. Where the ratio is 1 or more, value and
            slope are taken for 0.
        mode: see :func:`dice_loss`.
        from_logits: see there.
        smooth: see there.
        batch: see there.
        include_background: see there.
        ignore_index: see there.
        weight: see there.
        absent: see there.
        log: see there; not together with a gamma other than 1.
        reduction: see there.

    Returns:
        As :func:`dice_loss`, which also tells the errors.

    Source: Salehi et al., Tversky loss function for image segmentation using 3D fully convolutional
    deep networks, 2017 (arXiv:1706.05721); gamma of Abraham and Khan, A Novel Focal Tversky loss
    function, 2019 (arXiv:1810.07842), whose exponent 1/gamma is this gamma.
    """
    return region_loss(
        "tversky_loss",
        input,
        target,
        {
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "mode": mode,
            "from_logits": from_logits,
            "smooth": smooth,
            "batch": batch,
            "include_background": include_background,
            "ignore_index": ignore_index,
            "weight": weight,
            "absent": absent,
            "log": log,
            "reduction": reduction,
        },
    )


def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Generalized dice loss: one ratio for all classes of a sample, small regions weighing more.

    .. math::
        L_n = 1 - \frac{2 \sum_c w_{nc} I_{nc} + s_0}{\sum_c w_{nc} (P_{nc} + T_{nc}) + s_1}, \qquad
        w_{nc} = 1 / T_{nc}^2

    Args:
        input: and all that is not named here as in :func:`dice_loss`.
        target: see there.
        weighting: ``"square"`` for 1 / T\ :sup:`2`, ``"simple"`` for 1 / T, ``"uniform"`` for 1. The
            infinite weight of an absent class is replaced by the sample's largest finite one.
        mode: see :func:`dice_loss`.
        from_logits: see there.
        smooth: see there.
        squared: see there.
        batch: see there: one ratio for the whole batch.
        include_background: see there.
        ignore_index: see there.
        weight: ``[C]``, one factor for each class's weight.
        absent: ``"skip"`` gives absent classes the weight 0; a sample without any class is not counted
            in the mean.
        log: see there.
        reduction: ``"mean"`` over the samples, ``"sum"`` or ``"none"``, which has the shape ``[N]``, with
            ``batch`` ``[1]``.

    Returns:
        As :func:`dice_loss`, which also tells the errors.

    Source: Sudre et al., Generalised Dice overlap as a deep learning loss function for highly
    unbalanced segmentations, 2017 (arXiv:1707.03237).
    """
    return region_loss(
        "generalized_dice_loss",
        input,
        target,
        {
            "weighting": weighting,
            "mode": mode,
            "from_logits": from_logits,
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
