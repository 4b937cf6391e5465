"""Checks of the region losses' arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _checks
from ._ops import class_dim
from ._regions import MODES, WEIGHTINGS, has_channel

_FLAGS = ("from_logits", "squared", "batch", "include_background", "log")
_WORDS = {
    "mode": MODES,
    "absent": ("keep", "skip"),
    "weighting": WEIGHTINGS,
    "smoothing": ("uniform", "others"),
}
_FACTORS = ("dice_weight", "ce_weight", "focal_weight", "beta")
_COMPOUNDS = ("dice_cross_entropy_loss", "dice_focal_loss")


def _smooth(function: str, value: object) -> float | tuple[float, float]:
    if not isinstance(value, (tuple, list)):
        return _checks.number(function, "smooth", value, low=0.0)
    if len(value) != 2:
        raise ValueError(
            f"{function}: smooth has {len(value)} numbers, accepted are one, and a pair for numerator "
            "and denominator"
        )
    first, second = (_checks.number(function, "smooth", number, low=0.0) for number in value)
    return first, second


def _vector(function: str, name: str, value: object) -> Tensor | None:
    if value is None:
        return None
    vector = _checks.tensor(function, name, value)
    if vector.dim() != 1:
        raise ValueError(
            f"{function}: {name} has shape {tuple(vector.shape)}, accepted are (C,), one for each class"
        )
    return vector


def _alpha(function: str, value: object, mode: object) -> float | Tensor | None:
    """Tversky's factor of false positives, or a focal loss's balance."""
    if function == "tversky_loss":
        return _checks.number(function, "alpha", value, low=0.0)
    if value is None:
        return None
    if isinstance(value, Tensor):
        _checks.number_or_vector(function, "alpha", value)
        return value
    if mode == "multiclass":
        return _checks.number(function, "alpha", value, low=0.0)
    return _checks.number(function, "alpha", value, high=1.0, finite=False)


def _option(function: str, name: str, value: object, mode: object) -> Any:
    """One option in its right type."""
    if name in _FLAGS:
        return _checks.flag(function, name, value)
    if name in _WORDS:
        return _checks.one_of(function, name, value, _WORDS[name])
    if name in _FACTORS:
        return _checks.number(function, name, value, low=0.0)
    if name in ("weight", "class_weight"):
        return _vector(function, name, value)
    if name == "smooth":
        return _smooth(function, value)
    if name == "alpha":
        return _alpha(function, value, mode)
    if name == "gamma":  # Tversky's exponent 0 would be no loss
        return _checks.number(function, name, value, low=0.0, open_low=function == "tversky_loss")
    if name == "label_smoothing":
        return _checks.number(function, name, value, low=0.0, high=1.0)
    if name == "ignore_index":
        return None if value is None else _checks.integer(function, name, value)
    # The terms of a compound have losses of different shapes.
    accepted = ("mean", "sum") if function in _COMPOUNDS else ("none", "mean", "sum")
    return _checks.one_of(function, name, value, accepted)


def _combination(function: str, options: dict[str, Any]) -> None:
    """Options that contradict each other."""
    mode = options["mode"]
    if mode == "binary" and not options["include_background"]:
        raise ValueError(
            f"{function}: include_background is False, accepted with mode 'binary' is True: there is "
            "but one class"
        )
    if function == "tversky_loss" and options["log"] and options["gamma"] != 1:
        raise ValueError(
            f"{function}: log is True and gamma {options['gamma']:g}, accepted is one of the two"
        )
    if mode == "multiclass":
        return
    if options.get("class_weight") is not None:
        raise ValueError(
            f"{function}: class_weight is given with mode {mode!r}, accepted is None: binary cross "
            "entropy is a mean over elements"
        )
    if options.get("smoothing", "uniform") != "uniform":
        raise ValueError(
            f"{function}: smoothing is {options['smoothing']!r}, accepted with mode {mode!r} is "
            "'uniform': there is one wrong answer only"
        )


def check_region_options(function: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a public function, in their right types."""
    mode = given["mode"]
    options = {name: _option(function, name, value, mode) for name, value in given.items()}
    _combination(function, options)
    return options


def region_input(function: str, input: object, mode: str) -> Tensor:
    """Logits or probabilities: ``[N, C, ...]``, ``[C]``, or binary ones of any shape but ``[]``."""
    if mode != "binary":
        return _checks.class_logits(function, input)
    value = _checks.logits(function, input)
    if value.dim() == 0:
        raise ValueError(
            f"{function}: input has no dimensions, accepted are [N, ...] and [N, 1, ...]"
        )
    if value.dim() == _checks.MAX_DIMS and not has_channel(value):
        raise ValueError(
            f"{function}: input has {value.dim()} dimensions, accepted without one for the class are "
            f"at most {_checks.MAX_DIMS - 1}"
        )
    return value


def region_target(function: str, input: Tensor, target: object, mode: str) -> Tensor:
    """The target that goes with an input."""
    if mode == "multiclass":
        if function == "dice_focal_loss":  # whose factor is that of a label
            return _checks.index_target(function, input, target)
        return _checks.index_or_probability_target(function, input, target)
    value = _checks.tensor(function, "target", target)
    _checks.same_device(function, "target", value, input)
    shapes: list[tuple[int, ...]] = [tuple(input.shape)]
    if mode == "binary":  # with and without the dimension of one class
        first, *rest = input.shape
        rest = rest[1:] if has_channel(input) else rest
        shapes = [(first, 1, *rest), (first, *rest)]
    # Written with any and ==, which symbolic sizes understand.
    if not any(tuple(value.shape) == shape for shape in shapes):
        accepted = " and ".join(str(shape) for shape in shapes)
        raise ValueError(
            f"{function}: target has shape {tuple(value.shape)}, accepted are {accepted}"
        )
    return value


def region_vectors(function: str, input: Tensor, options: dict[str, Any]) -> None:
    """The side tensors, and what the number of classes forbids."""
    classes = 1 if options["mode"] == "binary" else input.size(class_dim(input))
    for name in ("weight", "class_weight", "alpha"):
        value = options.get(name)
        if not isinstance(value, Tensor):
            continue
        if value.dim() == 0:
            _checks.same_device(function, name, value, input)
        else:
            _checks.class_weight(function, name, value, input, classes=classes)
    if not options["include_background"] and classes == 1:
        raise ValueError(
            f"{function}: include_background is False, accepted for an input of one class is True"
        )
