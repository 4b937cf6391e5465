"""Properties of the losses over generated shapes, layouts, dtypes and options.

The examples are the same on every run. Each one is a `Draw`, which says how it was made when a
check fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import fusedloss
import pytest
import torch
from cases import SIGMOID_FOCAL
from fusedloss import balanced_bce_loss, sigmoid_focal_loss
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tolerances import check_close
from torch import Tensor

EXAMPLES = 150
repeatable = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INDEX_DTYPES = [torch.int64, torch.int32, torch.int16, torch.uint8]
DENSE_DTYPES = [*DTYPES, *INDEX_DTYPES, torch.int8, torch.bool]
LAYOUTS = ["contiguous", "permuted", "stepped", "offset", "expanded"]
# Small, and past one block of the CPU engine (1024 elements) in one dimension.
SIZES = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33])


@dataclass
class Draw:
    """One call: `sigmoid_focal_loss(input, target, **options)` under a schedule."""

    input: Tensor
    target: Tensor
    options: dict[str, Any]
    schedule: str
    upstream: Tensor
    how: str = field(default="")

    def __repr__(self) -> str:
        return f"Draw({self.how})"


def laid_out(x: Tensor, layout: str, order: list[int]) -> Tensor:
    """The values of `x` (for "expanded": of its first slices) in another layout."""
    if layout == "permuted" and x.dim():
        inverse = [order.index(d) for d in range(x.dim())]
        return x.permute(order).contiguous().permute(inverse)
    if layout == "stepped" and x.dim():
        d = order[0]
        wide = torch.stack((x + 1, x, x - 1), dim=d + 1).flatten(d, d + 1)
        return wide[(slice(None),) * d + (slice(1, None, 3),)]
    if layout == "offset":
        return torch.cat((x.new_zeros(3), x.flatten()))[3:].view(x.shape)
    if layout == "expanded" and x.dim() and x.numel():
        return x.narrow(order[0], 0, 1).expand_as(x)
    return x


def random_input(draw: st.DrawFn, shape: list[int], generator: torch.Generator) -> Tensor:
    """Values around 0, some of them far out."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    far = torch.rand(shape, generator=generator) < 0.1
    return torch.where(far, x * 40, x * draw(st.sampled_from([0.5, 3.0])))


def random_target(
    draw: st.DrawFn, kind: str, shape: list[int], ignore_index: int, generator: torch.Generator
) -> Tensor:
    """Class indices with both background labels, hard or soft targets, some of them ignored."""
    if kind == "index":
        dtype = draw(st.sampled_from(INDEX_DTYPES))
        classes = shape[-1]
        low = 0 if dtype == torch.uint8 else -1
        target = torch.randint(low, classes + 1, shape[:-1], generator=generator).to(dtype)
    elif kind == "hard":
        dtype = draw(st.sampled_from(DENSE_DTYPES))
        target = (torch.rand(shape, generator=generator) < 0.4).to(dtype)
    else:
        target = torch.rand(shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    representable = dtype_holds(target.dtype, ignore_index)
    if representable and draw(st.booleans()):
        target[torch.rand(target.shape, generator=generator) < 0.3] = ignore_index
    return target


def dtype_holds(dtype: torch.dtype, value: int) -> bool:
    """Whether a tensor of this dtype can hold `value`."""
    if dtype == torch.bool:
        return False
    if dtype.is_floating_point:
        return float(torch.tensor(value, dtype=dtype)) == value
    info = torch.iinfo(dtype)
    return info.min <= value <= info.max


def random_options(
    draw: st.DrawFn, shape: list[int], dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Any]:
    """Any legal combination of options."""
    side = accumulator(dtype)
    options: dict[str, Any] = {
        "gamma": draw(st.sampled_from([0, 0.5, 1, 1.3, 2.0, 2.0, 3, 4, 5.5])),
        "alpha": draw(st.sampled_from([None, -1, 0, 0.25, 0.6, 1, "per class"])),
        "label_smoothing": draw(st.sampled_from([0, 0, 0.1, 1])),
        "ignore_index": draw(st.sampled_from([-100, -100, -1, 0, 1, 3, 255])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "normalizer": draw(st.sampled_from([None, None, 3, 0.7, "tensor"])),
    }
    if options["alpha"] == "per class":
        options["alpha"] = torch.rand(shape[-1:], generator=generator, dtype=side)
    if options["normalizer"] == "tensor":
        options["normalizer"] = torch.tensor(5, dtype=draw(st.sampled_from([side, torch.int64])))
    if draw(st.booleans()):
        skipped = draw(st.integers(0, len(shape)))
        kept = [size if draw(st.booleans()) else 1 for size in shape[skipped:]]
        options["weight"] = torch.rand(kept, generator=generator, dtype=side)
    return options


@st.composite
def draws(draw: st.DrawFn, /, **fixed: Any) -> Draw:
    """Any legal call; `fixed` options are as given."""
    shape = draw(st.lists(SIZES, max_size=5))
    if len(shape) >= 2 and draw(st.integers(0, 5)) == 0:
        shape = [2, draw(st.sampled_from([700, 1024, 2049]))]
    assume(torch.Size(shape).numel() <= 6000)
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kind = draw(st.sampled_from(["index", "hard", "soft"] if shape else ["hard", "soft"]))
    layout, order = draw(st.sampled_from(LAYOUTS)), draw(st.permutations(range(len(shape))))
    options = random_options(draw, shape, dtype, generator) | fixed
    input = laid_out(random_input(draw, shape, generator).to(dtype), layout, order)
    target = random_target(draw, kind, shape, options["ignore_index"], generator)
    target_order = [d for d in order if d < target.dim()]
    target_layout = draw(st.sampled_from(LAYOUTS))
    target = laid_out(target, target_layout, target_order) if kind != "hard" else target
    upstream = torch.rand(shape if options["reduction"] == "none" else [], generator=generator)
    schedule = draw(st.sampled_from(["recompute", "forward"]))
    how = f"{shape} {dtype} {layout} {order}, {kind} {target.dtype} {target_layout}, {options}"
    return Draw(input, target, options, schedule, upstream, f"{how}, {schedule}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results for logits of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def evaluate(case: Any, function: Any, input: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(loss, gradient) of one implementation."""
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(case.schedule):
        loss = function(x, case.target, **{**case.options, **options})
        (grad,) = torch.autograd.grad(loss, x, case.upstream.to(loss))
    return loss.detach(), grad


def native(case: Draw, **options: Any) -> tuple[Tensor, Tensor]:
    """(loss, gradient) of the kernels."""
    with fusedloss.backend("native"):
        return evaluate(case, sigmoid_focal_loss, case.input, **options)


def without_ignored(case: Draw) -> Tensor:
    """Which elements count."""
    keep: Tensor = case.target != case.options["ignore_index"]
    return keep if keep.dim() == case.input.dim() else keep.unsqueeze(-1).expand_as(case.input)


@repeatable
@given(draws())
def test_kernels_equal_the_float64_reference(case: Draw) -> None:
    loss, grad = native(case)
    function = fusedloss.reference.sigmoid_focal_loss
    wide = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in case.options.items()
    }
    exact = evaluate(case, function, case.input.double(), **wide)
    eager = evaluate(case, function, case.input)
    assert grad.dtype == case.input.dtype
    check_close("loss", loss, exact[0], eager[0])
    check_close("gradient", grad, exact[1], eager[1])


@repeatable
@given(draws(), st.integers(0, 1000))
def test_emulated_cuda_equals_the_float64_reference(
    emulator: ModuleType, case: Draw, seed: int
) -> None:
    assume(case.input.numel() <= 1500)
    function = fusedloss.reference.sigmoid_focal_loss
    if isinstance(case.options["normalizer"], Tensor):
        case.options["normalizer"] = case.options["normalizer"].to(accumulator(case.input.dtype))
    emulator.configure(count=False, race_check=seed % 4 == 0, seed=seed)
    upstream = case.upstream.to(accumulator(case.input.dtype))
    kernel = SIGMOID_FOCAL.emulated(emulator, case.input, case.target, **case.options)
    loss, grad = kernel.run(case.schedule, upstream)
    wide = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in case.options.items()
    }
    exact = evaluate(case, function, case.input.double(), **wide)
    eager = evaluate(case, function, case.input)
    check_close("loss", loss, exact[0], eager[0])
    check_close("gradient", grad, exact[1], eager[1])


@repeatable
@given(draws(reduction="none"), st.randoms(use_true_random=False))
def test_rows_in_another_order_give_the_losses_in_that_order(case: Draw, random: Any) -> None:
    assume(case.input.dim() > 0 and (case.target.dim() > 0))
    order = torch.tensor(
        random.sample(range(case.input.size(0)), case.input.size(0)), dtype=torch.long
    )
    loss, grad = native(case)
    options = dict(case.options)
    weight = options.get("weight")
    if weight is not None:
        options["weight"] = weight.expand(case.input.shape)[order]
    if case.input.dim() == 1 and isinstance(options["alpha"], Tensor):
        options["alpha"] = options["alpha"][order]  # the rows are the classes
    permuted = Draw(
        case.input[order], case.target[order], options, case.schedule, case.upstream[order]
    )
    got = native(permuted)
    assert torch.equal(got[0], loss[order])
    assert torch.equal(got[1], grad[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["focal of soft targets", "mined"])
def test_an_element_does_not_depend_on_its_place(loss: str, dtype: torch.dtype) -> None:
    """Bit for bit, at the end of any number of elements: compilers make other multiply-adds of a scalar
    tail than of vectors.
    """
    rng = torch.Generator().manual_seed(3)
    for size in [*range(1, 34), 1024, 1029]:
        x = (10 * torch.randn(size, generator=rng)).to(dtype)
        target = torch.rand(size, generator=rng).to(dtype)
        upstream = torch.rand(size, generator=rng).to(dtype)
        order = torch.randperm(size, generator=rng)
        results = []
        for at in (torch.arange(size), order):
            leaf = x[at].requires_grad_()
            if loss == "mined":
                value = balanced_bce_loss(leaf, target[at].round(), reduction="none")
            else:
                value = sigmoid_focal_loss(leaf, target[at], alpha=None, gamma=0, reduction="none")
            (grad,) = torch.autograd.grad(value, leaf, upstream[at].to(value.dtype))
            results.append((value.detach(), grad))
        (value, grad), (moved, moved_grad) = results
        assert torch.equal(moved, value[order]), size
        assert torch.equal(moved_grad, grad[order]), size


def close(got: Tensor, expected: Tensor, ulps: float) -> bool:
    """Within `ulps` units of the largest value."""
    if not expected.numel():
        return got.shape == expected.shape
    unit = torch.finfo(got.dtype).eps * float(expected.abs().max())
    return float((got.double() - expected.double()).abs().max()) <= ulps * unit


@repeatable
@given(draws(reduction="sum"))
def test_sum_and_mean_are_those_of_the_elements(case: Draw) -> None:
    total, total_grad = native(case)
    case.upstream = case.upstream.expand(case.input.shape)
    each, each_grad = native(case, reduction="none")
    case.upstream = case.upstream[(0,) * case.input.dim()] if case.input.numel() else torch.rand(())
    assert each.shape == case.input.shape
    assert (each >= 0).all()
    assert close(total, each.double().sum(), 4)
    assert torch.equal(total_grad, each_grad) or close(total_grad, each_grad, 2)

    mean, _ = native(case, reduction="mean")
    count = int(without_ignored(case).sum())
    divisor = case.options["normalizer"]
    divisor = float(count if divisor is None else divisor)
    if count == 0:
        assert mean == 0
    else:
        assert close(mean * divisor, total, 6)
    assert (each[~without_ignored(case)] == 0).all()


@repeatable
@given(draws())
def test_weights_scale_losses_and_gradients(case: Draw) -> None:
    weight = case.options.pop("weight", None)
    weight = torch.ones(()) if weight is None else weight
    loss, grad = native(case, weight=weight)
    twice, twice_grad = native(case, weight=2 * weight)
    zero, zero_grad = native(case, weight=0 * weight)
    # A factor of 2 changes no rounding, except of numbers that are subnormal in their dtype.
    for double, single in ((twice, loss), (twice_grad, grad)):
        small = torch.finfo(single.dtype).tiny
        normal = single.abs() >= small
        assert torch.equal(double[normal], 2 * single[normal])
        assert (double[~normal].abs() <= 2 * small).all()
    assert (zero == 0).all()
    assert (zero_grad == 0).all()


@repeatable
@given(draws(), st.sampled_from([0.0, float("nan"), float("inf"), -1e4]))
def test_ignored_elements_contribute_nothing(case: Draw, garbage: float) -> None:
    loss, grad = native(case)
    ignored = ~without_ignored(case)
    assume(case.input.numel() and bool(ignored.any()))
    assert (grad[ignored] == 0).all()
    spoiled = case.input.clone()
    spoiled[ignored] = garbage
    case.input = spoiled
    again, again_grad = native(case)
    assert torch.equal(again, loss)
    assert torch.equal(again_grad, grad)


@repeatable
@given(draws())
def test_all_ignored_is_zero(case: Draw) -> None:
    ignore_index = case.options["ignore_index"]
    assume(dtype_holds(case.target.dtype, ignore_index))
    case.target = torch.full_like(case.target, ignore_index)
    loss, grad = native(case)
    assert (loss == 0).all()
    assert (grad == 0).all()
    assert grad.shape == case.input.shape


@repeatable
@given(draws(ignore_index=-100))
def test_one_hot_targets_equal_class_indices(case: Draw) -> None:
    assume(case.target.dim() != case.input.dim())
    classes = torch.arange(case.input.size(-1))
    label = case.target.long().unsqueeze(-1)
    hot = (label == classes).to(torch.int8)
    hot = torch.where(label == -100, -100, hot)
    loss, grad = native(case)
    case.target = hot.contiguous()
    dense, dense_grad = native(case)
    if case.options["reduction"] == "none":
        assert torch.equal(dense, loss)
        assert torch.equal(dense_grad, grad)
    else:  # the divisor of the mean may be applied in another step
        assert close(dense, loss, 2)
        assert close(dense_grad, grad, 3)


@repeatable
@given(draws(), st.integers(1, 3))
def test_both_schedules_and_any_thread_count_agree(case: Draw, threads: int) -> None:
    loss, grad = native(case)
    torch.set_num_threads(threads)
    assert torch.equal(native(case)[0], loss)
    assert torch.equal(native(case)[1], grad)
    case.schedule = "recompute" if case.schedule == "forward" else "forward"
    other, other_grad = native(case)
    # The two loops are compiled apart, so products and sums may be fused differently.
    assert close(other, loss, 4)
    # The upstream gradient multiplies before or after the rounding to the logits' dtype.
    unit = torch.finfo(grad.dtype).eps
    bound = 2 * unit * grad.abs() + torch.finfo(grad.dtype).smallest_normal * unit
    assert ((other_grad - grad).abs() <= bound).all()


@repeatable
@given(draws())
def test_layout_of_the_logits_changes_nothing(case: Draw) -> None:
    loss, grad = native(case)
    case.input = case.input.contiguous()
    case.target = case.target.contiguous()
    flat, flat_grad = native(case)
    # A sum runs in memory order, so its last digits may differ; the elements may not.
    if case.options["reduction"] == "none":
        assert torch.equal(flat, loss)
    else:
        assert close(flat, loss, 4)
    assert torch.equal(flat_grad, grad)
