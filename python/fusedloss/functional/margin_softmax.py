"""Margin softmax losses: ArcFace, CosFace, SphereFace and what they have in common."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from .. import _backend, _checks, _ops, reference
from .._autograd import differentiates, evaluate, may_overwrite
from .._row_autograd import MarginArguments, RowSoftmax


def margin_softmax_loss(
    cosine: Tensor,
    target: Tensor,
    *,
    scale: float = 64.0,
    m1: float | Tensor = 1.0,
    m2: float | Tensor = 0.0,
    m3: float | Tensor = 0.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    r"""Cross entropy over cosines, of which that of the label's class is made harder.

    .. math::
        L = -\log \frac{e^{s \psi}}{e^{s \psi} + \sum_{j \ne t} e^{s \cos\theta_j}},
        \qquad \psi = \cos(m_1 \theta_t + m_2) - m_3

    Args:
        cosine: cosines between embeddings and class centers, ``[C]``, ``[N, C]`` or
            ``[N, C, d1, ...]``, float32, float64, float16 or bfloat16, any strides. A cosine beyond
            +-1, which rounding makes, has the angle of +-1.
        target: class indices (int64, int32, int16, uint8) of the cosines' shape without ``C``.
        scale: s > 0, the factor of all cosines.
        m1: factor > 0 of the angle (SphereFace). Each margin is a number, or a tensor ``[C]`` with
            one for each class, whose values are not checked.
        m2: added to the angle, in radians (ArcFace).
        m3: taken off the cosine, in units of it (CosFace).
        easy_margin: the margin only where the cosine is positive; elsewhere psi is the cosine itself.
            It overrides ``monotonic``.
        monotonic: what becomes of psi past m1 theta + m2 = pi, where the cosine rises again.
            ``"linear"``: it goes on falling. With m1 = 1, where theta > pi - m2,
            psi = cos(theta) - m2 sin(m2) - m3, as most write ArcFace. With another m1
            psi = (-1)^k cos(a) - 2k - m3 where a = m1 theta + m2 and k = floor(a / pi), as in
            SphereFace. ``"none"``: the plain formula, as insightface's training has it.
        gradient: ``"exact"``, or ``"straight_through"``, which takes psi's derivative by the cosine for
            1, as insightface's training does (it computes the margin without autograd).
        label_smoothing: epsilon in [0, 1], spread over all classes, psi being the label's logit.
        filter_threshold: cosines of other classes above it are dropped from the softmax, as if they
            were -inf (classes that are the same person, say). insightface, where the option comes
            from, sets them to 0 instead, so that they still count e^0 there. Not together with
            label_smoothing.
        ignore_index: rows with this class index have no loss and no gradient, whatever their cosines,
            and are not counted in the mean; -1, the default, marks rows whose class lives elsewhere.
        reduction: ``"mean"`` over the rows that are not ignored, ``"sum"`` or ``"none"``. A mean over
            nothing is 0 with zero gradient.
        inplace_backward: let backward write the gradient over the memory of ``cosine``; see
            :func:`fusedloss.cross_entropy`, which says when that memory is left alone.

    Returns:
        The loss: a scalar, or for ``"none"`` the cosines' shape without ``C``; float32 for half
        cosines, else their dtype. First derivatives come from the fused kernels, second ones from the
        eager reference. So does everything where a margin requires a gradient. At +-1, where the
        angle's derivative is infinite, it is taken at the next number inside that the cosines' dtype
        holds.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, unless
            ``fusedloss.debug(True)`` is on.

    Source: the combined margin of Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition, 2019 (arXiv:1801.07698).
    """
    return _margin_softmax(
        "margin_softmax_loss",
        cosine,
        target,
        check_margin_softmax_options(
            "margin_softmax_loss",
            scale=scale,
            m1=m1,
            m2=m2,
            m3=m3,
            easy_margin=easy_margin,
            monotonic=monotonic,
            gradient=gradient,
            label_smoothing=label_smoothing,
            filter_threshold=filter_threshold,
            ignore_index=ignore_index,
            reduction=reduction,
            inplace_backward=inplace_backward,
        ),
    )


def arcface_loss(
    cosine: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.5,
    scale: float = 64.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """ArcFace: ``margin`` radians are added to the angle, psi = cos(theta + margin).

    :func:`margin_softmax_loss` with m2 = margin, which explains the other arguments, what is returned
    and what is refused. The defaults are the paper's.

    Source: Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019
    (arXiv:1801.07698).
    """
    name = "arcface_loss"
    options = check_margin_softmax_options(
        name,
        scale=scale,
        m2=_checks.number_or_tensor(name, "margin", margin),
        easy_margin=easy_margin,
        monotonic=monotonic,
        gradient=gradient,
        label_smoothing=label_smoothing,
        filter_threshold=filter_threshold,
        ignore_index=ignore_index,
        reduction=reduction,
        inplace_backward=inplace_backward,
    )
    return _margin_softmax(name, cosine, target, options, margin="m2")


def cosface_loss(
    cosine: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.35,
    scale: float = 64.0,
    easy_margin: bool = False,
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """CosFace (also AM-Softmax): ``margin`` is taken off the cosine, psi = cos(theta) - margin.

    :func:`margin_softmax_loss` with m3 = margin, which explains the other arguments, what is returned
    and what is refused. psi is a straight line: it needs neither ``monotonic`` nor ``gradient``. The
    defaults are the first paper's.

    Source: Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018
    (arXiv:1801.09414); Wang et al., Additive Margin Softmax, 2018 (arXiv:1801.05599).
    """
    name = "cosface_loss"
    options = check_margin_softmax_options(
        name,
        scale=scale,
        m3=_checks.number_or_tensor(name, "margin", margin),
        easy_margin=easy_margin,
        label_smoothing=label_smoothing,
        filter_threshold=filter_threshold,
        ignore_index=ignore_index,
        reduction=reduction,
        inplace_backward=inplace_backward,
    )
    return _margin_softmax(name, cosine, target, options, margin="m3")


def sphereface_loss(
    cosine: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 1.7,
    scale: float = 64.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """SphereFace: the angle is multiplied by ``margin``, psi = cos(margin theta).

    :func:`margin_softmax_loss` with m1 = margin, which explains the other arguments, what is returned
    and what is refused. Past margin theta = pi, ``monotonic="linear"`` is the paper's
    (-1)^k cos(margin theta) - 2k.

    The paper's margin is 4, which trains only with annealing towards it. 1.7 is what its authors give
    later for training from scratch on normalised features, there with ``scale=32`` and
    ``gradient="straight_through"`` (OpenSphere, config/train/ms1m_sfnet64bn_sphereface.yml). The paper's
    logits, features that are not normalised, are a ``scale`` for each row, which this loss has not.

    Source: Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, 2017
    (arXiv:1704.08063); Liu et al., SphereFace Revived, 2021 (arXiv:2109.05565).
    """
    name = "sphereface_loss"
    margin = _checks.number_or_tensor(name, "margin", margin, low=0.0, open_low=True)
    options = check_margin_softmax_options(
        name,
        scale=scale,
        m1=margin,
        easy_margin=easy_margin,
        monotonic=monotonic,
        gradient=gradient,
        label_smoothing=label_smoothing,
        filter_threshold=filter_threshold,
        ignore_index=ignore_index,
        reduction=reduction,
        inplace_backward=inplace_backward,
    )
    return _margin_softmax(name, cosine, target, options, margin="m1")


def normface_loss(
    cosine: Tensor,
    target: Tensor,
    *,
    scale: float = 64.0,
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """NormFace: a softmax over scaled cosines without a margin.

    :func:`margin_softmax_loss` without margins, which explains the arguments, what is returned and what
    is refused.

    Source: Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, 2017
    (arXiv:1704.06369).
    """
    name = "normface_loss"
    options = check_margin_softmax_options(
        name,
        scale=scale,
        label_smoothing=label_smoothing,
        filter_threshold=filter_threshold,
        ignore_index=ignore_index,
        reduction=reduction,
        inplace_backward=inplace_backward,
    )
    return _margin_softmax(name, cosine, target, options)


def modified_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> Tensor:
    """SphereFace's "modified softmax": class weights normalised, features not, no bias, no margin.

    ``input`` holds ``|feature| cos(theta)``, the products of features with normalised class weights, of
    any size. :func:`margin_softmax_loss` with scale 1 and without margins, which explains the other
    arguments, what is returned and what is refused.

    Source: Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, 2017
    (arXiv:1704.08063), section 3.1.
    """
    name = "modified_softmax_loss"
    options = check_margin_softmax_options(
        name,
        scale=1.0,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        inplace_backward=inplace_backward,
    )
    return _margin_softmax(name, input, target, options, called="input")


class MarginSoftmaxOptions(NamedTuple):
    """The options of a margin softmax in their right types."""

    scale: float
    m1: float | Tensor
    m2: float | Tensor
    m3: float | Tensor
    easy_margin: bool
    monotonic: str
    gradient: str
    label_smoothing: float
    filter_threshold: float | None
    ignore_index: int
    reduction: str
    inplace_backward: bool


def check_margin_softmax_options(
    function: str,
    *,
    scale: float = 64.0,
    m1: float | Tensor = 1.0,
    m2: float | Tensor = 0.0,
    m3: float | Tensor = 0.0,
    easy_margin: bool = False,
    monotonic: str = "linear",
    gradient: str = "exact",
    label_smoothing: float = 0.0,
    filter_threshold: float | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    inplace_backward: bool = False,
) -> MarginSoftmaxOptions:
    """The options, checked as far as that needs no cosines."""
    if filter_threshold is not None:
        filter_threshold = _checks.number(function, "filter_threshold", filter_threshold)
    options = MarginSoftmaxOptions(
        _checks.number(function, "scale", scale, low=0.0, open_low=True),
        _checks.number_or_tensor(function, "m1", m1, low=0.0, open_low=True),
        _checks.number_or_tensor(function, "m2", m2),
        _checks.number_or_tensor(function, "m3", m3),
        _checks.flag(function, "easy_margin", easy_margin),
        _checks.one_of(function, "monotonic", monotonic, ("linear", "none")),
        _checks.one_of(function, "gradient", gradient, ("exact", "straight_through")),
        _checks.number(function, "label_smoothing", label_smoothing, low=0.0, high=1.0),
        filter_threshold,
        _checks.integer(function, "ignore_index", ignore_index),
        _checks.reduction(function, reduction),
        _checks.flag(function, "inplace_backward", inplace_backward),
    )
    if filter_threshold is not None and options.label_smoothing > 0:
        raise ValueError(
            f"{function}: filter_threshold is {filter_threshold:g} and label_smoothing "
            f"{options.label_smoothing:g}, accepted is one of the two: a dropped class has no logarithm "
            "to smooth over"
        )
    return options


def _margins(
    function: str, options: MarginSoftmaxOptions, cosine: Tensor, called: str, margin: str
) -> list[float | Tensor]:
    """m1, m2 and m3, tensors as ``[C]``. `margin` is the one that the function calls so."""
    margins: list[float | Tensor] = [options.m1, options.m2, options.m3]
    for i, value in enumerate(margins):
        if isinstance(value, Tensor):
            name = "margin" if margin == f"m{i + 1}" else f"m{i + 1}"
            margins[i] = _checks.one_for_each_class(function, name, value, cosine, called)
    return margins


def native_margins(
    options: MarginSoftmaxOptions, margins: list[float | Tensor], like: Tensor
) -> tuple[MarginArguments, list[Tensor | None]]:
    """The numbers and the tensors of margins as the operators take them for cosines `like` these."""
    m1, m2, m3 = margins
    threshold = options.filter_threshold
    arguments = MarginArguments(
        options.scale,
        1.0 if isinstance(m1, Tensor) else m1,
        0.0 if isinstance(m2, Tensor) else m2,
        0.0 if isinstance(m3, Tensor) else m3,
        options.easy_margin,
        options.monotonic == "linear",
        options.gradient == "straight_through",
        options.label_smoothing,
        math.inf if threshold is None else threshold,
        options.ignore_index,
        _ops.REDUCTIONS[options.reduction],
    )
    return arguments, [
        _ops.as_class_weight(m, like) if isinstance(m, Tensor) else None for m in margins
    ]


def _margin_softmax(
    function: str,
    cosine: object,
    target: object,
    options: MarginSoftmaxOptions,
    *,
    margin: str = "",
    called: str = "cosine",
) -> Tensor:
    """The loss under any of its names; `called` is what its first argument is called there."""
    x = _checks.class_logits(function, cosine, called)
    label = _checks.index_target(function, x, target, called)
    m1, m2, m3 = margins = _margins(function, options, x, called, margin)
    classes = x.size(_ops.class_dim(x))
    _checks.debug_labels(function, label, classes, options.ignore_index, called=called)
    if differentiates(m1, m2, m3) or not _backend.use_kernels(x):
        return reference.margin_softmax_loss(
            x,
            label,
            scale=options.scale,
            m1=m1,
            m2=m2,
            m3=m3,
            easy_margin=options.easy_margin,
            monotonic=options.monotonic,
            gradient=options.gradient,
            label_smoothing=options.label_smoothing,
            filter_threshold=options.filter_threshold,
            ignore_index=options.ignore_index,
            reduction=options.reduction,
        )
    in_place = options.inplace_backward and may_overwrite(x)
    keep = "nothing"
    if differentiates(x):
        classes = x.size(_ops.class_dim(x))
        early = _backend.row_gradient_in_forward(x, classes, options.reduction, "rows")
        keep = "gradient" if early and not in_place else "saved"
    arguments, tensors = native_margins(options, margins, x)
    return evaluate(RowSoftmax, x, label, *tensors, arguments, keep, in_place)
