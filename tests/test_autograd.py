"""The losses as part of torch: derivatives, operators, compilation, memory kept for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fusedloss
import pytest
import torch
from cases import BY_NAME, CASES, Case, lay_out
from fusedloss import sigmoid_focal_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SCHEDULES = ("recompute", "forward")
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
# Finite differences need logits of moderate size and something to differentiate.
SMOOTH = [case for case in CASES if case.logits != "extreme" and 0 not in case.shape]


def each(cases: list[Case]) -> Any:
    """A test over these rows of the table."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


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


@each_schedule
@each(SMOOTH)
def test_gradcheck(case: Case, schedule: str) -> None:
    function, x = scalar_function(case)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        assert torch.autograd.gradcheck(function, (x,), fast_mode=True)


@each_schedule
@each(SMOOTH)
def test_gradgradcheck(case: Case, schedule: str) -> None:
    function, x = scalar_function(case)
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


@each_schedule
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 2.5])
@pytest.mark.parametrize("name", ["index", "soft"])
def test_gradcheck_of_every_element(name: str, gamma: float, schedule: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 2, 3, -1]) if name == "index" else soft

    def function(x: Tensor) -> Tensor:
        return sigmoid_focal_loss(x, target, gamma=gamma, reduction="none")

    with fusedloss.gradient_schedule(schedule):
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))


@each_schedule
@each([case for case in CASES if case.name != "focal-long"])
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


def operator_arguments(
    case: Case, dtype: torch.dtype, with_grad: bool
) -> tuple[tuple[Any, ...], tuple[Any, ...], Tensor, Tensor]:
    """Arguments of the forward and backward operators of one case, and (scale, gradient)."""
    input, target, options = case.inputs(dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        name: value.to(accumulator) if isinstance(value, Tensor) else None
        for name, value in ((name, options.get(name)) for name in ("alpha", "weight", "normalizer"))
    }
    alpha = options.get("alpha", 0.25)
    normalizer = options.get("normalizer", 0.0)
    side = (tensors["alpha"], tensors["weight"])
    numbers = (
        -1.0 if alpha is None or isinstance(alpha, Tensor) else alpha,
        options.get("gamma", 2.0),
        options.get("ignore_index", -100),
        options.get("label_smoothing", 0.0),
    )
    divisor = 0.0 if isinstance(normalizer, Tensor) else float(normalizer)
    reduction = {"none": 0, "sum": 1, "mean": 2}[options.get("reduction", "mean")]
    forward = (
        *(input, target, *side, tensors["normalizer"]),
        *(*numbers, divisor, reduction, with_grad),
    )
    loss, scale, grad = torch.ops.fusedloss.sigmoid_focal_fwd(*forward)
    backward = (torch.rand_like(loss), scale, input, target, *side, *numbers)
    return forward, backward, scale, grad


CHEAP_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL_CHECKS = (*CHEAP_CHECKS, "test_aot_dispatch_dynamic")
TRACED = {"focal-index", "focal-none", "focal-channels-last", "focal-soft", "focal-scalar"}


@each(CASES)
def test_opcheck(case: Case) -> None:
    ops = torch.ops.fusedloss
    checks = ALL_CHECKS if case.name in TRACED else CHEAP_CHECKS
    for dtype in (torch.float32, torch.bfloat16):
        forward, backward, scale, grad = operator_arguments(case, dtype, with_grad=True)
        torch.library.opcheck(ops.sigmoid_focal_fwd, forward, test_utils=checks)
        torch.library.opcheck(ops.sigmoid_focal_fwd, (*forward[:-1], False), test_utils=checks)
        torch.library.opcheck(ops.sigmoid_focal_bwd, backward, test_utils=checks)
        scaling = (grad, backward[0], scale)
        torch.library.opcheck(ops.scale_gradient, scaling, test_utils=checks)
        torch.library.opcheck(ops.scale_gradient_, scaling, test_utils=checks)


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
    return {
        "index": lambda x, label, soft, weight: sigmoid_focal_loss(x, label, normalizer=7),
        "dense": lambda x, label, soft, weight: sigmoid_focal_loss(
            x, soft, weight=weight, reduction="none"
        ),
        "module": lambda x, label, soft, weight: module(
            torch.tanh(x) * 3, label, normalizer=(label >= 0).sum()
        ),
    }


def compile_inputs(rows: int) -> tuple[Tensor, ...]:
    """Inputs of `compiled_functions`."""
    g = torch.Generator().manual_seed(rows)
    label = torch.randint(-1, 6, (rows,), generator=g)
    soft, weight = torch.rand(rows, 5, generator=g), torch.rand(rows, 1, generator=g)
    return torch.randn(rows, 5, generator=g), label, soft, weight


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


MEMORY_CASES = ["index", "none", "soft", "weight-elementwise", "channels-last", "normalizer-tensor"]


@each_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MEMORY_CASES)
def test_memory_kept_for_backward(name: str, dtype: torch.dtype, schedule: str) -> None:
    case = BY_NAME[f"focal-{name}"]
    input, target, options = case.inputs(dtype)
    x = input.detach().requires_grad_()
    sides = [value for value in options.values() if isinstance(value, Tensor)]
    with fusedloss.gradient_schedule(schedule), saved_storages(x, target, *sides) as found:
        loss = case.loss.function(x, target, **options)
    sizes = sorted(found.values())
    gradient = x.numel() * x.element_size()
    if schedule == "forward":
        assert sizes.pop() == gradient
    assert all(size <= 8 for size in sizes), f"kept {sizes} bytes beside the inputs"
    assert len(sizes) <= 2
    loss.sum().backward()


class Calls(TorchDispatchMode):
    """Records the fused operators that run, with their last argument."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "fusedloss":
            self.names.append((func._opname, args[-1]))
        return func(*args, **(kwargs or {}))


@each_schedule
def test_without_grad_nothing_is_kept_or_computed_for_it(schedule: str) -> None:
    input, target, _ = BY_NAME["focal-index"].inputs(torch.float32)
    leaf = input.clone().requires_grad_()
    for x, grad_mode in ((input, True), (leaf, False)):
        with (
            fusedloss.gradient_schedule(schedule),
            saved_storages() as found,
            Calls() as calls,
            torch.set_grad_enabled(grad_mode),
        ):
            loss = sigmoid_focal_loss(x, target)
        assert not loss.requires_grad
        assert found == {}
        assert calls.names == [("sigmoid_focal_fwd", False)]


@each_schedule
def test_each_pass_is_one_operator(schedule: str) -> None:
    input, target, _ = BY_NAME["focal-index"].inputs(torch.float32)
    x = input.clone().requires_grad_()
    with fusedloss.gradient_schedule(schedule), Calls() as calls:
        sigmoid_focal_loss(x, target).backward()
    second = "scale_gradient_" if schedule == "forward" else "sigmoid_focal_bwd"
    assert [name for name, _ in calls.names] == ["sigmoid_focal_fwd", second]
    assert calls.names[0][1] is (schedule == "forward")
