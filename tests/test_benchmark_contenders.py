"""Each contender of the benchmarks is checked before it is timed."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_helpers import CPU, case_named, default_malloc, quiet, tiny_case  # noqa: F401
from fusedloss.benchmarks import (
    baselines,
    cases,
    inputs,
    measure,
    report,
    run,
    timing,
)
from fusedloss.benchmarks import baselines_cross_entropy as cross_entropy
from fusedloss.benchmarks import baselines_dice as dice
from fusedloss.benchmarks import baselines_linear as linear
from fusedloss.benchmarks import baselines_margin_softmax as margin_softmax
from fusedloss.benchmarks import baselines_sigmoid_focal as sigmoid_focal
from fusedloss.benchmarks import baselines_softmax_focal as softmax_focal
from fusedloss.benchmarks.workload import Case, Inputs, OtherFunction


def small(case: Case) -> Case:
    """The case with few rows and its own number of classes (fewer where each has 512 weights)."""
    classes = 1_001 if case.setup is inputs.features else case.shape[-1]
    shapes = {2: (16, classes), 3: (2, 30, classes), 4: (1, case.shape[1], 64, 48)}
    shapes[5] = (2, case.shape[1], 18, 16, 17)
    return dataclasses.replace(case, shape=shapes[len(case.shape)], gpu_shape=None)


# The series of one loss differ in their rows only.
@pytest.mark.parametrize(
    "case", [case for case in cases.CASES if case.series != "scaling"], ids=lambda case: case.name
)
def test_every_contender_of_every_case_is_right(case: Case) -> None:
    ready = measure.prepare(small(case), CPU, measure.Options(compile=False), quiet)
    assert {"eager", "fusedloss"} <= set(ready.contenders)


@pytest.mark.parametrize(
    "case", [case for case in cases.CASES if case.series == "small"], ids=lambda case: case.name
)
def test_every_contender_of_a_small_case_is_right_at_its_own_size(case: Case) -> None:
    ready = measure.prepare(case, CPU, measure.Options(compile=False), quiet)
    assert {"eager", "fusedloss"} <= set(ready.contenders)


def test_the_margins_have_the_contenders_that_need_no_package() -> None:
    assert {"eager", "insightface", "fusedloss"} <= set(margin_softmax.contenders())
    assert list(linear.contenders()) == ["eager", "unchunked", "fusedloss"]


def test_dice_has_the_contenders_that_need_no_package() -> None:
    for form in (cases.STREET_DICE, cases.STREET_DICE_CE, cases.VOLUME_DICE_CE):
        assert {"eager", "fusedloss"} <= set(form.contenders())
    assert isinstance(cases.STREET_DICE, dice.Form)


def test_the_reference_of_dice_does_not_depend_on_its_slices() -> None:
    for name in ("cityscapes-dice-ce-fp32", "nnunet3d-dice-ce-fp32"):
        case = small(next(case for case in cases.CASES if case.name == name))
        made = case.setup(case, CPU)
        whole = case.reference(made.logits, *made.args)
        sliced = case.reference(made.logits, *made.args, rows_at_once=1_000)
        torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-17)


def test_the_references_do_not_depend_on_their_slices() -> None:
    case = tiny_case()
    made = case.setup(case, CPU)
    labels, normalizer = made.args
    whole = sigmoid_focal.reference(made.logits, labels, normalizer)
    sliced = sigmoid_focal.reference(made.logits, labels, normalizer, rows_at_once=7)
    torch.testing.assert_close(sliced, whole, rtol=1e-14, atol=0)


def softmax_inputs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64, of which the first rows are far apart, and labels, of which some are ignored."""
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    logits[:, 0].flatten()[:2] = 700.0
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels.flatten()[::5] = softmax_focal.IGNORE
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("rows_at_once", [1, 7, 16_384])
@pytest.mark.parametrize("shape", [(13, 6), (3, 4, 5, 2)], ids=["rows", "pixels"])
@pytest.mark.parametrize(
    ("make", "form"),
    [
        (
            lambda rows: cross_entropy.reference(0.1, softmax_focal.IGNORE, rows),
            cross_entropy.eager(0.1, softmax_focal.IGNORE),
        ),
        (
            lambda rows: functools.partial(softmax_focal.reference, rows_at_once=rows),
            softmax_focal.eager,
        ),
    ],
    ids=["cross entropy", "softmax focal"],
)
def test_the_softmax_references_are_those_of_torch_in_float64(
    make: Callable[[int], baselines.Reference],
    form: baselines.LossFn,
    shape: tuple[int, ...],
    rows_at_once: int,
) -> None:
    logits, labels = softmax_inputs(*shape)
    expected = form(logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    value, gradient = make(rows_at_once)(logits, labels)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-14)


def test_references_of_worked_rows() -> None:
    # p = 1/2 over two classes: CE = ln 2, with smoothing the same; focal (1/2)^2 ln 2; one class
    # against the rest: two sigmoids at x = 0 give (1/2)^2 ln 2 each. The other row is ignored.
    logits = torch.zeros(2, 2, dtype=torch.float64)
    labels = torch.tensor([1, softmax_focal.IGNORE])
    value, gradient = cross_entropy.reference(0.1, softmax_focal.IGNORE)(logits, labels)
    assert value.item() == pytest.approx(math.log(2))
    assert gradient.flatten().tolist() == pytest.approx([0.45, -0.45, 0, 0])
    assert softmax_focal.reference(logits, labels)[0].item() == pytest.approx(math.log(2) / 4)
    assert softmax_focal.smp_reference(logits, labels)[0].item() == pytest.approx(math.log(2) / 4)


@pytest.mark.parametrize("rows_at_once", [1, 7, 32])
@pytest.mark.parametrize("straight_through", [False, True], ids=["exact", "straight-through"])
def test_the_margin_references_are_their_forms_in_float64(
    straight_through: bool, rows_at_once: int
) -> None:
    case = dataclasses.replace(case_named("faces-256x100000-fp32", (13, 37)), dtype=torch.float64)
    made = case.setup(case, CPU)
    (labels,) = made.args
    form = margin_softmax.insightface if straight_through else margin_softmax.eager
    expected = form(made.logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected, made.logits)
    value, gradient = margin_softmax.reference(straight_through, rows_at_once)(made.logits, labels)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_references_of_worked_margins() -> None:
    # Both cosines 0: theta = pi/2 becomes pi/2 + 1/2, the other logit stays 0. Then theta = pi - 1/4,
    # beyond pi - 1/2: the target logit is the cosine less sin(1/2) / 2 (exact), or cos(pi + 1/4).
    labels = torch.tensor([1])
    upright = torch.zeros(1, 2, dtype=torch.float64)
    sharp = 64 * math.sin(0.5)  # loss ln(1 + exp(sharp)), and the target's probability is next to 0
    value, gradient = margin_softmax.reference()(upright, labels)
    assert value.item() == pytest.approx(sharp)
    assert gradient.flatten().tolist() == pytest.approx([64, -64 * math.cos(0.5)])
    value, gradient = margin_softmax.reference(straight_through=True)(upright, labels)
    assert value.item() == pytest.approx(sharp)
    assert gradient.flatten().tolist() == pytest.approx([64, -64])
    far = torch.tensor([[0.0, -math.cos(0.25)]], dtype=torch.float64)
    value, gradient = margin_softmax.reference()(far, labels)
    assert value.item() == pytest.approx(64 * (math.cos(0.25) + math.sin(0.5) / 2))
    assert gradient.flatten().tolist() == pytest.approx([64, -64])
    value, _ = margin_softmax.reference(straight_through=True)(far, labels)
    assert value.item() == pytest.approx(64 * math.cos(0.25))


@pytest.mark.parametrize("rows_at_once", [1, 7, 32])
def test_the_reference_of_a_linear_layer_is_eager_in_float64(rows_at_once: int) -> None:
    case = dataclasses.replace(
        case_named("linear-arcface-512x512x100000-fp32", (13, 37)), dtype=torch.float64
    )
    made = case.setup(case, CPU)
    assert [tuple(leaf.shape) for leaf in made.leaves] == [(13, 512), (37, 512)]
    expected = linear.eager(made.logits, *made.args)
    expected_gradients = torch.autograd.grad(expected, made.leaves)
    value, *gradients = linear.reference(made.logits, *made.args, rows_at_once=rows_at_once)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    for gradient, truth in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-12)


def cosines_of(made: Inputs) -> torch.Tensor:
    """Cosines [N, C] of the features and the weight of a linear case."""
    weight = made.args[0].detach()
    normalize = torch.nn.functional.normalize
    return normalize(made.logits.detach()) @ normalize(weight).t()


@pytest.mark.parametrize(
    "name", ["faces-256x100000-fp32", "linear-arcface-512x512x100000-fp32"], ids=["faces", "linear"]
)
def test_cosines_lie_on_both_sides_of_the_margin(name: str) -> None:
    case = case_named(name, (256, 500))
    made = case.setup(case, CPU)
    cosine = made.logits.detach() if name.startswith("faces") else cosines_of(made)
    labels = made.args[-1]
    own = cosine.gather(1, labels[:, None])[:, 0]
    beyond = own < math.cos(math.pi - margin_softmax.MARGIN)
    assert beyond.nonzero().flatten().tolist() == [0, 64, 128, 192]
    torch.testing.assert_close(own[beyond], torch.full((4,), -math.cos(0.25)), rtol=1e-5, atol=0)
    assert own[~beyond].min() < -0.1
    assert own[~beyond].max() > 0.8
    others = cosine.scatter(1, labels[:, None], 0.0)
    assert others.std().item() == pytest.approx(512**-0.5, rel=0.05)


def linear_case(**forms: baselines.LossFn) -> Case:
    """A small linear case with these contenders alone."""
    case = case_named("linear-arcface-512x512x100000-fp32", (16, 40))
    return dataclasses.replace(case, contenders=lambda: forms)


def test_every_gradient_of_a_contender_is_checked() -> None:
    def off(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return linear.eager(features, _WrongGradient.apply(weight), labels)

    def without(features: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return linear.eager(features, weight.detach(), labels)

    options = measure.Options(compile=False)
    assert set(measure.prepare(linear_case(eager=linear.eager), CPU, options, quiet).errors) == {
        "eager"
    }
    with pytest.raises(timing.WrongResultError, match=r"gradient \(relative L2\) is off by 0.02"):
        measure.prepare(linear_case(off=off), CPU, options, quiet)
    with pytest.raises(timing.WrongResultError, match="without gives an input that requires"):
        measure.prepare(linear_case(without=without), CPU, options, quiet)


def test_the_error_of_a_gradient_does_not_depend_on_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    one, found = torch.tensor(1.0, dtype=torch.float64), truth.clone()
    found[3, 2] += 0.25
    whole = timing.errors_of(one, [truth, found], [one, truth, truth])
    assert whole.gradient == pytest.approx(0.25 / truth.norm().item())
    assert whole.worst == pytest.approx(0.25 / truth.abs().max().item())
    monkeypatch.setattr(timing, "_AT_ONCE", 4)
    parts = timing.errors_of(one, [truth, found], [one, truth, truth])
    assert dataclasses.astuple(parts) == pytest.approx(dataclasses.astuple(whole), rel=1e-14)
    found[0, 0] = float("nan")
    assert math.isnan(timing.errors_of(one, [truth, found], [one, truth, truth]).gradient)
    assert math.isnan(timing.errors_of(one, [found, truth], [one, truth, truth]).worst)


def test_a_linear_layer_is_measured_against_its_products() -> None:
    options = measure.Options(7, compile=False, forward=False)
    ready = measure.prepare(linear_case(eager=linear.eager), CPU, options, quiet)
    found = measure.measure(ready, CPU, options, quiet)
    assert list(found.contenders) == ["eager", "products"]
    assert found.gradient_bytes == 4 * 512 * (16 + 40)
    assert found.logits_bytes == 4 * 16 * 40
    assert found.contenders["products"].peak_bytes == found.gradient_bytes + found.logits_bytes
    assert found.contenders["products"].saved_bytes is None
    lines = report.case_table(found).splitlines()
    assert "clones" not in lines[1]


def test_the_products_are_those_of_a_linear_layer() -> None:
    made = linear_case().setup(linear_case(), CPU)
    features, weight = made.leaves
    logits = features @ weight.t()
    expected = torch.autograd.grad(logits, [features, weight], logits.detach())
    torch.testing.assert_close(linear.products(made)(), expected, rtol=1e-5, atol=1e-5)


def test_a_contender_that_does_not_fit_is_left_out() -> None:
    def greedy(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    case = linear_case(eager=linear.eager, greedy=greedy)
    ready = measure.prepare(case, CPU, measure.Options(compile=False), quiet)
    assert set(ready.contenders) == {"eager"}
    assert ready.not_run == [f"{case.name}: greedy needs more memory than there is"]


def test_segmentation_labels_lie_in_patches_and_are_ignored_now_and_then() -> None:
    shape = (2, 19, 512, 1024)
    case = next(case for case in cases.CASES if case.name == "cityscapes-ce-fp32")
    assert case.shape == shape
    assert case.rows == 2 * 512 * 1024
    case = dataclasses.replace(case, shape=(2, 19, 256, 512))
    (labels,) = case.setup(case, CPU).args
    assert labels.dtype == torch.int64
    ignored = labels == softmax_focal.IGNORE
    assert 0.03 < ignored.double().mean() < 0.07
    assert set(labels[~ignored].unique().tolist()) == set(range(19))
    same_as_the_next = (labels[..., 1:] == labels[..., :-1]).double().mean()
    assert same_as_the_next > 0.9


def half_eager(logits: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
    """Another function than focal loss: half of it."""
    return sigmoid_focal.index_eager(logits, *args) / 2


def with_other_function(right: bool) -> Case:
    """A case one contender of which computes half, declared with the right or a wrong reference."""

    def reference(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = sigmoid_focal.reference(*args)  # type: ignore[arg-type]
        return value / 2, gradient / (2 if right else 3)

    return dataclasses.replace(
        tiny_case(),
        contenders=lambda: {"eager": sigmoid_focal.index_eager, "half": half_eager},
        other_functions={"half": OtherFunction(reference, "half of it")},
    )


def test_a_contender_of_another_function_is_checked_and_marked(tmp_path: Path) -> None:
    options = measure.Options(7, compile=False, forward=False, memory=False)
    ready = measure.prepare(with_other_function(right=True), CPU, options, quiet)
    found = measure.measure(ready, CPU, options, quiet)
    lines = report.case_table(found).splitlines()
    assert any(line.strip().startswith("half *") for line in lines)
    assert not any("eager *" in line for line in lines)
    assert lines[-1].endswith("another function than the case's: half of it")
    written = report.Report({}, {}, cases=[found])
    report.write_csv(written, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        functions = {row["contender"]: row["other_function"] for row in csv.DictReader(file)}
    assert functions == {"eager": "", "half": "half of it", "clone": ""}

    with pytest.raises(timing.WrongResultError, match="half is wrong"):
        measure.prepare(with_other_function(right=False), CPU, options, quiet)
    undeclared = dataclasses.replace(with_other_function(right=True), other_functions={})
    with pytest.raises(timing.WrongResultError, match="half is wrong"):
        measure.prepare(undeclared, CPU, options, quiet)


class _WrongGradient(torch.autograd.Function):
    """The right value with a gradient that is 2 % off."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 1.02


WRONG: dict[str, Callable[..., torch.Tensor]] = {
    "value": lambda *args: sigmoid_focal.index_eager(*args) + 0.01,
    "gradient": lambda *args: _WrongGradient.apply(sigmoid_focal.index_eager(*args)),
    "nan": lambda *args: sigmoid_focal.index_eager(*args) * float("nan"),
    "without gradient": lambda x, *args: (
        sigmoid_focal.index_eager(x, *args)
        if x.requires_grad and torch.is_grad_enabled()
        else x.sum()
    ),
}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("value", "value is off"),
        ("gradient", r"gradient \(relative L2\) is off"),
        ("nan", "value is off by nan"),
        ("without gradient", "value without gradient is off"),
    ],
)
def test_a_wrong_contender_is_refused(name: str, reason: str) -> None:
    case = tiny_case()
    inputs = case.setup(case, CPU)
    reference = case.reference(inputs.logits, *inputs.args)
    with pytest.raises(timing.WrongResultError, match=f"mine is wrong and is not timed: {reason}"):
        timing.check("mine", WRONG[name], inputs, reference)


def test_a_wrong_contender_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sigmoid_focal, "dense_eager", lambda x, *_: x.sum())
    monkeypatch.setattr(cases, "select", lambda **_: [tiny_case()])
    argv = ["--quick", "--no-compile", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert run.main(argv) == 1
    assert "tiny: eager is wrong and is not timed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
