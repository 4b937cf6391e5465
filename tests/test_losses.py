"""Values and gradients of every case, on every backend, under both schedules, in every dtype."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import fusedloss
import pytest
import torch
from cases import BY_NAME, CASES, LOSSES, SIGMOID_FOCAL, Case, Loss, under_its_schedules
from tolerances import check_close, check_gradient
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SCHEDULES = ("recompute", "forward")

each_run = pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES))
each_emulated_run = pytest.mark.parametrize(
    ("case", "schedule"),
    under_its_schedules([case for case in CASES if case.emulated], on_cuda=True),
)
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
softmax_losses = pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if loss is not SIGMOID_FOCAL], ids=lambda loss: loss.name
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def _upstream(loss: Tensor) -> Tensor:
    """A gradient that is neither 1 nor the same everywhere."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(loss.shape, generator=generator).to(loss) + 0.5


def _eager(
    case: Case, input: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    x = input.detach().clone().requires_grad_()
    loss = case.loss.reference(x, target, **options)
    (grad,) = torch.autograd.grad(loss, x, _upstream(loss))
    return loss.detach(), grad


def _expected(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    input, target, options = case.inputs(dtype)
    wide = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    exact = _eager(case, input.double(), target, wide)
    return input, target, options, exact, _eager(case, input, target, options)


def _check(
    case: Case,
    loss: Tensor,
    grad: Tensor,
    exact: tuple[Tensor, Tensor],
    eager: tuple[Tensor, Tensor],
) -> None:
    check_close(f"{case.name} loss", loss, exact[0], eager[0])
    check_gradient(f"{case.name} gradient", grad, exact[1], eager[1])


@each_dtype
@each_run
def test_native(case: Case, dtype: torch.dtype, schedule: str) -> None:
    input, target, options, exact, eager = _expected(case, dtype)
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(schedule), fusedloss.backend("native"):
        loss = case.loss.function(x, target, **options)
        (grad,) = torch.autograd.grad(loss, x, _upstream(loss))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    _check(case, loss.detach(), grad, exact, eager)


@each_dtype
@each_emulated_run
def test_emulated_cuda(case: Case, dtype: torch.dtype, schedule: str, emulator: ModuleType) -> None:
    input, target, options, exact, eager = _expected(case, dtype)
    # Without counters, on small inputs with the race check: the traffic has a test of its own.
    emulator.configure(count=False, race_check=input.numel() < 3000, seed=len(case.name))
    kernel = case.loss.emulated(emulator, input, target, **options)
    loss, grad = kernel.run(schedule, _upstream(exact[0].to(kernel.dtype)))
    _check(case, loss, grad, exact, eager)


@each_run
def test_same_bits_for_any_thread_count_and_run(case: Case, schedule: str) -> None:
    input, target, options = case.inputs(torch.float32)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        x = input.detach().requires_grad_()
        with fusedloss.gradient_schedule(schedule):
            loss = case.loss.function(x, target, **options)
            results.append((loss, *torch.autograd.grad(loss, x, torch.ones_like(loss))))
    for loss, grad in results[1:]:
        assert same(loss, results[0][0])
        assert same(grad, results[0][1])


def same(a: Tensor, b: Tensor) -> bool:
    """The same numbers, NaN in the same places."""
    return torch.equal(torch.nan_to_num(a, 1.25e30), torch.nan_to_num(b, 1.25e30))


# Several blocks, whose totals have to be added in one order; a row shared by a block; pixels.
ORDERED = [
    *("focal-long-index", "ce-many-rows", "ce-z-weight-mean", "ce-21841-classes", "ce-2x19x527"),
    *("ce-soft-2x1001", "softmax-focal-many-rows", "softmax-focal-2x19x527"),
    *("margin-many-rows", "margin-21841-classes", "margin-2x19x527"),
    *("dice-many-rows", "dice-ce-many-pixels", "dice-ce-multilabel-many"),
    *(
        "smooth_l1-long",
        "ohem-many-rows",
        "topk-many-pixels",
        "balanced-many",
        "negatives-two-large",
    ),
]


@pytest.mark.parametrize("name", ORDERED)
def test_emulated_cuda_gives_the_same_bits_for_any_order_of_threads(
    name: str, emulator: ModuleType
) -> None:
    case = BY_NAME[name]
    input, target, options = case.inputs(torch.float32)
    results = []
    for seed in range(4):
        emulator.configure(seed=seed, count=False, race_check=False)
        kernel = case.loss.emulated(emulator, input, target, **options)
        results.append(kernel.run("recompute"))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 2.5])
def test_saturated_logits_stay_finite(dtype: torch.dtype, gamma: float) -> None:
    top = min(torch.finfo(dtype).max, 1e6)
    x = torch.tensor([-top, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, top], dtype=dtype)
    for target in (torch.zeros(8), torch.ones(8), torch.full((8,), 0.3)):
        for schedule in SCHEDULES:
            leaf = x.clone().requires_grad_()
            with fusedloss.gradient_schedule(schedule):
                loss = fusedloss.sigmoid_focal_loss(leaf, target, gamma=gamma, reduction="sum")
                loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
# Between 0 and 1 the derivative of (1 - p)^gamma is unbounded where p goes to 1.
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 2.0, 2.5])
def test_saturated_softmax_focal_stays_finite(
    gamma: float, smoothing: float, dtype: torch.dtype
) -> None:
    top = min(torch.finfo(dtype).max, 1e6)
    x = torch.tensor(
        [[v, -v, 0.0] for v in (-top, -200.0, -90.0, 0.0, 15.0, 40.0, 90.0, 200.0, top)],
        dtype=dtype,
    )
    # Rows, and the same as pixels.
    for logits, dim in ((x, 1), (x.t().unsqueeze(0), 1)):
        rows = logits.select(dim, 0)
        for label in (0, 1, 2):
            target = torch.full(rows.shape, label)
            for schedule in SCHEDULES:
                leaf = logits.clone().requires_grad_()
                with fusedloss.gradient_schedule(schedule):
                    loss = fusedloss.softmax_focal_loss(
                        leaf, target, gamma=gamma, reduction="sum", label_smoothing=smoothing
                    )
                    loss.backward()
                assert torch.isfinite(loss)
                assert torch.isfinite(leaf.grad).all()
                # A gradient of a softmax sums to 0 over the classes.
                unit = torch.finfo(dtype).eps * max(1.0, float(leaf.grad.abs().max()))
                assert float(leaf.grad.double().sum(dim).abs().max()) <= 4 * unit


@softmax_losses
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_added_to_all_logits_changes_little(loss: Loss, dtype: torch.dtype) -> None:
    # The constant is a power of two beside which the logits keep all their digits, so that nothing
    # but the loss itself could lose them.
    x = torch.randint(-8, 9, (23, 17)).to(dtype) / 4
    shift = 128.0 if dtype == torch.bfloat16 else 512.0
    x = x.round() if dtype in (torch.bfloat16, torch.float16) else x
    target = torch.randint(0, 17, (23,))
    results = []
    for logits in (x, x + shift, x - shift):
        assert torch.equal(logits - x, (logits - x)[:1, :1].expand_as(x))
        leaf = logits.clone().requires_grad_()
        value = loss.function(leaf, target, reduction="sum")
        (grad,) = torch.autograd.grad(value, leaf)
        results.append((value.detach(), grad))
    for value, grad in results[1:]:
        torch.testing.assert_close(
            value, results[0][0], rtol=8 * torch.finfo(value.dtype).eps, atol=0
        )
        eps = torch.finfo(grad.dtype).eps
        torch.testing.assert_close(grad, results[0][1], rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_logits_show_as_in_eager(value: float, emulator: ModuleType) -> None:
    emulator.configure(count=False)
    x = torch.tensor([[0.5, value, -1.0]])
    target = torch.tensor([[0.0, 1.0, 1.0]])
    eager = fusedloss.reference.sigmoid_focal_loss(x, target, reduction="none")
    native = fusedloss.sigmoid_focal_loss(x, target, reduction="none")
    emulated, _ = (
        BY_NAME["focal-none"].loss.emulated(emulator, x, target, reduction="none").run("recompute")
    )
    assert torch.equal(torch.isnan(native), torch.isnan(emulated))
    assert torch.equal(
        native[:, [0, 2]],
        fusedloss.sigmoid_focal_loss(x[:, [0, 2]], target[:, [0, 2]], reduction="none"),
    )
    # NaN where eager has NaN, infinite where it is infinite.
    for got in (native, emulated):
        torch.testing.assert_close(got, eager, equal_nan=True)


@softmax_losses
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["", "smoothing"])
@pytest.mark.parametrize("where", ["label", "other"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_logits_of_a_softmax_show_as_in_eager(
    value: float, where: str, options: dict[str, Any], loss: Loss, emulator: ModuleType
) -> None:
    emulator.configure(count=False)
    x = torch.tensor([[0.5, 1.5, -1.0], [0.25, -2.0, 1.0], [3.0, 0.0, 0.5]])
    target = torch.tensor([2, 0 if where == "label" else 1, 1])
    x[1, 0] = value
    options = {**options, "reduction": "none"}
    eager = loss.reference(x, target, **options)
    native = loss.function(x, target, **options)
    kernel = loss.emulated(emulator, x, target, **options)
    for got in (native, kernel.run("recompute")[0]):
        torch.testing.assert_close(got, eager, equal_nan=True)
        assert torch.isfinite(got[[0, 2]]).all()
    # A class that is masked with -inf is an ordinary case: its probability is 0.
    masked = value == float("-inf") and where == "other" and "label_smoothing" not in options
    assert bool(torch.isfinite(eager[1])) is masked
    for schedule in SCHEDULES if masked else ():
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        with fusedloss.gradient_schedule(schedule):
            loss.function(leaf, target, **options).sum().backward()
        loss.reference(wide, target, **options).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad[1, 0] == 0
        torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1e-5, atol=1e-7)


IGNORED = [(loss, True) for loss in LOSSES] + [(SIGMOID_FOCAL, False)]


@pytest.mark.parametrize(("kind", "index"), IGNORED, ids=lambda v: getattr(v, "name", str(v)))
def test_ignored_elements_have_no_effect_whatever_their_logit(
    kind: Loss, index: bool, emulator: ModuleType
) -> None:
    emulator.configure(count=False)
    x = torch.randn(6, 5) * (0.1 if kind.cosines else 1.0)
    last = 5 if kind.background else 4
    target = torch.tensor([0, 1, 0, last, 0, 2]) if index else torch.rand(6, 5)
    target[[2, 4]] = kind.ignore_index
    # With a gradient, as below: the pass without one may round the last bit differently.
    clean = kind.function(x.clone().requires_grad_(), target)
    x[2] = torch.nan
    x[4] = torch.inf
    leaf = x.requires_grad_()
    for schedule in SCHEDULES:
        leaf.grad = None
        with fusedloss.gradient_schedule(schedule):
            loss = kind.function(leaf, target)
            loss.backward()
        torch.testing.assert_close(loss, clean, rtol=3e-7, atol=0)
        assert leaf.grad is not None
        assert (leaf.grad[[2, 4]] == 0).all()
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[[0, 1, 3, 5]] != 0).all()
    loss, grad = kind.emulated(emulator, x.detach(), target).run("recompute")
    assert torch.isfinite(loss)
    assert (grad[[2, 4]] == 0).all()


@each_loss
@pytest.mark.parametrize("label", [-2, 6, 1000, -99])
def test_out_of_range_label(label: int, loss: Loss, emulator: ModuleType) -> None:
    target = torch.tensor([0, 1, label, 4, 3, 2])
    x = torch.randn(6, 5)
    called = "cosine" if loss.cosines else "input"
    with pytest.raises(IndexError, match=f"label {label}, but {called} has 5 classes"):
        loss.function(x, target)
    with fusedloss.backend("reference"), pytest.raises(IndexError, match=f"label {label}"):
        loss.function(x, target)
    # On a GPU nothing waits for the device: the row's loss is NaN, the others are right.
    emulator.configure(count=False)
    kernel = loss.emulated(emulator, x, target, reduction="none")
    got, grad = kernel.run("recompute")
    target[2] = loss.ignore_index
    expected = loss.reference(x, target, reduction="none")
    assert torch.isnan(got[2]).all()
    assert torch.isnan(grad[2]).all()
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(got[rest], expected[rest])
    assert torch.isfinite(grad[rest]).all()


# Rows 2^31 elements apart; classes 2^31 elements apart, with pixels beside each other.
FAR = [
    (SIGMOID_FOCAL, (2, 40), (2**31, 1), torch.tensor([3, 39])),
    (SIGMOID_FOCAL, (2, 40), (2**31, 1), torch.arange(80).view(2, 40) % 3 == 0),
    *(
        (loss, shape, stride, target)
        for loss in LOSSES
        if loss is not SIGMOID_FOCAL
        for shape, stride, target in (
            ((2, 40), (2**31, 1), torch.tensor([3, 39])),
            ((2, 2, 20), (20, 2**31, 1), torch.arange(40).view(2, 20) % 2),
        )
    ),
]


@pytest.mark.parametrize(("kind", "shape", "stride", "target"), FAR)
def test_offsets_beyond_32_bits(
    kind: Loss,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    target: Tensor,
    emulator: ModuleType,
) -> None:
    """4 GiB of address space, of which two pages are touched."""
    store = torch.empty(2**31 + 64, dtype=torch.float16)
    x = store.as_strided(shape, stride)
    x.copy_(torch.randn(shape))
    near = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = kind.function(near, target)
    (grad,) = torch.autograd.grad(expected, near)
    far = x.detach().requires_grad_()
    loss = kind.function(far, target)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss, far)[0], grad)
    emulator.configure(count=False, race_check=False)
    emulated, emulated_grad = kind.emulated(emulator, x, target).run("recompute")
    check_close("loss", emulated, expected.detach().double(), expected.detach())
    check_close("gradient", emulated_grad, grad.double(), grad)
