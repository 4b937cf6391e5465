"""Hard example mining: losses of which only the hardest rows or elements count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from .. import _backend, _checks, _ops, reference
from .._autograd import differentiates, evaluate
from .._mining import WANTED, MinedBinaryCrossEntropyArguments, MinedCrossEntropyArguments
from .._mining_autograd import MinedBinaryCrossEntropy, MinedCrossEntropy


def ohem_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Online hard example mining: cross entropy of the pixels that are not yet learnt.

    .. math::
        L = \frac{1}{|K|} \sum_{i \in K} w_{t_i} (-\log p_i), \qquad
        K = \{ i : p_i < \tau \ \text{or}\ p_i \le p_{(k)} \}

    with p the probability of a pixel's own class, :math:`\tau` the threshold and
    :math:`p_{(k)}` the ``min_kept``-th smallest p. Nothing is sorted and no index list is made.

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``, float32, float64, float16 or
            bfloat16, any strides.
        target: class indices (int64, int32, int16, uint8) of the input's shape without ``C``.
        threshold: tau in [0, 1]; pixels with a smaller p always count. 0: only ``min_kept`` decides.
        min_kept: at least so many pixels of the whole input count (all where there are fewer). Pixels
            whose loss equals that of the last of them count too, so that the order of pixels never
            matters.
        weight: ``[C]``, one factor for each class's loss. Neither the selection nor the divisor knows
            of it.
        ignore_index: pixels with this class index have no loss and no gradient, whatever their logits,
            and are not counted.
        reduction: ``"mean"`` over the pixels that count, ``"sum"``, or ``"none"``, where all others
            are 0. A mean over nothing is 0 with zero gradient.

    Returns:
        The loss: a scalar, or for ``"none"`` the input's shape without ``C``; float32 for half logits,
        else the input's dtype. Forward keeps 4 bytes a pixel (8 for float64) and, on the CPU and unless
        ``gradient_schedule("recompute")`` is on, the gradient that backward completes. First
        derivatives come from the fused kernels, second ones from the eager reference on the same
        selection. Where weight requires a gradient the reference computes all.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining,
    2016 (arXiv:1604.03540), over pixels. docs/recipes.md names the options that give others' forms.
    """
    name = "ohem_cross_entropy_loss"
    threshold, min_kept, ignore_index, reduction = check_ohem_options(
        threshold, min_kept, ignore_index, reduction
    )
    bound = -math.log(threshold) if threshold > 0 else math.inf
    rule = (bound, WANTED["together"], min_kept, 0.0, True)
    options = {"threshold": threshold, "min_kept": min_kept}
    return _mined_rows(name, input, target, weight, rule, ignore_index, reduction, options)


def check_ohem_options(
    threshold: object, min_kept: object, ignore_index: object, reduction: object
) -> tuple[float, int, int, str]:
    """The options that need no input to be checked, in their right types."""
    name = "ohem_cross_entropy_loss"
    return (
        _checks.number(name, "threshold", threshold, low=0.0, high=1.0),
        _count(name, "min_kept", min_kept),
        _checks.integer(name, "ignore_index", ignore_index),
        _checks.reduction(name, reduction),
    )


def topk_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    k: int | float = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross entropy of the k hardest pixels, by number or by share.

    Args:
        input: and all that is not named here as in :func:`ohem_cross_entropy_loss`.
        target: see there.
        k: an int >= 0 is a number of pixels of the whole input; a float in (0, 1] a share of those
            that are not ignored, ``floor(k * valid)`` but at least 1. Exactly k count: pixels tied
            at the cut share what is left of k evenly.
        weight: see there.
        ignore_index: see there.
        reduction: see there; tied pixels carry their share in ``"none"``.

    Returns:
        As :func:`ohem_cross_entropy_loss`, which also tells the errors.

    Source: Wu et al., Bridging Category-level and Instance-level Semantic Image Segmentation, 2016
    (arXiv:1605.06885), which keeps the hardest pixels of each image.
    """
    name = "topk_cross_entropy_loss"
    k, ignore_index, reduction = check_topk_options(k, ignore_index, reduction)
    by_share = isinstance(k, float)
    rule = (math.inf, WANTED["fraction" if by_share else "number"])
    rest = (0, k, False) if by_share else (k, 0.0, False)
    options = {"k": k}
    return _mined_rows(
        name, input, target, weight, (*rule, *rest), ignore_index, reduction, options
    )


def check_topk_options(
    k: object, ignore_index: object, reduction: object
) -> tuple[int | float, int, str]:
    """The options that need no input to be checked, in their right types."""
    name = "topk_cross_entropy_loss"
    if isinstance(k, Integral):
        number: int | float = _count(name, "k", k)
    else:
        number = _checks.number(name, "k", k, low=0.0, high=1.0, open_low=True)
    ignore_index = _checks.integer(name, "ignore_index", ignore_index)
    return number, ignore_index, _checks.reduction(name, reduction)


def balanced_bce_loss(
    input: Tensor,
    target: Tensor,
    *,
    from_logits: bool = True,
    mask: Tensor | None = None,
    negative_ratio: float = 3.0,
    fallback_negatives: int = 0,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross entropy of all positives and of the hardest negatives.

    .. math::
        L = \frac{\sum_{i \in P} \ell_i + \sum_{i \in N_k} \ell_i}{|P| + k + \epsilon}, \qquad
        k = \min(|N|, \lfloor r |P| \rfloor), \qquad
        \ell = -t \log p - (1 - t) \log (1 - p)

    with :math:`N_k` the k negatives of the largest loss and r the ratio. Exactly k negatives count:
    those tied at the cut share what is left of k evenly.

    Args:
        input: logits of any shape, float32, float64, float16 or bfloat16, any strides.
        target: of the input's shape, numbers in [0, 1] (bool, integer or float; not checked). Those
            above 1/2 are positives; the loss takes the number as it is.
        from_logits: False: ``input`` holds probabilities in [0, 1], whose logarithms are taken as at
            least -100, as torch does.
        mask: elements where it is 0 have no loss and no gradient, whatever their logits, and are not
            counted (bool, integer or float); broadcastable to the input.
        negative_ratio: r >= 0, negatives for each positive.
        fallback_negatives: so many negatives count where there are no positives. With the default, 0,
            the loss of an input without positives is 0 with zero gradient.
        eps: >= 0, added to the divisor of the mean.
        reduction: ``"mean"`` over what counts, ``"sum"`` for the numerator, or ``"none"``, where all
            others are 0 and tied ones carry their share. A mean over nothing is 0.

    Returns:
        The loss: a scalar, or for ``"none"`` the input's shape; float32 for half logits, else the
        input's dtype. Forward keeps 4 bytes an element (8 for float64). First derivatives come from
        the fused kernels, second ones from the eager reference on the same selection. Where target
        requires a gradient the reference computes all.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.

    Source: Liao et al., Real-time Scene Text Detection with Differentiable Binarization, 2020
    (arXiv:1911.08947).
    """
    name = "balanced_bce_loss"
    options = check_negative_options(
        name, from_logits, negative_ratio, fallback_negatives, eps, reduction
    )
    return _mined_elements(name, input, target, mask, None, options)


def hard_negative_mining_loss(
    input: Tensor,
    target: Tensor,
    *,
    dim: int | Sequence[int],
    from_logits: bool = True,
    mask: Tensor | None = None,
    negative_ratio: float = 3.0,
    fallback_negatives: int = 0,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross entropy of all positives and of each image's hardest negatives.

    :func:`balanced_bce_loss`, but every slice along ``dim`` mines for itself: with scores
    ``[N, anchors]`` and ``dim=1`` every image takes its own 3 negatives for each of its positives, as
    single-shot detectors do. There is one division, by all that were selected plus ``eps``.

    Args:
        input: and all that is not named here as in :func:`balanced_bce_loss`.
        target: see there.
        dim: the dimension or dimensions that number the elements of a slice; the others number slices.
        from_logits: see there.
        mask: see there.
        negative_ratio: see there.
        fallback_negatives: see there, of each slice.
        eps: see there.
        reduction: see there.

    Returns:
        As :func:`balanced_bce_loss`, which also tells the errors.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, 2016 (arXiv:1512.02325), section 2.2.
    """
    name = "hard_negative_mining_loss"
    options = check_negative_options(
        name, from_logits, negative_ratio, fallback_negatives, eps, reduction
    )
    return _mined_elements(name, input, target, mask, check_dims(name, dim), options)


def check_negative_options(
    name: str,
    from_logits: object,
    negative_ratio: object,
    fallback_negatives: object,
    eps: object,
    reduction: object,
) -> tuple[bool, float, int, float, str]:
    """The options that need no input to be checked, in their right types."""
    return (
        _checks.flag(name, "from_logits", from_logits),
        _checks.number(name, "negative_ratio", negative_ratio, low=0.0),
        _count(name, "fallback_negatives", fallback_negatives),
        _checks.number(name, "eps", eps, low=0.0),
        _checks.reduction(name, reduction),
    )


def check_dims(name: str, dim: object) -> tuple[int, ...]:
    """One dimension or several, as a tuple; whether the input has them is seen with the input."""
    given = dim if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    dims = tuple(_checks.integer(name, "dim", d) for d in given)
    if not dims:
        raise ValueError(f"{name}: dim is empty, accepted are one dimension or several")
    return dims


def _count(name: str, argument: str, value: object) -> int:
    number = _checks.integer(name, argument, value)
    if number < 0:
        raise ValueError(f"{name}: {argument} is {number}, accepted are integers >= 0")
    return number


def _mined_rows(
    name: str,
    input: object,
    target: object,
    weight: object,
    rule: tuple[float, int, int, float, bool],
    ignore_index: int,
    reduction: str,
    options: dict[str, int | float],
) -> Tensor:
    """The loss called `name` over rows, whose `options` have made the rule."""
    x = _checks.class_logits(name, input)
    t = _checks.index_target(name, x, target)
    w = None if weight is None else _checks.class_weight(name, "weight", weight, x)
    _checks.debug_labels(name, t, x.size(_ops.class_dim(x)), ignore_index)
    if differentiates(w) or not _backend.use_kernels(x):
        form = getattr(reference, name)
        given = {"weight": w, "ignore_index": ignore_index, "reduction": reduction}
        loss: Tensor = form(x, t, **options, **given)
        return loss
    arguments = MinedCrossEntropyArguments(*rule, ignore_index, _ops.REDUCTIONS[reduction])
    call = (x, t, _ops.as_class_weight(w, x), arguments, _begins_gradient(x, arguments))
    if torch.compiler.is_compiling():
        return evaluate(MinedCrossEntropy, *call)
    try:
        return evaluate(MinedCrossEntropy, *call)
    except IndexError as error:  # which knows the family's name only
        raise IndexError(str(error).replace("mined cross entropy", name, 1)) from None


def _begins_gradient(x: Tensor, arguments: MinedCrossEntropyArguments) -> bool:
    """Whether forward writes the gradient of what a threshold selects: on the CPU, which then has the
    exponentials at hand, unless backward may not finish it in place.
    """
    return (
        _backend.on_native_cpu(x)
        and arguments.threshold < math.inf
        and arguments.reduction != _ops.REDUCTIONS["none"]
        and differentiates(x)
        and _backend.gradient_in_forward(x)
        and not torch.compiler.is_compiling()
    )


def _mined_elements(
    name: str,
    input: object,
    target: object,
    mask: object,
    dims: tuple[int, ...] | None,
    options: tuple[bool, float, int, float, str],
) -> Tensor:
    """The loss called `name` over elements, of slices along `dims`; None: of one slice."""
    from_logits, ratio, fallback, eps, reduction = options
    x = _checks.logits(name, input)
    t = _checks.tensor(name, "target", target)
    _checks.same_device(name, "target", t, x)
    if t.shape != x.shape:
        raise ValueError(
            f"{name}: target has shape {tuple(t.shape)}, accepted is input's {tuple(x.shape)}"
        )
    m = None
    if mask is not None:
        m = _checks.tensor(name, "mask", mask)
        _checks.same_device(name, "mask", m, x)
        _checks.broadcastable(name, "mask", m, x)
    mined = tuple(range(x.dim())) if dims is None else _positive_dims(name, dims, x.dim())
    if differentiates(t) or not _backend.use_kernels(x):
        return reference.hard_negative_mining_loss(
            x,
            t,
            dim=mined,
            from_logits=from_logits,
            mask=m,
            negative_ratio=ratio,
            fallback_negatives=fallback,
            eps=eps,
            reduction=reduction,
        )
    arguments = MinedBinaryCrossEntropyArguments(
        from_logits,
        sum(1 << d for d in mined),
        ratio,
        fallback,
        eps,
        _ops.REDUCTIONS[reduction],
    )
    return evaluate(MinedBinaryCrossEntropy, x, t, m, arguments)


def _positive_dims(name: str, dims: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    for d in dims:
        if not -ndim <= d < ndim:
            raise ValueError(
                f"{name}: dim has {d}, accepted are {-ndim} to {ndim - 1} for input's {ndim} dimensions"
            )
    found = tuple(sorted(d % ndim for d in dims))
    if len(set(found)) < len(found):
        raise ValueError(f"{name}: dim {dims} names a dimension twice")
    return found
