"""The losses as part of torch: derivatives, operators, compilation, memory kept for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fusedloss
import pytest
import torch
from cases import (
    BY_NAME,
    CASES,
    CROSS_ENTROPY,
    LOSSES,
    MARGIN_SOFTMAX,
    SIGMOID_FOCAL,
    SMOOTH_L1,
    SOFTMAX_FOCAL,
    Case,
    Loss,
    lay_out,
    under_its_schedules,
)
from fusedloss import sigmoid_focal_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SCHEDULES = ("recompute", "forward")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_loss = pytest.mark.parametrize("loss", [*LOSSES, SMOOTH_L1], ids=lambda loss: loss.name)
# Finite differences need logits of moderate size, something to differentiate, and a gradient that is one.
SMOOTH = [
    case
    for case in CASES
    if case.logits not in ("extreme", "shifted")
    and 0 not in case.shape
    and case.emulated
    and not (case.loss is CROSS_ENTROPY and case.ignored > 1)  # a mean over nothing is NaN
    and case.options.get("gradient") != "straight_through"
    and not (case.loss.mined and case.logits == "zero")  # a step parts those that were tied
]


def each_run(cases: list[Case]) -> Any:
    """A test over these rows of the table, under every schedule."""
    return pytest.mark.parametrize(("case", "schedule"), under_its_schedules(cases))


def doubled(options: dict[str, Any]) -> dict[str, Any]:
    """Floating-point side inputs in float64."""
    return {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in options.items()
    }


def scalar_function(case: Case) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The case as a function of dense float64 logits, laid out inside, and those logits."""
    input, target, options = case.inputs(torch.float64)
    options = doubled(options)

    def function(x: Tensor) -> Tensor:
        return case.loss.function(lay_out(x, case.layout), target, **options)

    return function, input.contiguous().clone().requires_grad_()


@each_run(SMOOTH)
def test_gradcheck(case: Case, schedule: str) -> None:
    function, x = scalar_function(case)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        assert torch.autograd.gradcheck(function, (x,), fast_mode=True)


@each_run(SMOOTH)
def test_gradgradcheck(case: Case, schedule: str) -> None:
    function, x = scalar_function(case)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


ELEMENTWISE: dict[str, tuple[Loss, dict[str, Any]]] = {
    **{f"focal-{g}": (SIGMOID_FOCAL, {"gamma": g}) for g in (0.0, 0.5, 2.0, 2.5)},
    **{
        f"softmax-focal-{g}-{e}": (SOFTMAX_FOCAL, {"gamma": g, "label_smoothing": e})
        for g in (0.0, 0.3, 0.5, 1.0, 2.0, 2.5)
        for e in (0.0, 0.1)
    },
    "ce": (CROSS_ENTROPY, {}),
    "ce-z": (CROSS_ENTROPY, {"z_loss": 0.1}),
    "ce-uniform": (CROSS_ENTROPY, {"label_smoothing": 0.2}),
    "ce-others-z": (
        CROSS_ENTROPY,
        {"label_smoothing": 0.2, "smoothing": "others", "z_loss": 0.1},
    ),
    "ce-weight": (
        CROSS_ENTROPY,
        {"label_smoothing": 0.2, "weight": torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)},
    ),
    **{
        f"margin-{name}": (MARGIN_SOFTMAX, {"scale": 4.0, **how})
        for name, how in {
            "none": {},
            "arc": {"m2": 0.5},
            "arc-plain": {"m2": 0.5, "monotonic": "none"},
            "arc-smoothing": {"m2": 0.5, "label_smoothing": 0.2},
            "arc-filter": {"m2": 0.5, "filter_threshold": 0.3},
            "cos": {"m3": 0.35},
            "sphere": {"m1": 1.7},
            "sphere-plain": {"m1": 4.0, "monotonic": "none"},
            "combined": {"m1": 0.9, "m2": 0.4, "m3": 0.15},
            "easy": {"m1": 1.35, "m2": 0.4, "m3": 0.15, "easy_margin": True},
            "per-class": {
                "m1": torch.tensor([1.0, 1.3, 1.0], dtype=torch.float64),
                "m2": torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64),
            },
        }.items()
    },
}


@each_schedule
@pytest.mark.parametrize(
    ("name", "soft"),
    [
        (name, soft)
        for name, (loss, _) in ELEMENTWISE.items()
        for soft in (False, True)
        if not (soft and loss in (SOFTMAX_FOCAL, MARGIN_SOFTMAX))  # which take labels only
    ],
)
def test_gradcheck_of_every_element(name: str, soft: bool, schedule: str) -> None:
    loss, options = ELEMENTWISE[name]
    generator = torch.Generator().manual_seed(3)
    rows = 12 if loss.cosines else 4  # at all angles
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    x = (torch.tanh(x) if loss.cosines else x).requires_grad_()
    target = torch.rand(rows, 3, generator=generator, dtype=torch.float64)
    if not soft:
        target = torch.tensor([0, 2, 3, -1] if loss.background else [0, 2, 1, loss.ignore_index])
        target = target.repeat(rows // 4)

    def function(x: Tensor) -> Tensor:
        return loss.function(x, target, reduction="none", **options)

    with fusedloss.gradient_schedule(schedule):
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))


@each_run([case for case in CASES if case.name != "focal-long" and case.emulated])
def test_create_graph_gives_the_fused_gradient(case: Case, schedule: str) -> None:
    input, target, options = case.inputs(torch.float64)
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(schedule):
        loss = case.loss.function(x, target, **doubled(options))
    upstream = torch.full_like(loss, 1.7)
    (with_graph,) = torch.autograd.grad(loss, x, upstream, create_graph=True)
    (fused,) = torch.autograd.grad(loss, x, upstream)
    assert with_graph.requires_grad
    assert not fused.requires_grad
    torch.testing.assert_close(with_graph.detach(), fused, rtol=1e-12, atol=1e-15)


class Calls(TorchDispatchMode):
    """Records the fused operators that run, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "fusedloss":
            assert not kwargs
            plain = [x.detach() if isinstance(x, Tensor) else x for x in args]
            self.calls.append((func, tuple(plain)))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        """The operators in order."""
        return [func._opname for func, _ in self.calls]


def recorded(case: Case, dtype: torch.dtype, schedule: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """The operators of a step and a repeated one, as the public function calls them."""
    input, target, options = case.inputs(dtype)
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(schedule), Calls() as calls:
        loss = case.loss.function(x, target, **options)
        upstream = torch.rand_like(loss)
        torch.autograd.grad(loss, x, upstream, retain_graph=True)
        torch.autograd.grad(loss, x, upstream)
    return calls.calls


CHEAP_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL_CHECKS = (*CHEAP_CHECKS, "test_aot_dispatch_dynamic")
TRACED = {
    *("focal-index", "focal-none", "focal-channels-last", "focal-soft", "focal-scalar"),
    *("smooth_l1-boxes", "smooth_l1-none", "smooth_l1-channels-last", "l1-plain"),
    *("ce-7-classes", "ce-none-3d", "ce-channels-last", "ce-soft-weight", "ce-z-weight-mean"),
    *("ce-no-batch", "softmax-focal-no-batch", "softmax-focal-channels-last"),
    *("softmax-focal-none-3d", "softmax-focal-alpha-smoothing"),
    *("margin-arcface", "margin-no-batch", "margin-channels-last", "margin-none-3d"),
    *("margin-per-class-all", "margin-filter-combined", "margin-sphereface-through"),
    *("ohem-kept-mean", "ohem-weight-kept-none", "ohem-no-batch", "topk-channels-last-none"),
    *("balanced-mask-none", "balanced-channels-last-none", "negatives-images-mean"),
    *("negatives-front-none", "balanced-probabilities-sum"),
}


def begins_gradient(options: dict[str, Any]) -> bool:
    """Whether OHEM's forward begins the gradient: of a threshold, for one number that comes in."""
    return options.get("reduction") != "none" and options.get("threshold", 0.7) > 0


@each_run(CASES)
def test_opcheck(case: Case, schedule: str) -> None:
    checks = ALL_CHECKS if case.name in TRACED else CHEAP_CHECKS
    for dtype in (torch.float32, torch.bfloat16):
        calls = recorded(case, dtype, schedule)
        backward = [case.loss.backward_op] * 2
        if schedule == "forward" and not case.loss.mined:
            backward = ["scale_gradient", "scale_gradient_"]
        elif schedule == "forward" and begins_gradient(case.options):
            backward[1] += "_"
        assert [func._opname for func, _ in calls] == [case.loss.forward_op, *backward]
        for func, args in {func: (func, args) for func, args in calls}.values():
            torch.library.opcheck(func, args, test_utils=checks)


def run(function: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the gradient left in a fresh leaf with the values of `x`."""
    leaf = x.detach().requires_grad_()
    loss = function(leaf, *rest)
    (loss * 3).sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def compiled_functions() -> dict[str, Callable[..., Tensor]]:
    """What is compiled: (logits [N, 5], labels [N], soft targets [N, 5], weight [N, 1]) -> loss."""
    module = fusedloss.SigmoidFocalLoss(torch.linspace(0.1, 0.9, 5), gamma=1.5)
    smooth = fusedloss.LabelSmoothingCrossEntropyLoss(weight=torch.linspace(0.1, 0.9, 5))
    softmax_focal = fusedloss.SoftmaxFocalLoss(
        torch.linspace(0.1, 0.9, 5), gamma=1.5, ignore_index=-1
    )
    return {
        "index": lambda x, label, soft, weight: sigmoid_focal_loss(x, label, normalizer=7),
        "dense": lambda x, label, soft, weight: sigmoid_focal_loss(
            x, soft, weight=weight, reduction="none"
        ),
        "module": lambda x, label, soft, weight: module(
            torch.tanh(x) * 3, label, normalizer=(label >= 0).sum()
        ),
        "boxes": lambda x, label, soft, weight: fusedloss.smooth_l1_loss(
            x, soft, weight=weight, normalizer=(label >= 0).sum()
        ),
        "ce": lambda x, label, soft, weight: fusedloss.cross_entropy(
            x, label, ignore_index=-1, z_loss=0.1
        ),
        "ce soft": lambda x, label, soft, weight: fusedloss.cross_entropy(
            x, soft, label_smoothing=0.1, smoothing="others", reduction="none"
        ),
        "ce module": lambda x, label, soft, weight: smooth(torch.tanh(x) * 3, label.clamp(0, 4)),
        "nll": lambda x, label, soft, weight: fusedloss.nll_loss(
            torch.log_softmax(x, 1), label, ignore_index=-1, reduction="sum"
        ),
        "softmax focal": lambda x, label, soft, weight: softmax_focal(
            x, label, normalizer=(label >= 0).sum()
        ),
        "arcface": lambda x, label, soft, weight: fusedloss.arcface_loss(
            torch.tanh(x), label, label_smoothing=0.1
        ),
        "margin": lambda x, label, soft, weight: fusedloss.margin_softmax_loss(
            soft * 2 - 1 + x * 0,
            label,
            m1=1.35,
            m2=soft.mean(0),
            filter_threshold=0.5,
            gradient="straight_through",
            reduction="none",
        ),
    }


def compile_inputs(rows: int) -> tuple[Tensor, ...]:
    """Inputs of `compiled_functions`."""
    g = torch.Generator().manual_seed(rows)
    label = torch.randint(-1, 5, (rows,), generator=g)
    soft, weight = torch.rand(rows, 5, generator=g), torch.rand(rows, 1, generator=g)
    return torch.randn(rows, 5, generator=g), label, soft, weight


COMPILED = ["boxes", "ce", "ce soft", "ce module", "nll", "softmax focal", "arcface", "margin"]


@each_schedule
@pytest.mark.parametrize(
    ("name", "backend", "dynamic"),
    [
        ("index", "aot_eager", False),
        ("dense", "aot_eager", False),
        ("module", "aot_eager", False),
        ("index", "aot_eager", True),
        ("dense", "aot_eager", True),
        ("module", "inductor", True),
        *((name, "aot_eager", dynamic) for name in COMPILED for dynamic in (False, True)),
        ("ce module", "inductor", True),
        ("arcface", "inductor", True),
    ],
)
def test_compiled_whole_equals_eager(name: str, backend: str, dynamic: bool, schedule: str) -> None:
    torch._dynamo.reset()
    function = compiled_functions()[name]
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    with fusedloss.gradient_schedule(schedule):
        for rows in (33, 12, 50) if dynamic else (33,):
            inputs = compile_inputs(rows)
            for got, expected in zip(run(compiled, *inputs), run(function, *inputs), strict=True):
                if backend == "aot_eager":
                    assert torch.equal(got, expected)
                else:  # tanh is compiled too
                    torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)
            with torch.no_grad():
                torch.testing.assert_close(compiled(*inputs), function(*inputs))


def test_a_switch_after_compilation_takes_effect() -> None:
    torch._dynamo.reset()
    function = compiled_functions()["index"]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = compile_inputs(20)
    saved = {}
    for schedule in SCHEDULES:
        with fusedloss.gradient_schedule(schedule), saved_storages(*inputs) as storages:
            compiled(inputs[0].clone().requires_grad_(), *inputs[1:])
        saved[schedule] = max((size for size in storages.values()), default=0)
    assert saved["forward"] >= inputs[0].numel() * 4
    with fusedloss.backend("reference"):
        torch.testing.assert_close(compiled(*inputs), function(*inputs))


@contextmanager
def saved_storages(*inputs: Tensor | None) -> Iterator[dict[int, int]]:
    """{address: bytes} of the distinct storages that the graph keeps beside those of `inputs`."""
    known = {x.untyped_storage().data_ptr() for x in inputs if x is not None}
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known and storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield found


MEMORY_CASES = [
    *("focal-index", "focal-none", "focal-soft", "focal-weight-elementwise"),
    *("focal-channels-last", "focal-normalizer-tensor"),
    *("smooth_l1-plain", "smooth_l1-none", "l1-boxes"),
    *("ce-91-classes", "ce-2x19x527", "ce-none-3d", "ce-channels-last", "ce-weight-uniform-mean"),
    *("ce-z-weight-mean", "ce-soft-weight", "ce-soft-2x19x5", "ce-soft-channels-last"),
    *("softmax-focal-91-classes", "softmax-focal-2x19x527", "softmax-focal-alpha-smoothing"),
    *("margin-91-classes", "margin-2x19x527", "margin-m2-per-class-beside-m1"),
    *("margin-arcface-smoothing-0.1", "margin-filter-0.4-5x1001"),
]


@each_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MEMORY_CASES)
def test_memory_kept_for_backward(name: str, dtype: torch.dtype, schedule: str) -> None:
    case = BY_NAME[name]
    input, target, options = case.inputs(dtype)
    x = input.detach().requires_grad_()
    sides = [value for value in options.values() if isinstance(value, Tensor)]
    with fusedloss.gradient_schedule(schedule), saved_storages(x, target, *sides) as found:
        loss = case.loss.function(x, target, **options)
    sizes = sorted(found.values())
    number = 8 if dtype == torch.float64 else 4
    if schedule == "forward":  # the gradient, and nothing of each row
        assert sizes.pop() == x.numel() * x.element_size()
    elif not case.loss.elements:  # up to three numbers of each row
        rows = x.numel() // x.size(case.loss.class_dim(x.dim()))
        assert rows * number <= sizes.pop() <= 3 * rows * number
    # Class weights are converted to the arithmetic's dtype once.
    if any(side.numel() > 1 and side.dtype.itemsize != number for side in sides):
        assert case.loss.elements or sizes.pop() <= x.size(1) * number
    assert all(size <= 16 for size in sizes), f"kept {sizes} bytes beside the inputs"
    assert len(sizes) <= 2
    loss.sum().backward()


@each_loss
@each_schedule
def test_without_grad_nothing_is_kept_or_computed_for_it(schedule: str, loss: Loss) -> None:
    input, target, _ = BY_NAME[STEP[loss.name]].inputs(torch.float32)
    leaf = input.clone().requires_grad_()
    for x, grad_mode in ((input, True), (leaf, False)):
        with (
            fusedloss.gradient_schedule(schedule),
            saved_storages() as found,
            Calls() as calls,
            torch.set_grad_enabled(grad_mode),
        ):
            value = loss.function(x, target)
        assert not value.requires_grad
        assert found == {}
        assert calls.names == [loss.forward_op]
        assert calls.calls[0][1][-1] is False


STEP = {
    "sigmoid_focal": "focal-index",
    "smooth_l1": "smooth_l1-plain",
    "cross_entropy": "ce-91-classes",
    "softmax_focal": "softmax-focal-91-classes",
    "margin_softmax": "margin-91-classes",
}


@each_loss
@each_schedule
def test_each_pass_is_one_operator(schedule: str, loss: Loss) -> None:
    input, target, _ = BY_NAME[STEP[loss.name]].inputs(torch.float32)
    x = input.clone().requires_grad_()
    with fusedloss.gradient_schedule(schedule), Calls() as calls:
        loss.function(x, target).backward()
    second = "scale_gradient_" if schedule == "forward" else loss.backward_op
    assert calls.names == [loss.forward_op, second]
