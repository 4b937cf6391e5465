"""Wrong arguments of the region losses, as test_arguments.py for the sigmoid focal loss."""

from __future__ import annotations

import inspect
from typing import Any

import fusedloss
import pytest
import torch
from cases.region_losses import SHORT
from fusedloss import (
    dice_cross_entropy_loss,
    dice_focal_loss,
    dice_loss,
    generalized_dice_loss,
    jaccard_loss,
    tversky_loss,
)
from test_arguments import INF, NAN, refused_by
from torch import Tensor

FUNCTIONS = [getattr(fusedloss, name) for name in SHORT.values()]
PLAIN = [dice_loss, jaccard_loss, tversky_loss, generalized_dice_loss]
COMPOUNDS = [dice_cross_entropy_loss, dice_focal_loss]
MODES = ("multiclass", "multilabel", "binary")
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
each_compound = pytest.mark.parametrize("function", COMPOUNDS, ids=lambda f: f.__name__)
FOUR = "float32, float64, float16, bfloat16"


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    """Two samples, four classes, three pixels."""
    return torch.zeros(2, 4, 3).to(dtype)


def labels(dtype: torch.dtype = torch.int64) -> Tensor:
    """A class index for each pixel of `logits`."""
    return torch.tensor([[0, 3, 2], [1, 1, 0]]).to(dtype)


def hot() -> Tensor:
    """A target of the shape of `logits`."""
    return torch.zeros(2, 4, 3)


@each_function
@pytest.mark.parametrize(
    ("value", "given"), [(None, "NoneType"), ([0.0], "list"), (0.5, "float"), ("x", "str")]
)
def test_not_a_tensor(function: Any, value: object, given: str) -> None:
    for mode in MODES:
        message = f"input must be a tensor|{given}"
        refused_by(function, TypeError, message, value, labels(), mode=mode)
        message = f"target must be a tensor|{given}"
        refused_by(function, TypeError, message, logits(), value, mode=mode)
    if value is not None:
        message = f"weight must be a tensor|{given}"
        refused_by(function, TypeError, message, logits(), labels(), weight=value)


@each_function
def test_dtypes(function: Any) -> None:
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        name = str(dtype).removeprefix("torch.")
        message = f"input has dtype {name}|accepted are {FOUR}"
        for mode in MODES:
            refused_by(function, TypeError, message, logits(dtype), labels(), mode=mode)
    for dtype in (torch.float32, torch.bool, torch.int8, torch.complex64):
        name = str(dtype).removeprefix("torch.")
        refused_by(function, TypeError, f"target|has dtype {name}", logits(), labels(dtype))
    message = "target has dtype complex64"
    for mode in ("multilabel", "binary"):
        refused_by(function, TypeError, message, logits(), logits(torch.complex64), mode=mode)
    message = "weight has dtype complex64"
    weight = torch.ones(4, dtype=torch.complex64)
    refused_by(function, TypeError, message, logits(), labels(), weight=weight)


@pytest.mark.parametrize("function", [*PLAIN, dice_cross_entropy_loss], ids=lambda f: f.__name__)
def test_soft_targets_are_floats(function: Any) -> None:
    for dtype in (torch.int64, torch.bool):
        message = f"target (probabilities) has dtype|accepted are {FOUR}"
        refused_by(function, TypeError, message, logits(), hot().to(dtype))


def test_focal_loss_needs_labels() -> None:
    message = "target has|accepted are"
    for target in (hot(), hot().long()):
        error = TypeError if target.is_floating_point() else ValueError
        refused_by(dice_focal_loss, error, message, logits(), target)


@each_function
@pytest.mark.parametrize("shape", [(2,), (2, 4), (2, 3, 1), (2, 1, 3), (3, 2), (2, 4, 4)])
def test_shape_of_labels(function: Any, shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape, dtype=torch.int64)
    message = f"target has shape {shape}|accepted are|(2, 3)"
    refused_by(function, ValueError, message, logits(), target)


@each_function
def test_shape_of_elementwise_targets(function: Any) -> None:
    for shape in ((2, 3), (2, 1, 3), (2, 4), (2, 4, 3, 1)):
        message = f"target has shape {shape}|accepted are (2, 4, 3)"
        target = torch.zeros(shape)
        refused_by(function, ValueError, message, logits(), target, mode="multilabel")
    one = torch.zeros(2, 1, 3, 5)
    for shape in ((2, 5), (2, 3), (2, 2, 3, 5), (2, 3, 1, 5)):
        message = f"target has shape {shape}|accepted are (2, 1, 3, 5) and (2, 3, 5)"
        for x in (one, one.squeeze(1)):
            refused_by(function, ValueError, message, x, torch.zeros(shape), mode="binary")
    for x in (one, one.squeeze(1)):
        for target in (one, one.squeeze(1)):
            assert torch.isfinite(function(x, target, mode="binary"))


@each_function
def test_shape_of_the_input(function: Any) -> None:
    nothing = torch.zeros(())
    for mode in MODES:
        message = "input has no dimensions|accepted are"
        refused_by(function, ValueError, message, nothing, torch.tensor(0), mode=mode)
    message = "input has shape (3, 0)|no class"
    refused_by(function, ValueError, message, torch.zeros(3, 0), torch.zeros(3).long())
    many = torch.zeros([1] * 13)
    message = "input has 13 dimensions|accepted are at most 12"
    for mode in MODES:
        target = torch.zeros([1] * 12, dtype=torch.int64)
        refused_by(function, ValueError, message, many, target, mode=mode)
    most = torch.zeros([1] * 12)
    assert torch.isfinite(function(most, most, mode="binary"))
    without_class = torch.zeros([2] * 12)
    message = "input has 12 dimensions|accepted without one for the class are at most 11"
    refused_by(function, ValueError, message, without_class, without_class, mode="binary")


@each_function
def test_shape_and_device_of_weights(function: Any) -> None:
    vectors = ["weight"] + ["class_weight"] * (function is dice_cross_entropy_loss)
    vectors += ["alpha"] * (function is dice_focal_loss)
    for name in vectors:
        for shape in ((3,), (5,), (0,), (2, 2), (1, 4), (1,)):
            message = f"{name} has shape {shape}|accepted are|one"
            options = {name: torch.ones(shape)}
            refused_by(function, ValueError, message, logits(), labels(), **options)
        message = f"{name} is on meta|input is on cpu"
        options = {name: torch.ones(4, device="meta")}
        refused_by(function, ValueError, message, logits(), labels(), **options)
    message = "weight has shape ()|accepted are (C,)"
    refused_by(function, ValueError, message, logits(), labels(), weight=torch.tensor(1.0))
    # Without background too it has an entry for it.
    message = "weight has shape (3,)|accepted are (4,)"
    options = {"weight": torch.ones(3), "include_background": False}
    refused_by(function, ValueError, message, logits(), labels(), **options)
    message = "target is on meta|input is on cpu"
    for mode in MODES:
        target = hot().to("meta") if mode == "multilabel" else labels().to("meta")
        refused_by(function, ValueError, message, logits(), target, mode=mode)


WORDS = [
    ("mode", "'multiclass', 'multilabel' and 'binary'", FUNCTIONS),
    ("absent", "'keep' and 'skip'", FUNCTIONS),
    ("weighting", "'uniform', 'simple' and 'square'", [generalized_dice_loss]),
    ("smoothing", "'uniform' and 'others'", [dice_cross_entropy_loss]),
    ("reduction", "'none', 'mean' and 'sum'", PLAIN),
    ("reduction", "'mean' and 'sum'", COMPOUNDS),
]


@pytest.mark.parametrize(("name", "accepted", "functions"), WORDS)
@pytest.mark.parametrize("value", ["avg", "Mean", "", None, 0, True, ["mean"]])
def test_words(name: str, accepted: str, functions: list[Any], value: object) -> None:
    for function in functions:
        message = f"{name} is {value!r}|accepted are {accepted}"
        refused_by(function, ValueError, message, logits(), labels(), **{name: value})


@each_compound
def test_compounds_have_one_number(function: Any) -> None:
    message = "reduction is 'none'|accepted are 'mean' and 'sum'"
    refused_by(function, ValueError, message, logits(), labels(), reduction="none")
    with pytest.raises(TypeError, match="from_logits"):
        function(logits(), labels(), from_logits=False)


FLAGS = ("from_logits", "squared", "batch", "include_background", "log")


@each_function
@pytest.mark.parametrize("name", FLAGS)
def test_flags(function: Any, name: str) -> None:
    if name not in inspect.signature(function).parameters:
        return
    for value, given in ((1, "int"), (None, "NoneType"), ("yes", "str"), (0.0, "float")):
        message = f"{name} must be a bool|got {given}"
        refused_by(function, TypeError, message, logits(), labels(), **{name: value})


RANGES = [
    *(
        (function, "smooth", v, "finite numbers >= 0")
        for function in FUNCTIONS
        for v in (-1e-5, NAN, INF)
    ),
    *(
        (tversky_loss, name, v, "finite numbers >= 0")
        for name in ("alpha", "beta")
        for v in (-0.1, NAN, INF)
    ),
    *((tversky_loss, "gamma", v, "finite numbers > 0") for v in (0, -1.0, NAN, INF)),
    *(
        (function, name, v, "finite numbers >= 0")
        for function, names in (
            (dice_cross_entropy_loss, ("dice_weight", "ce_weight")),
            (dice_focal_loss, ("dice_weight", "focal_weight", "alpha", "gamma")),
        )
        for name in names
        for v in (-0.5, NAN, INF)
    ),
    *(
        (function, "label_smoothing", v, ">= 0 and <= 1")
        for function in COMPOUNDS
        for v in (-0.1, 1.5, NAN)
    ),
]


@pytest.mark.parametrize(("function", "name", "value", "accepted"), RANGES)
def test_numbers_out_of_range(function: Any, name: str, value: float, accepted: str) -> None:
    message = f"{name} is {value:g}|{accepted}"
    refused_by(function, ValueError, message, logits(), labels(), **{name: value})


NUMBERS = sorted({(f.__name__, name) for f, name, *_ in RANGES})


@pytest.mark.parametrize(("function", "name"), NUMBERS)
@pytest.mark.parametrize(
    ("value", "given"), [(True, "bool"), ("0.5", "str"), (0.5j, "complex"), (object(), "object")]
)
def test_numbers_of_the_wrong_type(function: str, name: str, value: object, given: str) -> None:
    message = f"{name} must be a number|got {given}"
    options = {name: value}
    refused_by(getattr(fusedloss, function), TypeError, message, logits(), labels(), **options)


@each_function
def test_pairs(function: Any) -> None:
    for value in ((1.0,), (1.0, 2.0, 3.0), []):
        message = f"smooth has {len(value)} numbers|accepted are one, and a pair"
        refused_by(function, ValueError, message, logits(), labels(), smooth=value)
    message = "smooth is -1|finite numbers >= 0"
    refused_by(function, ValueError, message, logits(), labels(), smooth=(0.0, -1.0))
    message = "smooth must be a number|got str"
    refused_by(function, TypeError, message, logits(), labels(), smooth=("1", 0.0))
    x, target = torch.randn(2, 4, 3), labels()
    assert torch.equal(function(x, target, smooth=[1, 1]), function(x, target, smooth=1.0))


@each_function
def test_ignore_index(function: Any) -> None:
    for value, given in ((1.0, "float"), (True, "bool"), ("1", "str")):
        message = f"ignore_index must be an int|got {given}"
        refused_by(function, TypeError, message, logits(), labels(), ignore_index=value)
    for value in (2**63, -(2**63) - 1):
        message = f"ignore_index is {value}|accepted"
        refused_by(function, ValueError, message, logits(), labels(), ignore_index=value)


@each_function
def test_options_that_contradict_each_other(function: Any) -> None:
    message = "include_background is False|accepted"
    given: dict[str, Any] = {"include_background": False}
    refused_by(function, ValueError, message, logits(), hot(), mode="binary", **given)
    one = torch.zeros(2, 1, 3)
    refused_by(function, ValueError, message, one, torch.zeros(2, 3).long(), **given)
    refused_by(function, ValueError, message, one, one, mode="multilabel", **given)
    if function is tversky_loss:
        message = "log is True and gamma 2|accepted is one"
        refused_by(function, ValueError, message, logits(), labels(), log=True, gamma=2)
    if function is dice_cross_entropy_loss:
        for mode in ("multilabel", "binary"):
            message = f"class_weight is given with mode '{mode}'|accepted is None"
            options = {"class_weight": torch.ones(4), "mode": mode}
            refused_by(function, ValueError, message, logits(), hot(), **options)
            message = f"smoothing is 'others'|'{mode}'"
            options = {"smoothing": "others", "mode": mode}
            refused_by(function, ValueError, message, logits(), hot(), **options)
    if function is dice_focal_loss:
        message = "alpha is 1.5|accepted are|<= 1"
        refused_by(function, ValueError, message, logits(), hot(), mode="multilabel", alpha=1.5)


@each_function
def test_options_are_keywords_only(function: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        function(logits(), labels(), "multiclass")
    with pytest.raises(TypeError, match="focus"):
        function(logits(), labels(), focus=2.0)


MODULES = {
    "dice_loss": fusedloss.DiceLoss,
    "jaccard_loss": fusedloss.JaccardLoss,
    "tversky_loss": fusedloss.TverskyLoss,
    "generalized_dice_loss": fusedloss.GeneralizedDiceLoss,
    "dice_cross_entropy_loss": fusedloss.DiceCrossEntropyLoss,
    "dice_focal_loss": fusedloss.DiceFocalLoss,
}


@each_function
def test_modules_refuse_at_once(function: Any) -> None:
    name = function.__name__
    module = MODULES[name]
    options = list(inspect.signature(function).parameters.items())[2:]
    assert list(inspect.signature(module).parameters.items()) == options
    wrong: list[dict[str, Any]] = [
        *(
            {"smooth": -1},
            {"mode": "both"},
            {"weight": [1.0]},
            {"squared": 1},
            {"ignore_index": 0.5},
        ),
        *({"mode": "binary", "include_background": False}, {"weight": torch.ones(2, 2)}),
    ]
    for given in wrong:
        if set(given) <= {option for option, _ in options}:
            with pytest.raises(
                (TypeError, ValueError), match=f"^{name}: {next(iter(given))}|includ"
            ):
                module(**given)
    with pytest.raises(TypeError):
        module("multiclass")
