"""Losses of a linear layer's output, which never exists whole."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, _ops, reference
from .._autograd import differentiates, evaluate
from .._chunks import PLAIN, Head
from .._linear import LinearArguments, LinearLoss
from .._row_autograd import CrossEntropyArguments
from .cross_entropy import check_cross_entropy_options
from .margin_softmax import (
    MarginSoftmaxOptions,
    check_margin_softmax_options,
    native_margins,
)


def linear_margin_softmax_loss(
    features: Tensor,
    weight: Tensor,
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
    sub_centers: int = 1,
    normalize_features: bool = True,
    normalize_weight: bool = True,
    chunk_size: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cosines between features and class centers, and :func:`margin_softmax_loss` of them, in chunks.

    .. math::
        L_i = \mathrm{margin\ softmax}(x_i, t_i), \qquad
        x_{ic} = \max_k \frac{f_i \cdot w_{cK+k}}{|f_i|\,|w_{cK+k}|}

    The cosines ``[N, C]`` never exist whole, neither in forward nor in backward, and no normalised
    weight does: beside the gradients a call takes the memory of one chunk, for ``chunk_size`` rows of
    E-byte elements about ``chunk_size * (C + 3 D) * E`` bytes, with sub-centers ``chunk_size * C *
    (2 E + 2)``.

    Args:
        features: embeddings ``[N, D]``, float32, float64, float16 or bfloat16, any strides.
        weight: class centers ``[C * K, D]`` of the same dtype; rows cK to cK + K - 1 are class c.
        target: class indices ``[N]`` (int64, int32, int16, uint8).
        scale: and all options up to ``ignore_index`` as in :func:`margin_softmax_loss`.
        m1: see there.
        m2: see there.
        m3: see there.
        easy_margin: see there.
        monotonic: see there.
        gradient: see there.
        label_smoothing: see there.
        filter_threshold: see there.
        ignore_index: rows with this class index have no loss and no gradient, whatever their features,
            and are not counted in the mean; -1, the default, marks rows whose class lives elsewhere.
        sub_centers: K from 1 to 255; the largest cosine of a class counts and alone has a gradient, of
            equal ones the first (cosines with equal centers may differ by a rounding).
        normalize_features: divide each row of ``features`` by its length, of at least 1e-12.
        normalize_weight: divide each row of ``weight`` likewise.
        chunk_size: rows of a chunk. By default an eighth of all that takes between 16 and 64 MiB, and at
            least 128 rows. Fewer rows take less memory and more time, as each chunk reads the weight
            and reads and writes its gradient once more.
        reduction: ``"mean"`` over the rows that are not ignored, ``"sum"`` or ``"none"``. A mean over
            nothing is 0 with zero gradient.

    Returns:
        The loss: a scalar, or for ``"none"`` ``[N]``; float32 for half features, else their dtype.
        A scalar's gradients are made in forward, from three matrix products in all, and kept until
        backward. With ``"none"``, and under ``gradient_schedule("recompute")``, forward keeps
        nothing, and backward makes the cosines again. Only gradients that are required are made.
        The weight's gradient is summed over chunks in its own dtype: for half dtypes each chunk rounds
        once more. Cosines have the features' dtype, sums in a product torch's precision; autocast has
        no effect. Under ``torch.compile`` the whole is one operator. Second derivatives, and
        everything where a margin requires a gradient, come from the eager reference, which makes the
        cosines whole.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, and so is
            the gradient of the weight, unless ``fusedloss.debug(True)`` is on.

    Source: the combined margin of Deng et al., ArcFace, 2019 (arXiv:1801.07698); sub-centers of Deng et
    al., Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces, 2020.
    """
    name = "linear_margin_softmax_loss"
    options = check_margin_softmax_options(
        name,
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
    )
    return linear_margin_softmax(
        name,
        features,
        weight,
        target,
        options,
        Head(
            _checks.flag(name, "normalize_features", normalize_features),
            _checks.flag(name, "normalize_weight", normalize_weight),
            check_sub_centers(name, sub_centers),
        ),
        check_chunk_size(name, chunk_size),
    )


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
    chunk_size: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""A linear layer and :func:`cross_entropy` of its output, in chunks.

    .. math::
        L_i = \mathrm{cross\ entropy}(f_i W^\top + b,\; t_i)

    The logits ``[N, C]`` never exist whole, neither in forward nor in backward: beside the gradients a
    call takes the memory of one chunk, for ``chunk_size`` rows of E-byte elements about
    ``chunk_size * (C + 3 D) * E`` bytes.

    Args:
        features: ``[N, D]``, float32, float64, float16 or bfloat16, any strides.
        weight: ``[C, D]`` of the same dtype, as :class:`torch.nn.Linear` has it.
        target: class indices ``[N]`` (int64, int32, int16, uint8).
        bias: ``[C]`` of the same dtype.
        ignore_index: rows with this class index have no loss and no gradient, whatever their features,
            and are not counted in the mean.
        label_smoothing: and ``smoothing`` and ``z_loss`` as in :func:`cross_entropy`.
        smoothing: see there.
        z_loss: see there.
        chunk_size: rows of a chunk; see :func:`linear_margin_softmax_loss`.
        reduction: ``"mean"`` over the rows that are not ignored (NaN over nothing, as in torch; the
            gradient is 0), ``"sum"`` or ``"none"``.

    Returns:
        The loss: a scalar, or for ``"none"`` ``[N]``; float32 for half features, else their dtype. On
        gradients, dtypes, ``torch.compile`` and autocast see :func:`linear_margin_softmax_loss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
        IndexError: a class index outside [0, C) on the CPU. On a GPU its row's loss is NaN, and so is
            the gradient of the weight, unless ``fusedloss.debug(True)`` is on.

    Source: label smoothing and z-loss as in :func:`cross_entropy`; gradients in forward, chunk by chunk,
    as in Hsu et al., Liger Kernel, 2024 (arXiv:2410.10989).
    """
    name = "linear_cross_entropy"
    ignore_index, reduction, label_smoothing, smoothing, z_loss, _ = check_cross_entropy_options(
        ignore_index, reduction, label_smoothing, smoothing, z_loss, False, name
    )
    chunk = check_chunk_size(name, chunk_size)
    features, weight, target = _check_layer(name, features, weight, target, 1)
    if bias is not None:
        bias = _same_kind(name, "bias", bias, features)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{name}: bias has shape {tuple(bias.shape)}, accepted are "
                f"{tuple(weight.shape[:1])}, one for each class"
            )
    _checks.debug_labels(name, target, weight.size(0), ignore_index, called="weight")
    if not _backend.use_kernels(features):
        return reference.linear_cross_entropy(
            features,
            weight,
            target,
            bias,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            smoothing=smoothing,
            z_loss=z_loss,
            reduction=reduction,
        )
    arguments = CrossEntropyArguments(
        label_smoothing, smoothing == "others", z_loss, ignore_index, _ops.REDUCTIONS[reduction]
    )
    return _linear_loss(features, weight, bias, target, [None] * 3, arguments, PLAIN, chunk)


def linear_margin_softmax(
    function: str,
    features: object,
    weight: object,
    target: object,
    options: MarginSoftmaxOptions,
    head: Head,
    chunk: int | None,
    *,
    called: str = "features",
    labels: str = "target",
) -> Tensor:
    """The loss under any name; `called` and `labels` are what its first and third argument are called.

    `chunk` is a number of rows, 0 for the default and None for all rows at once.
    """
    f, w, label = _check_layer(function, features, weight, target, head.sub_centers, called, labels)
    classes = w.size(0) // head.sub_centers
    margins = [
        _one_for_each_class(function, name, value, classes, f, called)
        for name, value in (("m1", options.m1), ("m2", options.m2), ("m3", options.m3))
    ]
    _checks.debug_labels(function, label, classes, options.ignore_index, called="weight")
    if differentiates(*margins) or not _backend.use_kernels(f):
        m1, m2, m3 = margins
        given = options._replace(m1=m1, m2=m2, m3=m3)._asdict()
        del given["inplace_backward"]
        return reference.linear_margin_softmax_loss(f, w, label, **head._asdict(), **given)
    arguments, tensors = native_margins(options, margins, f)
    chunk = max(1, f.size(0)) if chunk is None else chunk
    return _linear_loss(f, w, None, label, tensors, arguments, head, chunk)


def _linear_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    margins: list[Tensor | None],
    arguments: LinearArguments,
    head: Head,
    chunk: int,
) -> Tensor:
    early = arguments.reduction != _ops.REDUCTIONS["none"] and not _backend.recomputes()
    wanted = tuple(early and differentiates(value) for value in (features, weight, bias))
    return evaluate(
        LinearLoss, features, weight, bias, target, *margins, arguments, head, chunk, wanted
    )


def _same_kind(
    function: str, name: str, value: object, features: Tensor, called: str = "features"
) -> Tensor:
    """A tensor of the features' dtype where they lie."""
    result = _checks.tensor(function, name, value, _checks.LOGIT_DTYPES)
    _checks.same_device(function, name, result, features, called)
    if result.dtype != features.dtype:
        ours, theirs = (str(x.dtype).removeprefix("torch.") for x in (result, features))
        raise TypeError(
            f"{function}: {name} has dtype {ours}, but {called} has {theirs}; accepted is the same"
        )
    return result


def _one_for_each_class(
    function: str, name: str, value: float | Tensor, classes: int, features: Tensor, called: str
) -> float | Tensor:
    """A margin as a number or as ``[C]``."""
    if not isinstance(value, Tensor):
        return value
    _checks.same_device(function, name, value, features, called)
    if value.dim() == 1 and value.size(0) != classes:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, accepted are ({classes},), one for "
            "each class, and a number"
        )
    return value.expand(classes)


def _check_layer(
    function: str,
    features: object,
    weight: object,
    target: object,
    sub_centers: int,
    called: str = "features",
    labels: str = "target",
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and labels that go together, by the names that the function has for them."""
    f = _checks.tensor(function, called, features, _checks.LOGIT_DTYPES)
    if f.dim() != 2:
        raise ValueError(f"{function}: {called} has shape {tuple(f.shape)}, accepted is [N, D]")
    w = _same_kind(function, "weight", weight, f, called)
    if w.dim() != 2 or w.size(1) != f.size(1) or w.size(0) == 0:
        raise ValueError(
            f"{function}: weight has shape {tuple(w.shape)}, accepted is, for {called} of shape "
            f"{tuple(f.shape)}, [C, {f.size(1)}] with at least one class"
        )
    if w.size(0) % sub_centers:
        raise ValueError(
            f"{function}: weight has {w.size(0)} rows, accepted are multiples of sub_centers, which is "
            f"{sub_centers}"
        )
    label = _checks.tensor(function, labels, target, _checks.LABEL_DTYPES)
    _checks.same_device(function, labels, label, f, called)
    if label.shape != f.shape[:1]:
        raise ValueError(
            f"{function}: {labels} has shape {tuple(label.shape)}, accepted is {tuple(f.shape[:1])}, "
            f"one class index for each row of {called}"
        )
    return f, w, label


def check_sub_centers(function: str, value: object) -> int:
    """Centers of a class: as many as a byte can tell apart."""
    centers = _checks.integer(function, "sub_centers", value)
    if not 1 <= centers <= 255:
        raise ValueError(f"{function}: sub_centers is {centers}, accepted are 1 to 255")
    return centers


def check_chunk_size(function: str, value: object) -> int:
    """Rows of a chunk, 0 where the choice is ours."""
    if value is None:
        return 0
    rows = _checks.integer(function, "chunk_size", value)
    if rows < 1:
        raise ValueError(f"{function}: chunk_size is {rows}, accepted are None and integers >= 1")
    return rows
