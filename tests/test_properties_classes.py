"""Properties of the losses over a softmax, as test_properties.py for the sigmoid focal loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import fusedloss
import torch
from cases import CROSS_ENTROPY, MARGIN_SOFTMAX, SOFTMAX_FOCAL, Loss
from hypothesis import assume, given
from hypothesis import strategies as st
from test_properties import (
    DTYPES,
    INDEX_DTYPES,
    LAYOUTS,
    SIZES,
    accumulator,
    close,
    dtype_holds,
    evaluate,
    laid_out,
    random_input,
    repeatable,
)
from tolerances import check_close
from torch import Tensor

CLASSES = st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 65])
# Past one block of the engine: in rows, in classes and in pixels.
LONG = [[2100, 2], [2, 1025], [1, 2049], [1, 3, 1030], [2, 33, 65]]


@dataclass
class Draw:
    """One call of `loss` under a schedule."""

    loss: Loss
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    schedule: str
    upstream: Tensor
    how: str = field(default="")

    def __repr__(self) -> str:
        return f"Draw({self.how})"

    @property
    def dim(self) -> int:
        """The class dimension."""
        return self.loss.class_dim(self.input.dim())

    @property
    def indexed(self) -> bool:
        """Whether the targets are labels."""
        return self.target.dim() != self.input.dim()

    def valid(self) -> Tensor:
        """Which rows count."""
        if not self.indexed:
            return torch.ones_like(self.target.select(self.dim, 0), dtype=torch.bool)
        keep: Tensor = self.target != self.options["ignore_index"]
        return keep


def random_labels(
    draw: st.DrawFn, rows: list[int], classes: int, ignore_index: int, generator: torch.Generator
) -> Tensor:
    """Class indices of any dtype, some of them ignored."""
    dtype = draw(st.sampled_from(INDEX_DTYPES))
    target = torch.randint(0, classes, rows, generator=generator).to(dtype)
    if dtype_holds(dtype, ignore_index) and draw(st.booleans()):
        target[torch.rand(rows, generator=generator) < 0.3] = ignore_index
    return target


def random_options(
    draw: st.DrawFn, loss: Loss, classes: int, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Any]:
    """Any legal combination of options."""
    side = draw(st.sampled_from([accumulator(dtype), torch.float32]))
    vector = torch.rand(classes, generator=generator).to(side) + 0.05
    options: dict[str, Any] = {
        "label_smoothing": draw(st.sampled_from([0, 0, 0.1, 0.6])),
        "ignore_index": draw(st.sampled_from([-100, -100, -1, 0, 1, 255])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if loss is CROSS_ENTROPY:
        options["weight"] = draw(st.sampled_from([None, vector]))
        options["smoothing"] = draw(st.sampled_from(["uniform", "others"]))
        options["z_loss"] = draw(st.sampled_from([0.0, 0.0, 0.1]))
    elif loss is MARGIN_SOFTMAX:
        options |= random_margins(draw, vector, bool(options["label_smoothing"]))
    else:
        options["alpha"] = draw(st.sampled_from([None, 0.25, 1.5, vector]))
        options["gamma"] = draw(st.sampled_from([0, 0.3, 0.5, 1, 1.3, 2.0, 2.0, 3, 5.5]))
        options["normalizer"] = draw(st.sampled_from([None, None, 3, torch.tensor(5.0)]))
    return options


def random_margins(draw: st.DrawFn, vector: Tensor, smoothed: bool) -> dict[str, Any]:
    """Options of the margin softmax; `vector` is positive and has a number for each class."""
    thresholds = [None] if smoothed else [None, None, 0.2, -0.7]
    return {
        "scale": draw(st.sampled_from([1, 10.0, 30, 64.0])),
        "m1": draw(st.sampled_from([1, 1.0, 0.9, 1.7, 4, vector + 0.5])),
        "m2": draw(st.sampled_from([0, 0.0, 0.5, -0.3, 2.0, vector])),
        "m3": draw(st.sampled_from([0, 0.35, -0.1, vector])),
        "easy_margin": draw(st.booleans()),
        "monotonic": draw(st.sampled_from(["linear", "none"])),
        "gradient": draw(st.sampled_from(["exact", "exact", "straight_through"])),
        "filter_threshold": draw(st.sampled_from(thresholds)),
    }


@st.composite
def draws(draw: st.DrawFn, /, loss: Loss | None = None, **fixed: Any) -> Draw:
    """Any legal call; `fixed` options are as given."""
    if loss is None:
        loss = draw(st.sampled_from([CROSS_ENTROPY, SOFTMAX_FOCAL, MARGIN_SOFTMAX]))
    shape = [draw(CLASSES), *draw(st.lists(SIZES, max_size=4))]
    if len(shape) > 1:  # the batch comes first
        shape[:2] = shape[1::-1]
    if draw(st.integers(0, 6)) == 6:  # not 0, where shrinking ends
        shape = draw(st.sampled_from(LONG))
    assume(torch.Size(shape).numel() <= 6000)
    dim = loss.class_dim(len(shape))
    rows = shape[:dim] + shape[dim + 1 :]
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    layout, order = draw(st.sampled_from(LAYOUTS)), draw(st.permutations(range(len(shape))))
    options = random_options(draw, loss, shape[dim], dtype, generator) | fixed
    values = random_input(draw, shape, generator)
    values = torch.tanh(values) * 0.98 if loss.cosines else values
    input = laid_out(values.to(dtype), layout, order)
    if loss is CROSS_ENTROPY and draw(st.integers(0, 2)) == 0:
        target = torch.softmax(torch.randn(shape, generator=generator), dim)
        target = target.to(draw(st.sampled_from(DTYPES)))
    else:
        target = random_labels(draw, rows, shape[dim], options["ignore_index"], generator)
    target_layout = draw(st.sampled_from(LAYOUTS))
    target = laid_out(target, target_layout, [d for d in order if d < target.dim()])
    upstream = torch.rand(rows if options["reduction"] == "none" else [], generator=generator)
    schedule = draw(st.sampled_from(["recompute", "forward"]))
    how = f"{loss.name} {shape} {dtype} {layout} {order}, {target.dtype} {target_layout}, {options}"
    return Draw(loss, input, target, options, schedule, upstream, f"{how}, {schedule}")


def native(case: Draw, **options: Any) -> tuple[Tensor, Tensor]:
    """(loss, gradient) of the kernels."""
    with fusedloss.backend("native"):
        return evaluate(case, case.loss.function, case.input, **options)


def check_against_reference(case: Draw, loss: Tensor, grad: Tensor) -> None:
    """Value and gradient, within what the eager reference errs in the same dtype."""
    wide = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in case.options.items()
    }
    exact = evaluate(case, case.loss.reference, case.input.double(), **wide)
    eager = evaluate(case, case.loss.reference, case.input)
    assert grad.dtype == case.input.dtype
    check_close("loss", loss, exact[0], eager[0])
    # Probabilities set no class apart, so their gradient is a difference, p_j sum_u - u_j.
    terms = 0.0
    if not case.indexed and case.input.numel():
        rows = case.input.numel() // case.input.size(case.dim)
        terms = float(case.upstream.max()) / (rows if case.options["reduction"] == "mean" else 1)
    check_close("gradient", grad, exact[1], eager[1], terms=terms)


@repeatable
@given(draws())
def test_kernels_equal_the_float64_reference(case: Draw) -> None:
    check_against_reference(case, *native(case))


@repeatable
@given(draws(), st.integers(0, 1000))
def test_emulated_cuda_equals_the_float64_reference(
    emulator: ModuleType, case: Draw, seed: int
) -> None:
    assume(case.input.numel() <= 1500)
    emulator.configure(count=False, race_check=seed % 4 == 0, seed=seed)
    upstream = case.upstream.to(accumulator(case.input.dtype))
    kernel = case.loss.emulated(emulator, case.input, case.target, **case.options)
    check_against_reference(case, *kernel.run(case.schedule, upstream))


@repeatable
@given(draws(reduction="none"), st.randoms(use_true_random=False))
def test_rows_in_another_order_give_the_losses_in_that_order(case: Draw, random: Any) -> None:
    assume(case.input.dim() > 1)
    rows = case.input.size(0)
    order = torch.tensor(random.sample(range(rows), rows), dtype=torch.long)
    loss, grad = native(case)
    case = replace(
        case,
        input=case.input[order],
        target=case.target[order],
        upstream=case.upstream[order],
    )
    got = native(case)
    # Another place in memory may be served by another loop, which rounds in another order.
    assert close(got[0], loss[order], 4)
    assert close(got[1], grad[order], 4)


@repeatable
@given(draws(), st.randoms(use_true_random=False))
def test_classes_in_another_order_permute_the_gradient(case: Draw, random: Any) -> None:
    classes = case.input.size(case.dim)
    order = torch.tensor(random.sample(range(classes), classes))
    assume(case.options["ignore_index"] < 0 or not case.indexed)
    loss, grad = native(case)
    options = {
        name: value[order] if isinstance(value, Tensor) and value.numel() == classes else value
        for name, value in case.options.items()
        if name != "normalizer"
    } | {name: case.options[name] for name in case.options if name == "normalizer"}
    if case.indexed:
        place = order.argsort()[case.target.long().clamp(min=0)]
        target = torch.where(case.valid(), place, case.options["ignore_index"])
    else:
        target = case.target.index_select(case.dim, order)
    moved = replace(
        case, input=case.input.index_select(case.dim, order), target=target, options=options
    )
    got = native(moved)
    check_close("loss", got[0], loss.double(), loss)
    check_close("gradient", got[1], grad.index_select(case.dim, order).double(), got[1])


@repeatable
@given(draws(reduction="sum"))
def test_sum_and_mean_are_those_of_the_rows(case: Draw) -> None:
    total, total_grad = native(case)
    rows = case.input.shape[: case.dim] + case.input.shape[case.dim + 1 :]
    each, each_grad = native(replace(case, upstream=case.upstream.expand(rows)), reduction="none")
    assert each.shape == rows
    assert (each >= 0).all()
    assert close(total, each.double().sum(), 4)
    assert close(total_grad, each_grad, 2)
    valid = case.valid()
    assert (each[~valid] == 0).all()

    mean, _ = native(case, reduction="mean")
    count = int(valid.sum())
    if case.loss is not CROSS_ENTROPY:
        normalizer = case.options.get("normalizer")
        divisor = float(count if normalizer is None else normalizer)
        assert close(mean * divisor, total, 6) if count else mean == 0
        return
    # Two terms with a divisor each: one is 0 without class weights or z_loss.
    weight, z = case.options["weight"], case.options["z_loss"]
    divisor = float(count)
    if weight is not None and case.indexed:
        divisor = float(weight.double()[case.target.long()[valid]].sum())
    if count == 0:
        assert torch.isnan(mean)
    elif not z or divisor == count:
        assert close(mean * divisor, total, 8)
    else:
        plain, _ = native(case, z_loss=0.0)
        assert close(mean, plain.double() / divisor + (total - plain).double() / count, 16)


@repeatable
@given(draws(), st.sampled_from([0.0, float("nan"), float("inf"), -1e4]))
def test_ignored_rows_contribute_nothing(case: Draw, garbage: float) -> None:
    _, grad = native(case)
    valid = case.valid()
    assume(case.input.numel() and not bool(valid.all()))
    ignored = (~valid).unsqueeze(case.dim).expand_as(case.input)
    assert (grad[ignored] == 0).all()
    spoiled = case.input.clone(memory_format=torch.contiguous_format)
    clean = native(replace(case, input=spoiled.clone()))
    spoiled[ignored] = garbage
    again, again_grad = native(replace(case, input=spoiled))
    torch.testing.assert_close(again, clean[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again_grad, clean[1])


@repeatable
@given(draws())
def test_all_ignored(case: Draw) -> None:
    ignore_index = case.options["ignore_index"]
    assume(case.indexed and dtype_holds(case.target.dtype, ignore_index))
    case.target = torch.full_like(case.target, ignore_index)
    loss, grad = native(case)
    nothing = case.options["reduction"] == "mean" and case.loss is CROSS_ENTROPY
    assert torch.isnan(loss) if nothing else (loss == 0).all()
    assert (grad == 0).all()
    assert grad.shape == case.input.shape


@repeatable
@given(draws(loss=CROSS_ENTROPY, ignore_index=-100, reduction="none"))
def test_one_hot_probabilities_equal_class_indices(case: Draw) -> None:
    assume(case.indexed and case.input.numel() and bool(case.valid().all()))
    loss, grad = native(case)
    classes = case.input.size(case.dim)
    hot = torch.nn.functional.one_hot(case.target.long(), classes).movedim(-1, case.dim)
    dense = replace(case, target=hot.to(case.input.dtype))
    got, got_grad = native(dense)
    # Probabilities set no class apart: 1 - p_t is a difference there.
    torch.testing.assert_close(got, loss, rtol=1e-5, atol=4 * torch.finfo(loss.dtype).eps)
    eps = torch.finfo(grad.dtype).eps
    torch.testing.assert_close(got_grad, grad, rtol=4 * eps, atol=16 * torch.finfo(loss.dtype).eps)


@repeatable
@given(draws(), st.integers(1, 3))
def test_both_schedules_and_any_thread_count_agree(case: Draw, threads: int) -> None:
    loss, grad = native(case)
    torch.set_num_threads(threads)
    again, again_grad = native(case)
    torch.testing.assert_close(again, loss, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again_grad, grad)
    case.schedule = "recompute" if case.schedule == "forward" else "forward"
    other, other_grad = native(case)
    if torch.isfinite(loss).all():
        assert close(other, loss, 4)
    # The upstream gradient multiplies before or after the rounding to the logits' dtype.
    check_close("gradient", other_grad, grad.double(), grad)


@repeatable
@given(draws())
def test_layout_of_the_logits_changes_rounding_only(case: Draw) -> None:
    loss, grad = native(case)
    flat, flat_grad = native(
        replace(case, input=case.input.contiguous(), target=case.target.contiguous())
    )
    check_close("loss", flat, loss.double(), loss)
    check_close("gradient", flat_grad, grad.double(), grad)


@repeatable
@given(draws(z_loss=0.0, loss=CROSS_ENTROPY) | draws(loss=SOFTMAX_FOCAL))
def test_gradient_sums_to_zero_over_the_classes(case: Draw) -> None:
    # The losses do not change when a constant is added to all logits of a row.
    assume(case.input.numel())
    _, grad = native(case)
    scale = max(float(grad.double().abs().max()), torch.finfo(grad.dtype).smallest_normal)
    unit = torch.finfo(grad.dtype).eps * scale * case.input.size(case.dim)
    assert float(grad.double().sum(case.dim).abs().max()) <= 4 * unit


@repeatable
@given(draws(loss=MARGIN_SOFTMAX, m1=1, m2=0, m3=0, scale=1, filter_threshold=None))
def test_margin_softmax_without_a_margin_is_cross_entropy(case: Draw) -> None:
    assume(bool(case.valid().any()))
    loss, grad = native(case)
    options = {k: case.options[k] for k in ("ignore_index", "label_smoothing", "reduction")}
    expected, expected_grad = native(replace(case, loss=CROSS_ENTROPY, options=options))
    assert close(loss, expected, 4)
    check_close("gradient", grad, expected_grad.double(), expected_grad)


@repeatable
@given(draws(loss=SOFTMAX_FOCAL, gamma=0, alpha=None, normalizer=None))
def test_softmax_focal_without_focus_is_cross_entropy(case: Draw) -> None:
    assume(bool(case.valid().any()))
    loss, grad = native(case)
    options = {k: case.options[k] for k in ("ignore_index", "label_smoothing", "reduction")}
    plain = replace(case, loss=CROSS_ENTROPY, options=options)
    expected, expected_grad = native(plain)
    assert close(loss, expected, 4)
    check_close("gradient", grad, expected_grad.double(), expected_grad)
