"""Wrong arguments: the error names the argument, what was given and what is accepted, at once. Here
those of the sigmoid focal loss, and of what all losses have; test_arguments_classes.py has those of
the losses over a softmax.
"""

from __future__ import annotations

import re
from typing import Any

import fusedloss
import pytest
import torch
from fusedloss import SigmoidFocalLoss, sigmoid_focal_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NAN, INF = float("nan"), float("inf")
ROWS, CLASSES = 3, 4


class NoWork(TorchDispatchMode):
    """Fails on every operator that runs."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} ran before the arguments were checked")


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros of any dtype."""
    return torch.zeros(ROWS, CLASSES).to(dtype)


def labels(dtype: torch.dtype = torch.int64) -> Tensor:
    """One class index a row."""
    return torch.tensor([0, 3, 4]).to(dtype)


def refused_by(
    function: Any, error: type[Exception], message: str, *args: Any, **options: Any
) -> None:
    """The call raises `error` with all parts of `message` (split at |), on every backend."""
    for backend in ("auto", "native", "reference"):
        with fusedloss.backend(backend), NoWork(), pytest.raises(error) as caught:
            function(*args, **options)
        text = str(caught.value)
        for part in (f"{function.__name__}:", *message.split("|")):
            assert part in text, f"{part!r} is not in {text!r}"


def refused(error: type[Exception], message: str, *args: Any, **options: Any) -> None:
    """The same for the sigmoid focal loss."""
    refused_by(sigmoid_focal_loss, error, message, *args, **options)


FOUR = "float32, float64, float16, bfloat16"


@pytest.mark.parametrize(
    ("value", "given"),
    [(None, "NoneType"), ([0.0], "list"), (0.5, "float"), ("x", "str")],
)
def test_not_a_tensor(value: object, given: str) -> None:
    refused(TypeError, f"input must be a tensor|{given}", value, labels())
    refused(TypeError, f"target must be a tensor|{given}", logits(), value)
    if value is not None:
        refused(TypeError, f"weight must be a tensor|{given}", logits(), labels(), weight=value)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.uint16,
        torch.bool,
    ],
)
def test_dtype_of_logits(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    refused(TypeError, f"input has dtype {name}|accepted are {FOUR}", logits(dtype), labels())


@pytest.mark.parametrize(
    "dtype", [torch.complex128, torch.float8_e4m3fn, torch.uint16, torch.uint32, torch.uint64]
)
@pytest.mark.parametrize("name", ["target", "weight", "alpha", "normalizer"])
def test_dtype_of_the_other_tensors(name: str, dtype: torch.dtype) -> None:
    given = f"has dtype {str(dtype).removeprefix('torch.')}|accepted are {FOUR}, int64"
    if name == "target":
        refused(TypeError, f"target {given}", logits(), logits(dtype))
        return
    value = torch.ones(()).to(dtype)
    refused(TypeError, f"{name} {given}", logits(), labels(), **{name: value})


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.bool, torch.float32, torch.float64, torch.float16, torch.bfloat16],
)
def test_dtype_of_class_indices(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    refused(
        TypeError,
        f"target (class indices) has dtype {name}|accepted are int64, int32, int16, uint8",
        logits(),
        labels(dtype),
    )


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("sparse", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
def test_layouts_that_are_not_strided(sparse: str) -> None:
    if sparse == "to_mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    other = getattr(logits(), sparse)()
    refused(TypeError, "input must be a dense tensor|layout torch.", other, labels())
    refused(TypeError, "target must be a dense tensor|layout torch.", logits(), other)
    refused(TypeError, "weight must be a dense tensor|layout", logits(), labels(), weight=other)


@pytest.mark.parametrize(
    ("input_shape", "target_shape", "accepted"),
    [
        ((3, 4), (4,), "(3, 4) or, as class indices, (3,)"),
        ((3, 4), (3, 1), "(3, 4) or, as class indices, (3,)"),
        ((3, 4), (4, 3), "(3, 4) or, as class indices, (3,)"),
        ((3, 4), (), "(3, 4) or, as class indices, (3,)"),
        ((3, 4), (1, 3, 4), "(3, 4) or, as class indices, (3,)"),
        ((2, 3, 4), (2, 4), "(2, 3, 4) or, as class indices, (2, 3)"),
        ((5,), (4,), "(5,) or, as class indices, ()"),
        ((), (1,), "accepted are ()"),
        ((0, 5), (1,), "(0, 5) or, as class indices, (0,)"),
    ],
)
def test_shape_of_target(
    input_shape: tuple[int, ...], target_shape: tuple[int, ...], accepted: str
) -> None:
    target = torch.zeros(target_shape, dtype=torch.int64)
    message = f"target has shape {target_shape}|accepted are|{accepted}"
    refused(ValueError, message, torch.zeros(input_shape), target)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (3, 3), (1, 3, 4), (5, 3, 4), (0,), (2, 4)])
def test_shape_of_weight(shape: tuple[int, ...]) -> None:
    message = f"weight has shape {shape}|does not broadcast to input's (3, 4)"
    refused(ValueError, message, logits(), labels(), weight=torch.ones(shape))


def test_weight_that_would_enlarge_the_input() -> None:
    refused(
        ValueError,
        "weight has shape (7, 4)|input's (1, 4)",
        torch.zeros(1, 4),
        torch.zeros(1, dtype=torch.int64),
        weight=torch.ones(7, 4),
    )
    refused(
        ValueError,
        "weight has shape (1,)|input's ()",
        torch.zeros(()),
        torch.zeros(()),
        weight=torch.ones(1),
    )


@pytest.mark.parametrize("shape", [(3,), (5,), (0,), (2, 2), (1, 4), (3, 4)])
def test_shape_of_alpha(shape: tuple[int, ...]) -> None:
    message = f"alpha has shape {shape}|accepted are a number and|one"
    refused(ValueError, message, logits(), labels(), alpha=torch.full(shape, 0.5))


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 2), (4,)])
def test_shape_of_normalizer(shape: tuple[int, ...]) -> None:
    message = f"normalizer has shape {shape}|accepted are one element"
    refused(ValueError, message, logits(), labels(), normalizer=torch.ones(shape))


@pytest.mark.parametrize("name", ["target", "weight", "alpha", "normalizer"])
def test_device(name: str) -> None:
    value = torch.ones(1 if name == "normalizer" else CLASSES, device="meta")
    if name == "target":
        refused(ValueError, "target is on meta|input is on cpu", logits(), labels().to("meta"))
        refused(ValueError, "target is on cpu|input is on meta", logits().to("meta"), labels())
        return
    message = f"{name} is on meta|input is on cpu"
    refused(ValueError, message, logits(), labels(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "given", "accepted"),
    [
        ("gamma", -0.5, "-0.5", "finite numbers >= 0"),
        ("gamma", -1, "-1", "finite numbers >= 0"),
        ("gamma", NAN, "nan", "finite numbers >= 0"),
        ("gamma", INF, "inf", "finite numbers >= 0"),
        ("gamma", -INF, "-inf", "finite numbers >= 0"),
        ("alpha", 1.01, "1.01", "<= 1|accepted are"),
        ("alpha", 2, "2", "<= 1|accepted are"),
        ("alpha", INF, "inf", "<= 1|accepted are"),
        ("alpha", NAN, "nan", "accepted are"),
        ("label_smoothing", -0.1, "-0.1", ">= 0 and <= 1"),
        ("label_smoothing", 1.5, "1.5", ">= 0 and <= 1"),
        ("label_smoothing", NAN, "nan", ">= 0 and <= 1"),
        ("normalizer", 0, "0", "finite numbers > 0"),
        ("normalizer", 0.0, "0", "finite numbers > 0"),
        ("normalizer", -3, "-3", "finite numbers > 0"),
        ("normalizer", NAN, "nan", "finite numbers > 0"),
        ("normalizer", INF, "inf", "finite numbers > 0"),
    ],
)
def test_numbers_out_of_range(name: str, value: float, given: str, accepted: str) -> None:
    message = f"{name} is {given}|{accepted}"
    refused(ValueError, message, logits(), labels(), **{name: value})


@pytest.mark.parametrize("name", ["gamma", "alpha", "label_smoothing", "normalizer"])
@pytest.mark.parametrize(
    ("value", "given"),
    [(True, "bool"), ("0.5", "str"), ([0.5], "list"), (0.5j, "complex"), (object(), "object")],
)
def test_numbers_of_the_wrong_type(name: str, value: object, given: str) -> None:
    message = f"{name} must be a number|got {given}"
    refused(TypeError, message, logits(), labels(), **{name: value})


@pytest.mark.parametrize("name", ["gamma", "label_smoothing"])
def test_tensors_where_numbers_are_needed(name: str) -> None:
    # Reading the value would wait for the device.
    message = f"{name} must be a number|got Tensor"
    refused(TypeError, message, logits(), labels(), **{name: torch.tensor(0.5)})


@pytest.mark.parametrize("name", ["gamma", "label_smoothing"])
def test_none_where_numbers_are_needed(name: str) -> None:
    refused(TypeError, f"{name} must be a number|NoneType", logits(), labels(), **{name: None})


@pytest.mark.parametrize(
    ("value", "given"),
    [(1.0, "float"), (True, "bool"), (None, "NoneType"), ("1", "str"), (INF, "float")],
)
def test_ignore_index_that_is_no_int(value: object, given: str) -> None:
    message = f"ignore_index must be an int|got {given}"
    refused(TypeError, message, logits(), labels(), ignore_index=value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_ignore_index_beyond_64_bits(value: int) -> None:
    refused(ValueError, f"ignore_index is {value}|accepted", logits(), labels(), ignore_index=value)


@pytest.mark.parametrize("value", ["avg", "Mean", "", None, 1, True, ["mean"]])
def test_reduction(value: object) -> None:
    message = f"reduction is {value!r}|accepted are 'none', 'mean' and 'sum'"
    refused(ValueError, message, logits(), labels(), reduction=value)


def test_dimensions() -> None:
    x = torch.zeros([1] * 13)
    refused(ValueError, "input has 13 dimensions|accepted are at most 12", x, x)
    most = torch.zeros([1] * 12)
    assert sigmoid_focal_loss(most, most).item() == pytest.approx(0.75 * 0.25 * 0.693147, rel=1e-5)


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        sigmoid_focal_loss(logits(), labels(), 0.25)  # type: ignore[misc]
    with pytest.raises(TypeError, match="focus"):
        sigmoid_focal_loss(logits(), labels(), focus=2.0)  # type: ignore[call-arg]


def test_labels_named_in_the_error() -> None:
    for bad in (-2, 5, 99, -101):
        target = torch.tensor([0, bad, 4])
        for backend in ("native", "reference"):
            with fusedloss.backend(backend), pytest.raises(IndexError) as caught:
                sigmoid_focal_loss(logits(), target)
            text = str(caught.value)
            assert re.search(rf"label {bad}\b", text)
            assert "4 classes" in text
            assert "0 to 3, 4 or -1" in text
    # The first in memory order, on every number of threads.
    many = torch.zeros(20_000, dtype=torch.int64)
    many[[5_000, 19_999]] = torch.tensor([7, 8])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with pytest.raises(IndexError, match="label 7"):
            sigmoid_focal_loss(torch.zeros(20_000, 4), many)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "gamma is -1|>= 0", {"gamma": -1.0}),
        (TypeError, "gamma must be a number|str", {"gamma": "2"}),
        (ValueError, "alpha is 3|<= 1", {"alpha": 3.0}),
        (TypeError, "alpha must be a number|list", {"alpha": [0.25, 0.75]}),
        (ValueError, "alpha has shape (2, 2)|accepted", {"alpha": torch.full((2, 2), 0.5)}),
        (TypeError, "alpha has dtype complex64", {"alpha": torch.ones(3, dtype=torch.complex64)}),
        (TypeError, "ignore_index must be an int|float", {"ignore_index": 255.0}),
        (ValueError, "label_smoothing is 2|<= 1", {"label_smoothing": 2.0}),
        (ValueError, "reduction is 'avg'|'mean'", {"reduction": "avg"}),
    ],
)
def test_module_refuses_wrong_options_at_construction(
    error: type[Exception], message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        SigmoidFocalLoss(**options)
    for part in message.split("|"):
        assert part in str(caught.value)


def test_module_construction_needs_no_kernel_and_gives_no_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    module = SigmoidFocalLoss(torch.tensor([0.2, 0.8], device="meta"), gamma=0.5)
    assert module.gamma == 0.5
    assert [str(w.message) for w in recwarn] == []


def test_accepted_edges() -> None:
    # The ends of every range are inside it.
    x, target = torch.randn(ROWS, CLASSES), labels()
    for options in (
        {"gamma": 0},
        {"gamma": 9.5},
        {"alpha": 0},
        {"alpha": 1},
        {"alpha": -INF},
        {"alpha": torch.tensor(0.3)},
        {"alpha": torch.tensor([0.3])},
        {"label_smoothing": 0},
        {"label_smoothing": 1},
        {"normalizer": 1e-30},
        {"normalizer": torch.ones(1, 1)},
        {"ignore_index": 2**63 - 1},
        {"ignore_index": -(2**63)},
        {"weight": torch.ones(())},
        {"weight": torch.ones(3, 1)},
    ):
        got = sigmoid_focal_loss(x, target, **options)  # type: ignore[arg-type]
        with fusedloss.backend("reference"):
            wide = sigmoid_focal_loss(x.double(), target, **options)  # type: ignore[arg-type]
        assert torch.isfinite(got)
        torch.testing.assert_close(got.double(), wide, rtol=2e-5, atol=1e-12, msg=str(options))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_alpha_of_one_element_where_the_input_has_no_dimensions(reduction: str) -> None:
    x, target = torch.tensor(0.3), torch.tensor(1.0)
    expected = sigmoid_focal_loss(x, target, alpha=0.6, reduction=reduction)
    for backend in ("native", "reference"):
        for alpha in (torch.tensor(0.6), torch.tensor([0.6])):
            with fusedloss.backend(backend):
                got = sigmoid_focal_loss(x, target, alpha=alpha, reduction=reduction)
            assert got.shape == ()
            torch.testing.assert_close(got, expected)


def test_numbers_beyond_float64_are_refused_by_name() -> None:
    x = torch.zeros(3, 4)
    for gamma in (10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"gamma is -?inf"):
            sigmoid_focal_loss(x, x, gamma=gamma)


def test_nested_tensors_are_refused_by_name() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(3, 4), torch.zeros(2, 4)])
    with pytest.raises(TypeError, match="input must be a dense tensor, got layout nested"):
        sigmoid_focal_loss(nested, torch.zeros(5, 4))
