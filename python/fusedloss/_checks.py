"""Argument checks: each names the argument, what was given and what is accepted."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from . import _backend
from ._ops import class_dim

LOGIT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)
DENSE_DTYPES = (*LOGIT_DTYPES, *LABEL_DTYPES, torch.int8, torch.bool)
MAX_DIMS = 12


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def tensor(
    function: str, name: str, value: object, dtypes: tuple[torch.dtype, ...] = DENSE_DTYPES
) -> Tensor:
    """`value` as a strided tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise TypeError(f"{function}: {name} must be a dense tensor, got layout {layout}")
    if value.dtype not in dtypes:
        raise TypeError(
            f"{function}: {name} has dtype {_names((value.dtype,))}, accepted are {_names(dtypes)}"
        )
    # Dynamo takes an argument of torch.func.grad itself for one that needs no gradient, and would
    # compile a gradient of zeros; the result of any operator it takes for what it is.
    return value.view_as(value) if torch.compiler.is_compiling() else value


def same_device(
    function: str, name: str, value: Tensor, input: Tensor, called: str = "input"
) -> None:
    """Every tensor must lie where the logits lie, which the function calls `called`."""
    if value.device != input.device:
        raise ValueError(
            f"{function}: {name} is on {value.device}, but {called} is on {input.device}"
        )


def scalar(function: str, name: str, value: Tensor, input: Tensor) -> None:
    """`value` holds one number, where the input lies or on the CPU."""
    tensor(function, name, value)
    if value.numel() != 1:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, accepted are one element"
        )
    if value.device.type != "cpu":
        same_device(function, name, value, input)


def normalizer(function: str, value: float | Tensor | None, input: Tensor) -> float | Tensor | None:
    """A divisor of the mean: None, a number > 0, or a tensor of one element."""
    if isinstance(value, Tensor):
        scalar(function, "normalizer", value, input)
        return value
    if value is None:
        return None
    return number(function, "normalizer", value, low=0.0, open_low=True)


def logits(function: str, input: object, called: str = "input") -> Tensor:
    """The first argument of every loss, which the function calls `called`."""
    value = tensor(function, called, input, LOGIT_DTYPES)
    if value.dim() > MAX_DIMS:
        raise ValueError(
            f"{function}: {called} has {value.dim()} dimensions, accepted are at most {MAX_DIMS}"
        )
    return value


def number(
    function: str,
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    finite: bool = True,
) -> float:
    """`value` as a float within [low, high] (or (low, high] with `open_low`)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:  # an int or fraction beyond float64
        result = -math.inf if value < 0 else math.inf
    inside = low < result <= high if open_low else low <= result <= high
    # Comparisons only: they also work on the symbolic numbers of torch.compile.
    if not inside or (finite and not -math.inf < result < math.inf):
        bounds = [] if low == -math.inf else [f"> {low:g}" if open_low else f">= {low:g}"]
        bounds += [] if high == math.inf else [f"<= {high:g}"]
        accepted = " ".join([*(["finite"] if finite else []), "numbers", " and ".join(bounds)])
        raise ValueError(f"{function}: {name} is {result:g}, accepted are {accepted.strip()}")
    return result


def integer(function: str, name: str, value: object) -> int:
    """`value` as an int (bools refused)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    value = int(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{function}: {name} is {value}, accepted are integers of 64 bits")
    return value


def one_of(function: str, name: str, value: object, accepted: tuple[str, ...]) -> str:
    """`value` as one of the words in `accepted`."""
    if value not in accepted:
        words = ", ".join(repr(word) for word in accepted[:-1])
        raise ValueError(
            f"{function}: {name} is {value!r}, accepted are {words} and {accepted[-1]!r}"
        )
    return str(value)


def reduction(function: str, value: object) -> str:
    """One of the three reductions."""
    return one_of(function, "reduction", value, ("none", "mean", "sum"))


def focal_options(
    function: str,
    alpha: object,
    gamma: object,
    ignore_index: object,
    label_smoothing: object,
    reduction_name: object,
    alpha_range: tuple[float, float],
) -> tuple[float | Tensor | None, float, int, float, str]:
    """The options of a focal loss that need no input to be checked, in their right types."""
    if isinstance(alpha, Tensor):
        number_or_vector(function, "alpha", alpha)
    elif alpha is not None:
        low, high = alpha_range
        alpha = number(function, "alpha", alpha, low=low, high=high, finite=low > -math.inf)
    gamma = number(function, "gamma", gamma, low=0.0)
    ignore_index = integer(function, "ignore_index", ignore_index)
    label_smoothing = number(function, "label_smoothing", label_smoothing, low=0.0, high=1.0)
    return alpha, gamma, ignore_index, label_smoothing, reduction(function, reduction_name)


def flag(function: str, name: str, value: object) -> bool:
    """`value` as a bool, which no other type stands for."""
    if not isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be a bool, got {type(value).__name__}")
    return value


def broadcastable(function: str, name: str, value: Tensor, input: Tensor) -> None:
    """`value` must broadcast to the input's shape without enlarging it."""
    offset = input.dim() - value.dim()
    # Written with ==, which symbolic sizes understand; `in` compares identity first.
    fits = offset >= 0 and all(
        size == 1 or size == input.size(offset + d) for d, size in enumerate(value.shape)
    )
    if not fits:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, which does not broadcast to "
            f"input's {tuple(input.shape)}"
        )


def element_weight(function: str, value: Tensor | None, input: Tensor) -> Tensor | None:
    """A factor of each element's loss, or None."""
    if value is None:
        return None
    weight = tensor(function, "weight", value)
    same_device(function, "weight", weight, input)
    broadcastable(function, "weight", weight, input)
    return weight


def elementwise_target(function: str, input: Tensor, target: object) -> Tensor:
    """A target of the input's shape."""
    value = tensor(function, "target", target)
    same_device(function, "target", value, input)
    if value.shape != input.shape:
        raise ValueError(
            f"{function}: target has shape {tuple(value.shape)}, accepted are {tuple(input.shape)}"
        )
    return value


def elements(
    function: str,
    input: object,
    target: object,
    weight: Tensor | None,
    divisor: float | Tensor | None,
    reduction_name: object,
) -> tuple[Tensor, Tensor, None, Tensor | None, float | Tensor | None]:
    """The arguments of a loss of elements, as `_pointwise.pointwise_loss` takes them."""
    x = logits(function, input)
    t = elementwise_target(function, x, target)
    factor = element_weight(function, weight, x)
    divisor = normalizer(function, divisor, x)
    reduction(function, reduction_name)
    return x, t, None, factor, divisor


def number_or_vector(function: str, name: str, value: Tensor) -> None:
    """`value` has at most one dimension; whether its length fits is seen with the input."""
    tensor(function, name, value)
    if value.dim() > 1:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, accepted are a number and a vector "
            "with one entry for each class"
        )


def number_or_tensor(
    function: str, name: str, value: object, *, low: float = -math.inf, open_low: bool = False
) -> float | Tensor:
    """`value` as a finite number in this range, or a number or vector in a tensor, not looked into."""
    if isinstance(value, Tensor):
        number_or_vector(function, name, value)
        return value
    return number(function, name, value, low=low, open_low=open_low)


def per_class(function: str, name: str, value: Tensor, input: Tensor) -> None:
    """`value` holds one number for each entry of the input's last dimension."""
    classes = input.size(-1) if input.dim() else 1
    fits = value.numel() == 1 or value.numel() == classes
    if value.dim() > 1 or not fits:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, accepted are a number and "
            f"({classes},), one for each entry of input's last dimension"
        )


def elementwise_or_index_target(function: str, input: Tensor, target: object) -> Tensor:
    """A target of the input's shape, or class indices over its last dimension."""
    value = tensor(function, "target", target)
    same_device(function, "target", value, input)
    if value.shape == input.shape:
        return value
    if input.dim() > 0 and value.shape == input.shape[:-1]:
        return tensor(function, "target (class indices)", value, LABEL_DTYPES)
    rows = f" or, as class indices, {tuple(input.shape[:-1])}" if input.dim() else ""
    raise ValueError(
        f"{function}: target has shape {tuple(value.shape)}, accepted are {tuple(input.shape)}{rows}"
    )


def is_bad_label(
    target: Tensor, num_classes: int, ignore_index: int, *, background: bool = False
) -> Tensor:
    """Which labels are neither classes nor ignored nor, where there is such a thing, background."""
    low, high = (-1, num_classes) if background else (0, num_classes - 1)
    return ((target < low) | (target > high)) & (target != ignore_index)


def label_error(
    function: str,
    label: int,
    num_classes: int,
    *,
    background: bool = False,
    called: str = "input",
) -> IndexError:
    """The error for such a label."""
    others = f", {num_classes} or -1 for background, and" if background else " and"
    return IndexError(
        f"{function}: target holds label {label}, but {called} has {num_classes} classes; "
        f"accepted are 0 to {num_classes - 1}{others} ignore_index"
    )


def class_logits(function: str, input: object, called: str = "input") -> Tensor:
    """Logits ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]`` with at least one class."""
    value = logits(function, input, called)
    if value.dim() == 0:
        raise ValueError(
            f"{function}: {called} has no dimensions, accepted are [C] and [N, C, ...]"
        )
    if value.size(class_dim(value)) == 0:
        raise ValueError(
            f"{function}: {called} has shape {tuple(value.shape)}, which holds no class"
        )
    return value


def _row_shape(input: Tensor) -> torch.Size:
    dim = class_dim(input)
    return input.shape[:dim] + input.shape[dim + 1 :]


def index_target(function: str, input: Tensor, target: object, called: str = "input") -> Tensor:
    """Class indices of the input's shape without its classes."""
    value = tensor(function, "target", target, LABEL_DTYPES)
    same_device(function, "target", value, input, called)
    if value.shape != _row_shape(input):
        raise ValueError(
            f"{function}: target has shape {tuple(value.shape)}, accepted are, as class indices for "
            f"{called}'s {tuple(input.shape)}, {tuple(_row_shape(input))}"
        )
    return value


def index_or_probability_target(function: str, input: Tensor, target: object) -> Tensor:
    """Class indices of the input's shape without its classes, or probabilities of its shape."""
    value = tensor(function, "target", target)
    same_device(function, "target", value, input)
    if value.shape == input.shape:
        return tensor(function, "target (probabilities)", value, LOGIT_DTYPES)
    if value.shape == _row_shape(input):
        return tensor(function, "target (class indices)", value, LABEL_DTYPES)
    raise ValueError(
        f"{function}: target has shape {tuple(value.shape)}, accepted are, as class indices, "
        f"{tuple(_row_shape(input))} and, as probabilities, {tuple(input.shape)}"
    )


def class_weight(
    function: str,
    name: str,
    value: object,
    input: Tensor,
    called: str = "input",
    classes: int | None = None,
) -> Tensor:
    """One number for each class, of which the input says how many there are."""
    weight = tensor(function, name, value)
    same_device(function, name, weight, input, called)
    classes = input.size(class_dim(input)) if classes is None else classes
    if weight.dim() != 1 or weight.size(0) != classes:
        raise ValueError(
            f"{function}: {name} has shape {tuple(weight.shape)}, accepted are ({classes},), one for "
            "each class"
        )
    return weight


def one_for_each_class(
    function: str, name: str, value: Tensor, input: Tensor, called: str = "input"
) -> Tensor:
    """`value` as one number for each class, for which one number may stand."""
    if value.dim() > 0:
        return class_weight(function, name, value, input, called)
    same_device(function, name, value, input, called)
    return value.expand(input.size(class_dim(input)))


def debug_labels(
    function: str,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    *,
    background: bool = False,
    called: str = "input",
) -> None:
    """Under ``debug``, the error for a bad label that a GPU would only show as NaN."""
    if target.device.type == "cpu" or not _backend.debugging():
        return
    target = target.long()
    found = target[is_bad_label(target, num_classes, ignore_index, background=background)]
    if found.numel():
        raise label_error(
            function, int(found[0]), num_classes, background=background, called=called
        )
