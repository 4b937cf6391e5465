"""Properties of the region losses, as test_properties.py for the sigmoid focal loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import fusedloss
import torch
from cases import Loss
from cases.region_losses import COMPOUNDS, LOSSES, PLAIN
from hypothesis import assume, given
from hypothesis import strategies as st
from test_properties import (
    DENSE_DTYPES,
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

CLASSES = st.sampled_from([1, 2, 2, 3, 4, 5, 8, 17, 33, 65])
# Past one block of the engines: in samples, in classes and in pixels.
LONG = [[2100, 2], [2, 1025], [1, 3, 1030], [2, 33, 65]]
NUMBERS = st.sampled_from([0.3, 0.5, 1, 2.0])


@dataclass
class Draw:
    """One call of `loss`."""

    loss: Loss
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor
    how: str
    schedule: str = "recompute"

    def __repr__(self) -> str:
        return f"Draw({self.how})"

    @property
    def indexed(self) -> bool:
        """Whether the targets are labels."""
        return self.target.dim() != self.input.dim()

    @property
    def generalized(self) -> bool:
        """Whether a loss is that of all classes of a sample."""
        return "weighting" in self.options

    def valid(self) -> Tensor:
        """Which logits count."""
        ignore_index = self.options["ignore_index"]
        soft_rows = self.options["mode"] == "multiclass" and not self.indexed
        if ignore_index is None or soft_rows:
            return torch.ones_like(self.input, dtype=torch.bool)
        keep = self.target != ignore_index
        keep = keep.unsqueeze(1) if self.indexed else keep
        return keep.expand_as(self.input)


def random_options(
    draw: st.DrawFn, short: str, mode: str, classes: int, dtype: torch.dtype, g: torch.Generator
) -> dict[str, Any]:
    """Any legal combination of options."""
    vector = torch.rand(classes, generator=g).to(accumulator(dtype)) + 0.05
    options: dict[str, Any] = {
        "mode": mode,
        # Never 0, with which an empty region is 0 / 0.
        "smooth": draw(st.sampled_from([1e-5, 1e-5, 1.0, (0.5, 2.0), (1e-3, 1e-2)])),
        "batch": draw(st.booleans()),
        "include_background": classes == 1 or draw(st.booleans()),
        "ignore_index": draw(st.sampled_from([None, None, -100, -1, 0, 255])),
        "weight": draw(st.sampled_from([None, vector])),
        "absent": draw(st.sampled_from(["keep", "skip"])),
        "log": draw(st.booleans()),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if short != "tversky":
        options["squared"] = draw(st.booleans())
    else:
        options |= {"alpha": draw(NUMBERS), "beta": draw(NUMBERS)}
        options["gamma"] = 1 if options["log"] else draw(st.sampled_from([0.75, 1.0, 2]))
    if short == "gdice":
        options["weighting"] = draw(st.sampled_from(["square", "simple", "uniform"]))
    if short in COMPOUNDS:
        options["reduction"] = draw(st.sampled_from(["mean", "sum"]))
        options["dice_weight"] = draw(st.sampled_from([1, 0.5]))
        options["label_smoothing"] = draw(st.sampled_from([0, 0, 0.1]))
    if short == "dice-ce" and mode == "multiclass":
        options["class_weight"] = draw(st.sampled_from([None, vector]))
        options["smoothing"] = draw(st.sampled_from(["uniform", "others"]))
    if short == "dice-focal":
        options["alpha"] = draw(st.sampled_from([None, 0.25, vector.clamp(max=1)]))
        options["gamma"] = draw(st.sampled_from([0, 0.5, 1, 2, 2.5]))
    return options


def random_target(
    draw: st.DrawFn, short: str, options: dict[str, Any], shape: list[int], g: torch.Generator
) -> Tensor:
    """Labels, soft targets of rows, or a number for each element, some of them ignored."""
    ignore_index = options["ignore_index"]
    if options["mode"] == "multiclass":
        if short != "dice-focal" and draw(st.integers(0, 2)) == 0:
            soft = torch.softmax(torch.randn(shape, generator=g), 1)
            return soft.to(draw(st.sampled_from(DTYPES)))
        target = torch.randint(0, shape[1], [shape[0], *shape[2:]], generator=g)
        target = target.to(draw(st.sampled_from(INDEX_DTYPES)))
    elif draw(st.booleans()):
        target = (torch.rand(shape, generator=g) < 0.4).to(draw(st.sampled_from(DENSE_DTYPES)))
    else:
        target = torch.rand(shape, generator=g).to(draw(st.sampled_from(DTYPES)))
    holds = ignore_index is not None and dtype_holds(target.dtype, ignore_index)
    if holds and draw(st.booleans()):
        target[torch.rand(target.shape, generator=g) < 0.3] = ignore_index
    return target


def shape_of_loss(options: dict[str, Any], shape: list[int]) -> list[int]:
    """The shape that the loss has."""
    if options["reduction"] != "none":
        return []
    groups = [] if options["batch"] else [shape[0]]
    if "weighting" in options:
        return groups or [1]
    return [*groups, shape[1] - (not options["include_background"])]


@st.composite
def draws(draw: st.DrawFn, /, shorts: tuple[str, ...] = (*PLAIN, *COMPOUNDS), **fixed: Any) -> Draw:
    """Any legal call; `fixed` options are as given."""
    short = draw(st.sampled_from(shorts))
    mode = fixed.get("mode") or draw(st.sampled_from(["multiclass", "multilabel", "binary"]))
    shape = [draw(SIZES), draw(CLASSES), *draw(st.lists(SIZES, max_size=3))]
    if draw(st.integers(0, 6)) == 6:  # not 0, where shrinking ends
        shape = list(draw(st.sampled_from(LONG)))
    shape[1] = 1 if mode == "binary" else shape[1]
    assume(torch.Size(shape).numel() <= 6000)
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    options = random_options(draw, short, mode, shape[1], dtype, generator) | fixed
    values = random_input(draw, shape, generator)
    if short in PLAIN and draw(st.integers(0, 3)) == 0:
        options["from_logits"] = False
        values = torch.sigmoid(values)
    layout, order = draw(st.sampled_from(LAYOUTS)), draw(st.permutations(range(len(shape))))
    input = laid_out(values.to(dtype), layout, order)
    target = random_target(draw, short, options, shape, generator)
    target_layout = draw(st.sampled_from(LAYOUTS if target.dtype != torch.bool else ["contiguous"]))
    target = laid_out(target, target_layout, [d for d in order if d < target.dim()])
    softmax = mode == "multiclass" and options.get("from_logits", True)
    loss = LOSSES[short, "softmax" if softmax else "element"]
    upstream = torch.rand(shape_of_loss(options, shape), generator=generator)
    how = f"{loss.name} {shape} {dtype} {layout} {order}, {target.dtype} {target_layout}, {options}"
    return Draw(loss, input, target, options, upstream, how)


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
    # A gradient is p_j (h_j - sum p h): of the slopes h, the largest is that of the input's own form.
    check_close("gradient", grad, exact[1], eager[1], terms=terms_of(case))


def terms_of(case: Draw) -> float:
    """The size of what a softmax's gradient is the difference of: the gradient by probabilities."""
    if "softmax" not in case.loss.name or not case.input.numel():
        return 0.0
    names = {"dice_cross_entropy_loss", "dice_focal_loss"}
    function = case.loss.reference
    if function.__name__ in names:
        function = fusedloss.reference.dice_loss
    skipped = ("class_weight", "label_smoothing", "smoothing", "dice_weight")
    options = {k: v for k, v in case.options.items() if k not in skipped}
    if case.loss.reference.__name__ == "dice_focal_loss":
        options = {k: v for k, v in options.items() if k not in ("alpha", "gamma")}
    p = torch.softmax(torch.where(case.valid(), case.input.double(), 0.0), 1).requires_grad_()
    loss = function(p, case.target, **{**options, "from_logits": False})
    (slopes,) = torch.autograd.grad(loss, p, case.upstream.to(loss))
    return float((slopes * p).abs().max())


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
@given(draws(shorts=PLAIN, reduction="none"), st.randoms(use_true_random=False))
def test_samples_in_another_order_give_the_losses_in_that_order(case: Draw, random: Any) -> None:
    samples = case.input.size(0)
    order = torch.tensor(random.sample(range(samples), samples), dtype=torch.long)
    loss, _ = native(case)
    got, _ = native(replace(case, input=case.input[order], target=case.target[order]))
    expected = loss if case.options["batch"] else loss[order]
    check_close("loss", got, expected.double(), expected)


@repeatable
@given(draws(shorts=PLAIN, reduction="sum", weight=None))
def test_sum_and_mean_are_those_of_the_regions(case: Draw) -> None:
    total, _ = native(case)
    shape = shape_of_loss({**case.options, "reduction": "none"}, list(case.input.shape))
    each, _ = native(replace(case, upstream=case.upstream.expand(shape)), reduction="none")
    assert list(each.shape) == shape
    assert close(total, each.double().sum(), 4)
    mean, _ = native(case, reduction="mean")
    if case.options["absent"] == "keep" and each.numel():
        assert close(mean, each.double().mean(), 4)
    if not each.numel():
        assert mean == 0
        assert total == 0


@repeatable
@given(draws(), st.sampled_from([0.0, float("nan"), float("inf"), -1e4]))
def test_ignored_logits_contribute_nothing(case: Draw, garbage: float) -> None:
    valid = case.valid()
    assume(case.input.numel() and not bool(valid.all()))
    spoiled = case.input.clone(memory_format=torch.contiguous_format)
    clean = native(replace(case, input=spoiled.clone()))
    spoiled[~valid] = garbage
    again = native(replace(case, input=spoiled))
    assert torch.equal(again[0], clean[0])
    assert torch.equal(again[1], clean[1])
    assert (again[1][~valid] == 0).all()


@repeatable
@given(draws())
def test_all_ignored(case: Draw) -> None:
    ignore_index = case.options["ignore_index"]
    assume(ignore_index is not None and dtype_holds(case.target.dtype, ignore_index))
    assume(case.indexed or case.options["mode"] != "multiclass")
    case.target = torch.full_like(case.target, ignore_index)
    case.options["smooth"] = 1.0
    loss, grad = native(case)
    assert (loss == 0).all()
    assert (grad == 0).all()
    assert grad.shape == case.input.shape


@repeatable
@given(draws(), st.integers(1, 3))
def test_any_thread_count_gives_the_same_bits(case: Draw, threads: int) -> None:
    loss, grad = native(case)
    torch.set_num_threads(threads)
    again, again_grad = native(case)
    assert torch.equal(again, loss)
    assert torch.equal(again_grad, grad)


@repeatable
@given(draws())
def test_layout_changes_rounding_only(case: Draw) -> None:
    loss, grad = native(case)
    flat, flat_grad = native(
        replace(case, input=case.input.contiguous(), target=case.target.contiguous())
    )
    check_close("loss", flat, loss.double(), loss)
    check_close("gradient", flat_grad, grad.double(), grad, terms=terms_of(case))


@repeatable
@given(draws(shorts=PLAIN, mode="multiclass"))
def test_gradient_of_a_softmax_sums_to_zero_over_the_classes(case: Draw) -> None:
    assume("softmax" in case.loss.name and case.input.numel())
    _, grad = native(case)
    scale = max(terms_of(case), float(grad.abs().max()), torch.finfo(grad.dtype).smallest_normal)
    unit = torch.finfo(grad.dtype).eps * scale * case.input.size(1)
    assert float(grad.double().sum(1).abs().max()) <= 4 * unit


@repeatable
@given(draws(shorts=("dice",), squared=False))
def test_tversky_of_equal_halves_is_dice(case: Draw) -> None:
    loss, grad = native(case)
    engine = "softmax" if "softmax" in case.loss.name else "element"
    smooth = case.options["smooth"]
    half = tuple(s / 2 for s in smooth) if isinstance(smooth, tuple) else smooth / 2
    options = {k: v for k, v in case.options.items() if k != "squared"} | {"smooth": half}
    same = replace(case, loss=LOSSES["tversky", engine], options=options)
    got, got_grad = native(same)
    check_close("loss", got, loss.double(), loss)
    check_close("gradient", got_grad, grad.double(), grad, terms=terms_of(case))


@repeatable
@given(draws(shorts=("dice", "jaccard"), mode="multiclass", absent="keep", ignore_index=None))
def test_one_hot_targets_equal_labels(case: Draw) -> None:
    assume(case.indexed and case.input.numel())
    loss, grad = native(case)
    hot = torch.nn.functional.one_hot(case.target.long(), case.input.size(1)).movedim(-1, 1)
    got, got_grad = native(replace(case, target=hot.to(case.input.dtype)))
    check_close("loss", got, loss.double(), loss)
    check_close("gradient", got_grad, grad.double(), grad, terms=terms_of(case))
