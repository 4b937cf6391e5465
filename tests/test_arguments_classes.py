"""Wrong arguments of the losses over a softmax, as test_arguments.py for the sigmoid focal loss."""

from __future__ import annotations

import inspect
import re
from typing import Any

import fusedloss
import pytest
import torch
from fusedloss import (
    CrossEntropyLoss,
    LabelSmoothingCrossEntropyLoss,
    NLLLoss,
    SoftmaxFocalLoss,
    cross_entropy,
    margin_softmax_loss,
    nll_loss,
    softmax_focal_loss,
)
from test_arguments import INF, NAN, NoWork, logits, refused_by
from torch import Tensor

FUNCTIONS = [cross_entropy, nll_loss, softmax_focal_loss, margin_softmax_loss]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
FOUR = "float32, float64, float16, bfloat16"
LABELS = "int64, int32, int16, uint8"
# (function, argument) of every side tensor of length C.
VECTORS = [
    *((cross_entropy, "weight"), (nll_loss, "weight"), (softmax_focal_loss, "alpha")),
    *((margin_softmax_loss, name) for name in ("m1", "m2", "m3")),
]
each_vector = pytest.mark.parametrize(("function", "name"), VECTORS)


def first(function: Any) -> str:
    """What the function calls its first argument."""
    return next(iter(inspect.signature(function).parameters))


def labels(dtype: torch.dtype = torch.int64) -> Tensor:
    """One class index a row of `logits`."""
    return torch.tensor([0, 3, 2]).to(dtype)


@each_function
@pytest.mark.parametrize(
    ("value", "given"), [(None, "NoneType"), ([0.0], "list"), (0.5, "float"), ("x", "str")]
)
def test_not_a_tensor(function: Any, value: object, given: str) -> None:
    refused_by(function, TypeError, f"{first(function)} must be a tensor|{given}", value, labels())
    refused_by(function, TypeError, f"target must be a tensor|{given}", logits(), value)


@pytest.mark.parametrize("function", [cross_entropy, nll_loss])
@pytest.mark.parametrize(("value", "given"), [([0.5], "list"), (0.5, "float"), ("x", "str")])
def test_weight_that_is_no_tensor(function: Any, value: object, given: str) -> None:
    message = f"weight must be a tensor|{given}"
    refused_by(function, TypeError, message, logits(), labels(), value)
    refused_by(function, TypeError, message, logits(), labels(), weight=value)


@each_function
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32),
        *(torch.uint8, torch.uint16, torch.bool),
    ],
)
def test_dtype_of_logits(function: Any, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    message = f"{first(function)} has dtype {name}|accepted are {FOUR}"
    refused_by(function, TypeError, message, logits(dtype), labels())


@each_function
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.int8, torch.bool, torch.uint16, torch.float32, torch.float64, torch.float16),
        *(torch.bfloat16, torch.complex64, torch.float8_e4m3fn),
    ],
)
def test_dtype_of_class_indices(function: Any, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    message = f"target|has dtype {name}|accepted are|{LABELS}"
    refused_by(function, TypeError, message, logits(), labels(dtype))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.int8, torch.bool, torch.complex64]
)
def test_dtype_of_probabilities(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    message = f"target|has dtype {name}|accepted are {FOUR}"
    refused_by(cross_entropy, TypeError, message, logits(), logits(dtype))


@each_vector
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e4m3fn, torch.uint32])
def test_dtype_of_class_weights(function: Any, name: str, dtype: torch.dtype) -> None:
    given = str(dtype).removeprefix("torch.")
    message = f"{name} has dtype {given}|accepted are {FOUR}"
    value = torch.ones(4).to(dtype)
    refused_by(function, TypeError, message, logits(), labels(), **{name: value})


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@each_function
@pytest.mark.parametrize("sparse", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
def test_layouts_that_are_not_strided(function: Any, sparse: str) -> None:
    if sparse == "to_mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    other = getattr(logits(), sparse)()
    message = "must be a dense tensor|layout torch."
    refused_by(function, TypeError, f"{first(function)} {message}", other, labels())
    refused_by(function, TypeError, f"target {message}", logits(), other)


@each_function
@pytest.mark.parametrize(
    ("input_shape", "target_shape", "accepted"),
    [
        ((3, 4), (4,), "(3,)"),
        ((3, 4), (3, 1), "(3,)"),
        ((3, 4), (4, 3), "(3,)"),
        ((3, 4), (), "(3,)"),
        ((3, 4), (1, 3, 4), "(3,)"),
        ((2, 3, 4), (2, 3), "(2, 4)"),  # the classes come second, not last
        ((2, 3, 4), (2, 4, 1), "(2, 4)"),
        ((5,), (1,), "()"),
        ((0, 5), (1,), "(0,)"),
    ],
)
def test_shape_of_target(
    function: Any, input_shape: tuple[int, ...], target_shape: tuple[int, ...], accepted: str
) -> None:
    target = torch.zeros(target_shape, dtype=torch.int64)
    message = f"target has shape {target_shape}|accepted are|{accepted}"
    refused_by(function, ValueError, message, torch.zeros(input_shape), target)


@pytest.mark.parametrize("function", [nll_loss, softmax_focal_loss, margin_softmax_loss])
def test_one_hot_targets_where_labels_are_needed(function: Any) -> None:
    x, hot = logits(), torch.eye(4)[:3]
    with NoWork(), pytest.raises((TypeError, ValueError), match=f"{function.__name__}: target has"):
        function(x, hot)
    refused_by(function, ValueError, "target has shape (3, 4)|(3,)", x, hot.long())


@each_function
def test_shape_of_logits(function: Any) -> None:
    label, x = torch.tensor(0), first(function)
    refused_by(function, ValueError, f"{x} has no dimensions|[N, C, ...]", torch.zeros(()), label)
    no_class = torch.zeros(3, 0)
    refused_by(function, ValueError, f"{x} has shape (3, 0)|no class", no_class, labels())
    refused_by(function, ValueError, f"{x} has shape (0,)|no class", torch.zeros(0), label)
    many = torch.zeros([1] * 13)
    message = f"{x} has 13 dimensions|accepted are at most 12"
    refused_by(function, ValueError, message, many, torch.zeros([1] * 12, dtype=torch.int64))
    most = torch.zeros([1, 2] + [1] * 10)
    rows = torch.zeros([1] * 11, dtype=torch.int64)
    assert torch.isfinite(function(most, rows))


@each_vector
@pytest.mark.parametrize("shape", [(3,), (5,), (0,), (2, 2), (1, 4), (4, 1), (3, 4), (1,)])
def test_shape_of_class_weights(function: Any, name: str, shape: tuple[int, ...]) -> None:
    message = f"{name} has shape {shape}|accepted are|one"
    refused_by(function, ValueError, message, logits(), labels(), **{name: torch.ones(shape)})


def test_class_weights_belong_to_the_second_dimension() -> None:
    x, label = torch.zeros(2, 3, 5), torch.zeros(2, 5, dtype=torch.int64)
    for function, name in VECTORS:
        refused_by(function, ValueError, f"{name} has|(3,)", x, label, **{name: torch.ones(5)})
        assert torch.isfinite(function(x, label, **{name: torch.ones(3)}))


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 2), (4,)])
def test_shape_of_normalizer(shape: tuple[int, ...]) -> None:
    message = f"normalizer has shape {shape}|accepted are one element"
    value = torch.ones(shape)
    refused_by(softmax_focal_loss, ValueError, message, logits(), labels(), normalizer=value)


@each_function
def test_device_of_target(function: Any) -> None:
    message = f"target is on meta|{first(function)} is on cpu"
    refused_by(function, ValueError, message, logits(), labels().to("meta"))
    message = f"target is on cpu|{first(function)} is on meta"
    refused_by(function, ValueError, message, logits().to("meta"), labels())


@pytest.mark.parametrize(("function", "name"), [*VECTORS, (softmax_focal_loss, "normalizer")])
def test_device_of_side_tensors(function: Any, name: str) -> None:
    value = torch.ones(1 if name == "normalizer" else 4, device="meta")
    message = f"{name} is on meta|{first(function)} is on cpu"
    refused_by(function, ValueError, message, logits(), labels(), **{name: value})


RANGES = [
    *((cross_entropy, "label_smoothing", v, ">= 0 and <= 1") for v in (-0.1, 1.5, NAN, INF)),
    *((softmax_focal_loss, "label_smoothing", v, ">= 0 and <= 1") for v in (-0.1, 1.5, NAN)),
    *((cross_entropy, "z_loss", v, "finite numbers >= 0") for v in (-1e-4, NAN, INF, -INF)),
    *((softmax_focal_loss, "gamma", v, "finite numbers >= 0") for v in (-0.5, NAN, INF, -INF)),
    *((softmax_focal_loss, "alpha", v, "finite numbers >= 0") for v in (-0.25, NAN, INF, -INF)),
    *((softmax_focal_loss, "normalizer", v, "finite numbers > 0") for v in (0, -3, NAN, INF)),
    *((margin_softmax_loss, "label_smoothing", v, ">= 0 and <= 1") for v in (-0.1, 1.5, NAN)),
    *(
        (margin_softmax_loss, name, v, "finite numbers > 0")
        for name in ("scale", "m1")
        for v in (0, -1.5, NAN, INF, -INF)
    ),
    *(
        (margin_softmax_loss, name, v, "finite numbers")
        for name in ("m2", "m3", "filter_threshold")
        for v in (NAN, INF, -INF)
    ),
]


@pytest.mark.parametrize(("function", "name", "value", "accepted"), RANGES)
def test_numbers_out_of_range(function: Any, name: str, value: float, accepted: str) -> None:
    message = f"{name} is {value:g}|{accepted}"
    refused_by(function, ValueError, message, logits(), labels(), **{name: value})


NUMBERS = sorted({(f.__name__, name) for f, name, *_ in RANGES})


@pytest.mark.parametrize(("function", "name"), NUMBERS)
@pytest.mark.parametrize(
    ("value", "given"),
    [(True, "bool"), ("0.5", "str"), ([0.5], "list"), (0.5j, "complex"), (object(), "object")],
)
def test_numbers_of_the_wrong_type(function: str, name: str, value: object, given: str) -> None:
    message = f"{name} must be a number|got {given}"
    options = {name: value}
    refused_by(getattr(fusedloss, function), TypeError, message, logits(), labels(), **options)


@pytest.mark.parametrize(("function", "name"), NUMBERS)
def test_none_and_tensors_where_numbers_are_needed(function: str, name: str) -> None:
    for value, given in ((None, "NoneType"), (torch.tensor(0.5), "Tensor")):
        accepted = {
            "NoneType": ("alpha", "normalizer", "filter_threshold"),
            "Tensor": ("alpha", "normalizer", "m1", "m2", "m3"),
        }
        if name not in accepted[given]:
            message = f"{name} must be a number|{given}"
            call = getattr(fusedloss, function)
            refused_by(call, TypeError, message, logits(), labels(), **{name: value})


@pytest.mark.parametrize("value", ["mean", "Uniform", "", None, 0, True])
def test_smoothing(value: object) -> None:
    message = f"smoothing is {value!r}|accepted are 'uniform' and 'others'"
    refused_by(cross_entropy, ValueError, message, logits(), labels(), smoothing=value)


@pytest.mark.parametrize("value", ["linearly", "None", "", None, True, "exact"])
def test_forms_of_the_margin(value: object) -> None:
    message = f"monotonic is {value!r}|accepted are 'linear' and 'none'"
    refused_by(margin_softmax_loss, ValueError, message, logits(), labels(), monotonic=value)
    if value != "exact":
        message = f"gradient is {value!r}|accepted are 'exact' and 'straight_through'"
        refused_by(margin_softmax_loss, ValueError, message, logits(), labels(), gradient=value)


def test_a_filter_together_with_smoothing() -> None:
    both = {"filter_threshold": 0.4, "label_smoothing": 0.1}
    message = "filter_threshold is 0.4 and label_smoothing 0.1|accepted is one of the two"
    refused_by(margin_softmax_loss, ValueError, message, logits(), labels(), **both)


FLAGS = [
    (cross_entropy, "inplace_backward"),
    *((margin_softmax_loss, name) for name in ("inplace_backward", "easy_margin")),
]


@pytest.mark.parametrize(("function", "name"), FLAGS)
@pytest.mark.parametrize(
    ("value", "given"), [(1, "int"), (None, "NoneType"), ("yes", "str"), (0.0, "float")]
)
def test_flags(function: Any, name: str, value: object, given: str) -> None:
    message = f"{name} must be a bool|got {given}"
    refused_by(function, TypeError, message, logits(), labels(), **{name: value})


@each_function
@pytest.mark.parametrize(
    ("value", "given"), [(1.0, "float"), (True, "bool"), (None, "NoneType"), ("1", "str")]
)
def test_ignore_index_that_is_no_int(function: Any, value: object, given: str) -> None:
    message = f"ignore_index must be an int|got {given}"
    refused_by(function, TypeError, message, logits(), labels(), ignore_index=value)


@each_function
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_ignore_index_beyond_64_bits(function: Any, value: int) -> None:
    message = f"ignore_index is {value}|accepted"
    refused_by(function, ValueError, message, logits(), labels(), ignore_index=value)


@each_function
@pytest.mark.parametrize("value", ["avg", "Mean", "", None, 1, True, ["mean"]])
def test_reduction(function: Any, value: object) -> None:
    message = f"reduction is {value!r}|accepted are 'none', 'mean' and 'sum'"
    refused_by(function, ValueError, message, logits(), labels(), reduction=value)


def test_options_are_keywords_only() -> None:
    for function in (cross_entropy, nll_loss):
        with pytest.raises(TypeError, match="positional"):
            function(logits(), labels(), None, -100)  # type: ignore[operator]
    for function in (softmax_focal_loss, margin_softmax_loss):
        with pytest.raises(TypeError, match="positional"):
            function(logits(), labels(), None)  # type: ignore[operator]
    for function in FUNCTIONS:
        with pytest.raises(TypeError, match="focus"):
            function(logits(), labels(), focus=2.0)  # type: ignore[operator]


@each_function
def test_labels_named_in_the_error(function: Any) -> None:
    default = inspect.signature(function).parameters["ignore_index"].default
    for bad in (-101 - default, -2, 4, 99, -101):  # -1 or -100: the other default
        target = torch.tensor([0, bad, 3])
        for backend in ("native", "reference"):
            with fusedloss.backend(backend), pytest.raises(IndexError) as caught:
                function(logits(), target)
            text = str(caught.value)
            assert text.startswith(f"{function.__name__}: target holds label {bad}, but")
            assert re.search("4 classes; accepted are 0 to 3 and ignore_index", text)
    # The first in memory order, on every number of threads.
    many = torch.zeros(20_000, dtype=torch.int64)
    many[[5_000, 19_999]] = torch.tensor([7, 8])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for schedule in ("recompute", "forward"):
            x = torch.zeros(20_000, 4, requires_grad=True)
            with fusedloss.gradient_schedule(schedule), pytest.raises(IndexError, match="label 7"):
                function(x, many)


@pytest.mark.parametrize(
    ("module", "error", "message", "options"),
    [
        (CrossEntropyLoss, TypeError, "weight must be a tensor|list", {"weight": [0.5]}),
        (CrossEntropyLoss, TypeError, "ignore_index must be an int", {"ignore_index": 255.0}),
        (CrossEntropyLoss, ValueError, "label_smoothing is 2|<= 1", {"label_smoothing": 2.0}),
        (CrossEntropyLoss, ValueError, "smoothing is 'x'|'others'", {"smoothing": "x"}),
        (CrossEntropyLoss, ValueError, "z_loss is -1|>= 0", {"z_loss": -1.0}),
        (CrossEntropyLoss, ValueError, "reduction is 'avg'|'mean'", {"reduction": "avg"}),
        (CrossEntropyLoss, TypeError, "inplace_backward must be", {"inplace_backward": 1}),
        (LabelSmoothingCrossEntropyLoss, ValueError, "label_smoothing", {"label_smoothing": -1.0}),
        (LabelSmoothingCrossEntropyLoss, ValueError, "smoothing is", {"smoothing": "x"}),
        (LabelSmoothingCrossEntropyLoss, ValueError, "reduction is", {"reduction": "avg"}),
        (NLLLoss, TypeError, "weight must be a tensor|list", {"weight": [0.5]}),
        (NLLLoss, TypeError, "ignore_index must be an int", {"ignore_index": 255.0}),
        (NLLLoss, ValueError, "reduction is 'avg'|'mean'", {"reduction": "avg"}),
        (SoftmaxFocalLoss, ValueError, "gamma is -1|>= 0", {"gamma": -1.0}),
        (SoftmaxFocalLoss, ValueError, "alpha is -3|>= 0", {"alpha": -3.0}),
        (SoftmaxFocalLoss, TypeError, "alpha must be a number|list", {"alpha": [0.25, 0.75]}),
        (SoftmaxFocalLoss, ValueError, "alpha has shape (2, 2)", {"alpha": torch.ones(2, 2)}),
        (SoftmaxFocalLoss, ValueError, "label_smoothing is 2", {"label_smoothing": 2.0}),
        (SoftmaxFocalLoss, ValueError, "reduction is 'avg'", {"reduction": "avg"}),
    ],
)
def test_module_refuses_wrong_options_at_construction(
    module: Any, error: type[Exception], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        module(**options)
    for part in message.split("|"):
        assert part in str(caught.value)


def test_accepted_edges() -> None:
    # The ends of every range are inside it.
    x, target = torch.randn(3, 4), labels()
    for function, options in (
        *((cross_entropy, {"label_smoothing": v}) for v in (0, 1)),
        *((cross_entropy, {"label_smoothing": 1, "smoothing": "others"}),),
        *((cross_entropy, {"z_loss": v}) for v in (0, 3)),
        *((cross_entropy, {"ignore_index": v}) for v in (2**63 - 1, -(2**63))),
        *((cross_entropy, {"weight": torch.ones(4, dtype=d)}) for d in (torch.int64, torch.half)),
        *((softmax_focal_loss, {"gamma": v}) for v in (0, 9.5)),
        *((softmax_focal_loss, {"alpha": v}) for v in (0, 1, 7.5, torch.tensor(0.3))),
        *((softmax_focal_loss, {"normalizer": v}) for v in (1e-30, torch.ones(1, 1))),
        (nll_loss, {"weight": torch.zeros(4), "reduction": "sum"}),
        *((margin_softmax_loss, {"scale": v}) for v in (1e-3, 1, 200)),
        *((margin_softmax_loss, {"m1": v}) for v in (1e-3, 7, torch.tensor(2))),
        *((margin_softmax_loss, {"m2": v}) for v in (-8, 8, torch.ones(4, dtype=torch.half))),
        *((margin_softmax_loss, {"m3": v}) for v in (-2, 2, torch.ones(4, dtype=torch.bool))),
        *((margin_softmax_loss, {"filter_threshold": v}) for v in (-9, 9)),
        *((margin_softmax_loss, {"label_smoothing": v, "m2": 1}) for v in (0, 1)),
        *((margin_softmax_loss, {"ignore_index": v}) for v in (2**63 - 1, -(2**63))),
    ):
        got = function(x, target, **options)  # type: ignore[operator]
        with fusedloss.backend("reference"):
            wide = function(x.double(), target, **options)  # type: ignore[operator]
        assert torch.isfinite(got)
        torch.testing.assert_close(got.double(), wide, rtol=2e-5, atol=1e-12, msg=str(options))
