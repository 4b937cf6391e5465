"""Cross entropy and negative log-likelihood."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, _ops, reference
from .._autograd import differentiates, evaluate, may_overwrite
from .._row_autograd import CrossEntropyArguments, RowSoftmax


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
    inplace_backward: bool = False,
) -> Tensor:
    r"""Cross entropy over logits, as :func:`torch.nn.functional.cross_entropy`, and more.

    .. math::
        L = (1 - \epsilon)\, w_t\, (\mathrm{lse} - x_t)
            + \frac{\epsilon}{C} \sum_j w_j (\mathrm{lse} - x_j) + z\, \mathrm{lse}^2,
        \qquad \mathrm{lse} = \log \sum_j e^{x_j}

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``, float32, float64, float16 or
            bfloat16, any strides.
        target: class indices (int64, int32, int16, uint8) of the input's shape without ``C``, or
            probabilities (floating point) of the input's shape.
        weight: ``[C]``, one factor for each class.
        ignore_index: rows with this class index have no loss and no gradient, whatever their logits,
            and are not counted in the mean. No effect with probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean of class-index targets divides by the
            sum of their weights, that of probabilities by the number of rows. A mean over nothing is
            NaN, as in torch.
        label_smoothing: epsilon in [0, 1].
        smoothing: ``"uniform"`` spreads epsilon over all classes, as torch does; ``"others"`` gives
            epsilon / (C - 1) to the wrong classes only (fairseq, Megatron, hand-written losses). With
            one class, ``"others"`` smooths nothing.
        z_loss: factor z >= 0 of lse\ :sup:`2`, which keeps logits from drifting. Not weighted by
            class; in the mean divided by the number of rows that are not ignored.
        inplace_backward: let backward write the gradient over the memory of ``input``: it saves one
            tensor of its size, and **destroys the logits** and whatever else is a view of them; an
            operation that saved them for its own backward raises autograd's error about in-place
            changes. A new tensor is taken where that memory is not free: ``input`` is a leaf, the
            graph is kept, elements of ``input`` share a place, under ``torch.compile``, and under
            hooks on saved tensors, as in checkpointing.

    Returns:
        The loss: a scalar, or for ``"none"`` the input's shape without ``C``; float32 for half logits,
        else the input's dtype. First derivatives come from the fused kernels, second ones from the
        eager reference. So does everything where target or weight require a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    Source: label smoothing of Szegedy et al., Rethinking the Inception Architecture, 2016
    (arXiv:1512.00567); z-loss of Chowdhery et al., PaLM, 2022 (arXiv:2204.02311).
    """
    name = "cross_entropy"
    input = _checks.class_logits(name, input)
    target = _checks.index_or_probability_target(name, input, target)
    if weight is not None:
        weight = _checks.class_weight(name, "weight", weight, input)
    ignore_index, reduction, label_smoothing, smoothing, z_loss, inplace_backward = (
        check_cross_entropy_options(
            ignore_index, reduction, label_smoothing, smoothing, z_loss, inplace_backward
        )
    )
    indexed = target.dim() != input.dim()
    if indexed:
        _checks.debug_labels(name, target, input.size(_ops.class_dim(input)), ignore_index)
    if differentiates(target, weight) or not _backend.use_kernels(input):
        return reference.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            smoothing=smoothing,
            z_loss=z_loss,
        )
    # Two divisors, which only the CPU knows before it writes a gradient.
    two_divisors = indexed and weight is not None and z_loss > 0 and reduction == "mean"
    in_place = inplace_backward and may_overwrite(input)
    keep = "nothing"
    if differentiates(input):
        divisor = "known" if not indexed else "rows" if weight is None else "weights"
        classes = input.size(_ops.class_dim(input))
        early = _backend.row_gradient_in_forward(input, classes, reduction, divisor)
        early = early and not in_place
        early = early and not (two_divisors and not _backend.on_native_cpu(input))
        keep = "gradient" if early else "saved"
    arguments = CrossEntropyArguments(
        label_smoothing, smoothing == "others", z_loss, ignore_index, _ops.REDUCTIONS[reduction]
    )
    weight = _ops.as_class_weight(weight, input)
    return evaluate(RowSoftmax, input, target, weight, None, None, arguments, keep, in_place)


def check_cross_entropy_options(
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    smoothing: str,
    z_loss: float,
    inplace_backward: bool,
    name: str = "cross_entropy",
) -> tuple[int, str, float, str, float, bool]:
    """The options that need no input to be checked, in their right types."""
    ignore_index = _checks.integer(name, "ignore_index", ignore_index)
    reduction = _checks.reduction(name, reduction)
    label_smoothing = _checks.number(name, "label_smoothing", label_smoothing, low=0.0, high=1.0)
    smoothing = _checks.one_of(name, "smoothing", smoothing, ("uniform", "others"))
    z_loss = _checks.number(name, "z_loss", z_loss, low=0.0)
    inplace_backward = _checks.flag(name, "inplace_backward", inplace_backward)
    return ignore_index, reduction, label_smoothing, smoothing, z_loss, inplace_backward


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of log-probabilities, as :func:`torch.nn.functional.nll_loss`.

    It touches one number a row, so there is nothing to fuse: torch's own operators compute it, without
    a temporary of the input's size. From logits, :func:`cross_entropy` does both steps at once.

    Args:
        input: log-probabilities ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``, any float dtype.
        target: class indices (int64, int32, int16, uint8) of the input's shape without ``C``.
        weight: ``[C]``, one factor for each class.
        ignore_index: rows with this class index have no loss and are not counted in the mean.
        reduction: ``"mean"`` (over the sum of the targets' weights; NaN over nothing, as in torch),
            ``"sum"`` or ``"none"``.

    Returns:
        The loss: a scalar, or for ``"none"`` the input's shape without ``C``; float32 for half input,
        else the input's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, unless
            ``fusedloss.debug(True)`` is on.
    """
    name = "nll_loss"
    input = _checks.class_logits(name, input)
    target = _checks.index_target(name, input, target)
    if weight is not None:
        weight = _checks.class_weight(name, "weight", weight, input)
    ignore_index, reduction = check_nll_options(ignore_index, reduction)
    _checks.debug_labels(name, target, input.size(_ops.class_dim(input)), ignore_index)
    return reference.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)


def check_nll_options(ignore_index: int, reduction: str) -> tuple[int, str]:
    """The options that need no input to be checked, in their right types."""
    name = "nll_loss"
    return _checks.integer(name, "ignore_index", ignore_index), _checks.reduction(name, reduction)
