"""What a training loop can do with a loss: any upstream gradient, repeated and nested backward
passes, hooks, checkpoints, mixed precision, gradients of other arguments, and the module form.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
from cases import ARCFACE, BY_NAME, CASES, LOSSES, SIGMOID_FOCAL, SMOOTH_L1, Case, Loss, lay_out
from fusedloss import SigmoidFocalLoss, sigmoid_focal_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SCHEDULES = ("recompute", "forward")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


each_loss = pytest.mark.parametrize(
    "subject", [*LOSSES, ARCFACE, SMOOTH_L1], ids=lambda loss: loss.name
)


def make(
    subject: Loss = SIGMOID_FOCAL,
    rows: int = 14,
    classes: int = 9,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """A leaf of logits and class indices: rows, or pixels where the classes do not come last. For boxes
    numbers and numbers.
    """
    generator = torch.Generator().manual_seed(rows)
    inner = () if subject.classes_last else (5,)
    x = torch.randn(rows, classes, *inner, generator=generator)
    x = (torch.tanh(x) if subject.cosines else x).to(dtype).requires_grad_()
    if subject.boxes:
        return x, torch.randn(x.shape, generator=generator)
    low, high = (-1, classes + 1) if subject.background else (0, classes)
    return x, torch.randint(low, high, (rows, *inner), generator=generator)


def exact_gradient(
    x: Tensor, target: Tensor, upstream: Tensor, subject: Loss = SIGMOID_FOCAL, **options: Any
) -> Tensor:
    """The float64 gradient from the eager reference."""
    wide = x.detach().double().requires_grad_()
    loss = subject.reference(wide, target, **options)
    (grad,) = torch.autograd.grad(loss, wide, upstream.double())
    return grad


def assert_gradient(got: Tensor, exact: Tensor) -> None:
    """Within rounding of the gradient's dtype."""
    eps = torch.finfo(got.dtype).eps
    largest = float(exact.abs().max())
    torch.testing.assert_close(got.double(), exact, rtol=4 * eps, atol=16 * eps * largest)


UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "one": torch.ones_like,
    "constant": lambda loss: torch.full_like(loss, -2.5),
    "expanded": lambda loss: loss.new_tensor(1.75).expand(loss.shape),
    "expanded row": lambda loss: torch.linspace(-1, 2, loss.size(-1)).to(loss).expand(loss.shape),
    "expanded column": lambda loss: (
        torch.linspace(-1, 2, loss.size(0)).to(loss)[:, None].expand(loss.shape)
    ),
    "transposed": lambda loss: torch.rand(loss.shape[::-1], dtype=loss.dtype).t() + 0.5,
    "sliced": lambda loss: lay_out(torch.rand(loss.shape, dtype=loss.dtype), "sliced"),
    "zero": torch.zeros_like,
    "mixed zeros": lambda loss: (torch.arange(loss.numel()) % 3 == 0).to(loss).view(loss.shape),
}


@each_dtype
@each_schedule
@pytest.mark.parametrize("upstream", UPSTREAM)
@each_loss
def test_upstream_gradient(subject: Loss, upstream: str, schedule: str, dtype: torch.dtype) -> None:
    x, target = make(subject, dtype=dtype)
    with fusedloss.gradient_schedule(schedule):
        loss = subject.function(x, target, reduction="none")
        grad_output = UPSTREAM[upstream](loss.detach())
        before = grad_output.clone()
        loss.backward(grad_output)
    assert x.grad is not None
    assert torch.equal(grad_output, before)
    assert_gradient(
        x.grad, exact_gradient(x, target, grad_output, reduction="none", subject=subject)
    )
    if "zero" in upstream:
        rows = x.grad if subject.classes_last else x.grad.movedim(1, -1)
        assert (rows[grad_output == 0] == 0).all()


@each_dtype
@each_schedule
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("factor", [1.0, 0.0, -3.0, 128.0])
@each_loss
def test_upstream_scalar(
    subject: Loss, factor: float, reduction: str, schedule: str, dtype: torch.dtype
) -> None:
    x, target = make(subject, dtype=dtype)
    with fusedloss.gradient_schedule(schedule):
        (subject.function(x, target, reduction=reduction) * factor).backward()
    assert x.grad is not None
    exact = exact_gradient(x, target, torch.tensor(factor), reduction=reduction, subject=subject)
    assert_gradient(x.grad, exact)
    if factor == 0.0:
        assert (x.grad == 0).all()


@each_schedule
@pytest.mark.parametrize("reduction", ["mean", "none"])
@each_loss
def test_backward_twice_and_accumulation(subject: Loss, reduction: str, schedule: str) -> None:
    x, target = make(subject)
    with fusedloss.gradient_schedule(schedule):
        loss = subject.function(x, target, reduction=reduction)
        upstream = torch.full_like(loss, 3.0)
        (first,) = torch.autograd.grad(loss, x, upstream, retain_graph=True)
        kept = first.clone()
        (second,) = torch.autograd.grad(loss, x, upstream, retain_graph=True)
        assert torch.equal(first, second)
        # What came out is the caller's: writing into it must not reach the next pass.
        first.zero_()
        (third,) = torch.autograd.grad(loss, x, upstream, retain_graph=True)
        assert torch.equal(third, kept)
        loss.backward(upstream, retain_graph=True)
        assert x.grad is not None
        assert torch.equal(x.grad, kept)
        loss.backward(2 * upstream)  # the last one may finish in place
    torch.testing.assert_close(x.grad, 3 * kept)
    assert torch.equal(third, kept)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward(upstream)


@each_schedule
@each_loss
def test_one_loss_used_twice(subject: Loss, schedule: str) -> None:
    x, target = make(subject)
    with fusedloss.gradient_schedule(schedule):
        loss = subject.function(x, target)
        (loss * 2 + loss.square()).backward()
    assert x.grad is not None
    factor = 2 + 2 * loss.detach()
    assert_gradient(x.grad, exact_gradient(x, target, factor, subject=subject))


@each_schedule
def test_two_losses_of_the_same_logits(schedule: str) -> None:
    x, target = make()
    with fusedloss.gradient_schedule(schedule):
        (sigmoid_focal_loss(x, target) + 2 * sigmoid_focal_loss(x, target, gamma=0.5)).backward()
    assert x.grad is not None
    exact = exact_gradient(x, target, torch.tensor(1.0))
    exact += exact_gradient(x, target, torch.tensor(2.0), gamma=0.5)
    assert_gradient(x.grad, exact)


@each_schedule
def test_gradient_norm_penalty(schedule: str) -> None:
    x, target = make(dtype=torch.float64)
    wide = x.detach().clone().requires_grad_()
    grads = []
    for leaf, function in (
        (x, sigmoid_focal_loss),
        (wide, fusedloss.reference.sigmoid_focal_loss),
    ):
        with fusedloss.gradient_schedule(schedule):
            loss = function(leaf, target, gamma=1.5)
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (loss + grad.square().sum()).backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-14)


@each_dtype
@each_schedule
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced"])
def test_gradient_has_dtype_and_layout_of_the_logits(
    layout: str, schedule: str, dtype: torch.dtype
) -> None:
    x = lay_out(torch.randn(2, 6, 5, 4).to(dtype), layout).detach().requires_grad_()
    target = torch.randint(0, 4, (2, 6, 5))
    with fusedloss.gradient_schedule(schedule):
        loss = sigmoid_focal_loss(x, target)
        (direct,) = torch.autograd.grad(loss * 2, x, retain_graph=True)
        loss.backward()
    assert x.grad is not None
    assert direct.dtype == x.grad.dtype == dtype
    expected = torch.empty_like(x.detach()).stride()
    assert x.grad.stride() == expected
    assert direct.stride() == expected
    if layout != "sliced":
        assert expected == x.stride()
    assert_gradient(x.grad, exact_gradient(x, target, torch.tensor(1.0)))


@each_schedule
@pytest.mark.parametrize("name", ["index-ignored", "soft", "transposed", "expanded", "none"])
def test_inputs_are_not_modified(name: str, schedule: str) -> None:
    input, target, options = BY_NAME[f"focal-{name}"].inputs(torch.float32)
    x = input.detach().requires_grad_()
    copies = x.detach().clone(), target.clone()
    with fusedloss.gradient_schedule(schedule):
        sigmoid_focal_loss(x, target, **options).sum().backward()
    assert torch.equal(x.detach(), copies[0])
    assert torch.equal(target, copies[1])
    assert x._version == 0
    assert x.grad is not None
    assert x.grad.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@each_schedule
@each_loss
def test_logits_changed_before_backward_are_noticed(subject: Loss, schedule: str) -> None:
    base, target = make(subject)
    x = base * 1
    with fusedloss.gradient_schedule(schedule):
        loss = subject.function(x, target)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_schedule
@each_loss
def test_non_leaf_logits_hooks_and_checkpoints(subject: Loss, schedule: str) -> None:
    x, target = make(subject, dtype=torch.float64)
    seen = []
    reach = 1 if subject.cosines else 4

    def function(x: Tensor) -> Tensor:
        y = torch.tanh(x) * reach
        if y.requires_grad:
            y.register_hook(lambda grad: seen.append(grad.clone()))
        return subject.function(y, target) * 3

    with fusedloss.gradient_schedule(schedule):
        (plain,) = torch.autograd.grad(function(x), x)
        (again,) = torch.autograd.grad(checkpoint(function, x, use_reentrant=False), x)
        with torch.autograd.graph.save_on_cpu():
            (moved,) = torch.autograd.grad(function(x), x)
    y = (torch.tanh(x) * reach).detach()
    inner = exact_gradient(y, target, torch.tensor(3.0), subject=subject)
    assert_gradient(seen[0], inner)
    assert_gradient(plain, inner * reach * (1 - torch.tanh(x.detach()) ** 2))
    assert torch.equal(plain, again)
    assert torch.equal(plain, moved)


@each_schedule
@each_loss
def test_functional_gradients(subject: Loss, schedule: str) -> None:
    x, target = make(subject, dtype=torch.float64)
    plain = x.detach()
    with fusedloss.gradient_schedule(schedule):
        grad = torch.func.grad(lambda x: subject.function(x, target))(plain)
        value, pulled, *_ = torch.func.vjp(lambda x: subject.function(x, target), plain)
        hessian_vector = torch.func.grad(
            lambda x: torch.func.grad(lambda x: subject.function(x, target))(x).square().sum()
        )(plain)
    exact = exact_gradient(x, target, torch.tensor(1.0), subject=subject)
    assert_gradient(grad, exact)
    assert_gradient(pulled(torch.tensor(2.0, dtype=torch.float64))[0], 2 * exact)
    assert torch.equal(value, subject.function(plain, target))
    loss = subject.reference(x, target)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(hessian_vector, second, rtol=1e-10, atol=1e-15)


OTHERS = ["target", "weight", "alpha", "normalizer", "all"]


@each_schedule
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_of_other_arguments(gamma: float, name: str, schedule: str) -> None:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    values = {
        "target": torch.rand(5, 4, generator=generator, dtype=torch.float64) * 0.8 + 0.1,
        "weight": torch.rand(5, 1, generator=generator, dtype=torch.float64),
        "alpha": torch.rand(4, generator=generator, dtype=torch.float64) * 0.8 + 0.1,
        "normalizer": torch.tensor(3.0, dtype=torch.float64),
    }
    names = [name] if name != "all" else list(values)
    leaves = [x.requires_grad_(), *(values[n].requires_grad_() for n in names)]

    def function(x: Tensor, *given: Tensor) -> Tensor:
        options: dict[str, Any] = {**values, **dict(zip(names, given, strict=True))}
        return sigmoid_focal_loss(x, options.pop("target"), gamma=gamma, **options)

    with fusedloss.gradient_schedule(schedule):
        assert torch.autograd.gradcheck(function, leaves)
        loss = function(*leaves)
        without = function(*(leaf.detach() for leaf in leaves))
    torch.testing.assert_close(loss.detach(), without, rtol=1e-13, atol=0)


@each_schedule
def test_autocast_leaves_the_logits_as_they_are(schedule: str) -> None:
    x, target = make()
    with fusedloss.gradient_schedule(schedule):
        plain = sigmoid_focal_loss(x, target)
        (plain_grad,) = torch.autograd.grad(plain, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = sigmoid_focal_loss(x, target)
            (grad,) = torch.autograd.grad(loss, x)
        assert torch.equal(loss, plain)
        assert torch.equal(grad, plain_grad)
        # A layer under autocast hands over bfloat16; the loss is float32, its gradient bfloat16.
        layer = nn.Linear(6, 9)
        features = torch.randn(14, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = layer(features)
            loss = sigmoid_focal_loss(logits, target)
        logits.retain_grad()
        loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert_gradient(logits.grad, exact_gradient(logits, target, torch.tensor(1.0)))


MODULES = {
    "defaults": SigmoidFocalLoss,
    "numbers": lambda: SigmoidFocalLoss(None, 1.5, ignore_index=3, label_smoothing=0.1),
    "alpha": lambda: SigmoidFocalLoss(torch.linspace(0.1, 0.9, 9), reduction="none"),
}


@each_schedule
@pytest.mark.parametrize("name", MODULES)
def test_module_equals_function_also_after_copies(name: str, schedule: str) -> None:
    module = MODULES[name]()
    x, target = make()
    weight = torch.rand(14, 1)
    normalizer = torch.tensor(5)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [
        module,
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ]
    with fusedloss.gradient_schedule(schedule):
        expected = sigmoid_focal_loss(
            x,
            target,
            alpha=module.alpha,
            gamma=module.gamma,
            weight=weight,
            ignore_index=module.ignore_index,
            label_smoothing=module.label_smoothing,
            normalizer=normalizer,
            reduction=module.reduction,
        )
        (expected_grad,) = torch.autograd.grad(expected.sum(), x)
        for each in copies:
            loss = each(x, target, weight=weight, normalizer=normalizer)
            (grad,) = torch.autograd.grad(loss.sum(), x)
            assert torch.equal(loss, expected)
            assert torch.equal(grad, expected_grad)
            assert repr(each) == repr(module)


def test_module_state() -> None:
    alpha = torch.linspace(0.1, 0.9, 9)
    module = SigmoidFocalLoss(alpha)
    assert list(SigmoidFocalLoss().state_dict()) == []
    assert list(module.parameters()) == []
    assert list(module.state_dict()) == ["alpha"]
    other = SigmoidFocalLoss(torch.zeros(9))
    x, target = make()
    assert not torch.equal(other(x, target), module(x, target))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x, target), module(x, target))
    wide = copy.deepcopy(module).double()
    assert isinstance(wide.alpha, Tensor)
    assert wide.alpha.dtype == torch.float64
    assert "alpha=tensor[9], gamma=2.0" in repr(module)
    assert "alpha=0.25" in repr(SigmoidFocalLoss())


def test_every_row_of_the_table_trains() -> None:
    # A step along the negative gradient lowers the loss, whatever the options.
    for case in CASES:
        plain = case.logits != "extreme" and case.layout != "expanded"
        plain = plain and case.options.get("gradient") != "straight_through"
        if plain and case.options.get("reduction") != "none":
            assert_descends(case)


def assert_descends(case: Case) -> None:
    """One small gradient step of the case in float64."""
    input, target, options = case.inputs(torch.float64)
    x = input.detach().requires_grad_()
    loss = case.loss.function(x, target, **options)
    (grad,) = torch.autograd.grad(loss, x)
    squared = float(grad.square().sum())
    if squared:
        # A step that changes the loss a little, and no logit by much.
        rate = min(1e-4 * float(loss.detach()) / squared, 1e-2 / float(grad.abs().max()))
        after = case.loss.function(x.detach() - rate * grad, target, **options)
        drop = float(loss.detach() - after)
        assert drop == pytest.approx(rate * squared, rel=0.02), case.name


@each_schedule
@each_loss
def test_batched_gradients(subject: Loss, schedule: str) -> None:
    x, target = make(subject, dtype=torch.float64)
    with fusedloss.gradient_schedule(schedule):
        loss = subject.function(x, target)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (batch,) = torch.autograd.grad(loss, x, upstream, is_grads_batched=True)
    exact = exact_gradient(x, target, torch.tensor(1.0), subject=subject)
    for factor, grad in zip(upstream, batch, strict=True):
        assert_gradient(grad, factor * exact)


def test_a_zero_normalizer_tensor_means_the_same_under_both_schedules() -> None:
    results = []
    for schedule in ("recompute", "forward"):
        x = torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()
        with fusedloss.gradient_schedule(schedule):
            loss = sigmoid_focal_loss(x, torch.tensor([0, 3, 4]), normalizer=torch.tensor(0))
            loss.backward()
        assert torch.isinf(loss)
        results.append(x.grad)
    assert torch.equal(results[0], results[1])
    assert torch.isinf(results[0]).all()
