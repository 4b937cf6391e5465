"""The region losses as part of torch, and what a training loop can do with them: as test_autograd.py and
test_backward.py for losses of rows and elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
from cases import BY_NAME, REGION_LOSSES, Loss, lay_out
from cases.region_losses import COMPOUNDS, LOSSES, PLAIN
from fusedloss import dice_cross_entropy_loss, dice_focal_loss, dice_loss, tversky_loss
from test_autograd import SCHEDULES, Calls, run, saved_storages
from test_backward import assert_gradient
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

each_loss = pytest.mark.parametrize("subject", REGION_LOSSES, ids=lambda loss: loss.name)
each_plain = pytest.mark.parametrize(
    "subject",
    [LOSSES[short, engine] for short in PLAIN for engine in ("softmax", "element")],
    ids=lambda loss: loss.name,
)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16]
)


def make(subject: Loss, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A leaf of logits ``[4, 5, 6, 3]`` and a target of the loss's kind."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(4, 5, 6, 3, generator=generator).to(dtype).requires_grad_()
    if "softmax" in subject.name:
        return x, torch.randint(0, 5, (4, 6, 3), generator=generator)
    return x, torch.rand(4, 5, 6, 3, generator=generator) < 0.3


def how(subject: Loss, **options: Any) -> dict[str, Any]:
    """Options that choose the engine of the loss."""
    return options if "softmax" in subject.name else {"mode": "multilabel", **options}


def exact_gradient(
    x: Tensor, target: Tensor, upstream: Tensor, subject: Loss, **options: Any
) -> Tensor:
    """The float64 gradient from the eager reference."""
    wide = x.detach().double().requires_grad_()
    loss = subject.reference(wide, target, **how(subject, **options))
    (grad,) = torch.autograd.grad(loss, wide, upstream.double())
    return grad


UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda loss: torch.full_like(loss, -2.5),
    "expanded": lambda loss: loss.new_tensor(1.75).expand(loss.shape),
    "expanded row": lambda loss: torch.linspace(-1, 2, loss.size(-1)).to(loss).expand(loss.shape),
    "transposed": lambda loss: (
        torch.rand(loss.shape[::-1], dtype=loss.dtype).mT + 0.5
        if loss.dim() > 1
        else torch.rand(loss.shape, dtype=loss.dtype)
    ),
    "sliced": lambda loss: lay_out(torch.rand(loss.shape, dtype=loss.dtype), "sliced"),
    "zero": torch.zeros_like,
    "mixed zeros": lambda loss: (torch.arange(loss.numel()) % 3 == 0).to(loss).view(loss.shape),
}


@each_dtype
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"include_background": False}])
@each_plain
def test_upstream_gradient(
    subject: Loss, options: dict[str, Any], upstream: str, dtype: torch.dtype
) -> None:
    x, target = make(subject, dtype)
    loss = subject.function(x, target, **how(subject, reduction="none", **options))
    grad_output = UPSTREAM[upstream](loss.detach())
    before = grad_output.clone()
    loss.backward(grad_output)
    assert x.grad is not None
    assert torch.equal(grad_output, before)
    exact = exact_gradient(x, target, grad_output, subject, reduction="none", **options)
    assert_gradient(x.grad, exact)
    if upstream == "zero":
        assert (x.grad == 0).all()


@each_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("factor", [1.0, 0.0, -3.0, 128.0])
@each_loss
def test_upstream_scalar(subject: Loss, factor: float, reduction: str, dtype: torch.dtype) -> None:
    x, target = make(subject, dtype)
    (subject.function(x, target, **how(subject, reduction=reduction)) * factor).backward()
    assert x.grad is not None
    exact = exact_gradient(x, target, torch.tensor(factor), subject, reduction=reduction)
    assert_gradient(x.grad, exact)


@each_loss
def test_backward_twice_and_accumulation(subject: Loss) -> None:
    x, target = make(subject)
    loss = subject.function(x, target, **how(subject))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.zero_()  # what came out is the caller's
    loss.backward(retain_graph=True)
    assert x.grad is not None
    assert torch.equal(x.grad, kept)
    (loss * 2 + loss.square()).backward()
    torch.testing.assert_close(x.grad, (3 + 2 * loss.detach()) * kept)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@each_loss
def test_logits_changed_before_backward_are_noticed(subject: Loss) -> None:
    base, target = make(subject)
    x = base * 1
    loss = subject.function(x, target, **how(subject))
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_loss
def test_inputs_are_not_modified(subject: Loss) -> None:
    x, target = make(subject)
    copies = x.detach().clone(), target.clone()
    subject.function(x, target, **how(subject)).backward()
    assert torch.equal(x.detach(), copies[0])
    assert torch.equal(target, copies[1])
    assert x._version == 0


@each_loss
def test_checkpoints_and_functional_gradients(subject: Loss) -> None:
    x, target = make(subject, torch.float64)

    def function(x: Tensor) -> Tensor:
        return subject.function(torch.tanh(x) * 4, target, **how(subject)) * 3

    (plain,) = torch.autograd.grad(function(x), x)
    (again,) = torch.autograd.grad(checkpoint(function, x, use_reentrant=False), x)
    assert torch.equal(plain, again)
    with torch.autograd.graph.save_on_cpu():
        (moved,) = torch.autograd.grad(function(x), x)
    assert torch.equal(plain, moved)
    torch.testing.assert_close(torch.func.grad(function)(x.detach()), plain)
    hessian_vector = torch.func.grad(lambda x: torch.func.grad(function)(x).square().sum())
    wide = x.detach().requires_grad_()
    loss = subject.reference(torch.tanh(wide) * 4, target, **how(subject)) * 3
    (first,) = torch.autograd.grad(loss, wide, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), wide)
    torch.testing.assert_close(hessian_vector(x.detach()), second, rtol=1e-9, atol=1e-14)


@each_loss
def test_batched_gradients(subject: Loss) -> None:
    x, target = make(subject, torch.float64)
    loss = subject.function(x, target, **how(subject))
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (batch,) = torch.autograd.grad(loss, x, upstream, is_grads_batched=True)
    exact = exact_gradient(x, target, torch.tensor(1.0), subject)
    for factor, grad in zip(upstream, batch, strict=True):
        assert_gradient(grad, factor * exact)


@each_dtype
@each_loss
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "sliced"])
def test_gradient_has_dtype_and_layout_of_the_logits(
    layout: str, subject: Loss, dtype: torch.dtype
) -> None:
    x, target = make(subject, dtype)
    x = lay_out(x.detach(), layout).requires_grad_()
    subject.function(x, target, **how(subject)).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert x.grad.stride() == torch.empty_like(x.detach()).stride()
    assert_gradient(x.grad, exact_gradient(x, target, torch.tensor(1.0), subject))


OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dice": (dice_loss, {"target": (3, 4, 5), "weight": (4,)}),
    "dice-elements": (dice_loss, {"target": (3, 4, 5), "weight": (4,), "mode": "multilabel"}),
    "tversky": (tversky_loss, {"target": (3, 4, 5), "weight": (4,), "gamma": 0.75}),
    "dice-ce": (
        dice_cross_entropy_loss,
        {"target": (3, 4, 5), "weight": (4,), "class_weight": (4,), "label_smoothing": 0.1},
    ),
    "dice-focal": (
        dice_focal_loss,
        {"target": (3, 4, 5), "weight": (4,), "alpha": (4,), "mode": "multilabel", "gamma": 1.5},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_other_arguments(name: str) -> None:
    function, given = OTHERS[name]
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    shapes = {key: value for key, value in given.items() if isinstance(value, tuple)}
    options = {key: value for key, value in given.items() if key not in shapes}
    values = [
        (torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
        for shape in shapes.values()
    ]

    def call(x: Tensor, *sides: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(shapes, sides, strict=True))
        result: Tensor = function(x, named.pop("target"), **named, **options)
        return result

    assert torch.autograd.gradcheck(call, (x, *values))
    without = call(x, *(value.detach() for value in values))
    torch.testing.assert_close(call(x, *values), without, rtol=1e-12, atol=0)


@each_loss
def test_autocast_leaves_the_logits_as_they_are(subject: Loss) -> None:
    x, target = make(subject)
    plain = subject.function(x, target, **how(subject))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = subject.function(x, target, **how(subject))
        logits = nn.Conv2d(5, 5, 1)(x)
        half = subject.function(logits, target, **how(subject))
    assert torch.equal(loss, plain)
    logits.retain_grad()
    half.backward()
    assert logits.dtype == torch.bfloat16
    assert half.dtype == torch.float32
    assert logits.grad is not None
    assert_gradient(logits.grad, exact_gradient(logits, target, torch.tensor(1.0), subject))


def backward_op(subject: Loss, x: Tensor, schedule: str) -> str:
    """What finishes a gradient that is used once: forward begins it over a softmax."""
    begun = "softmax" in subject.name and schedule != "recompute" and x.element_size() >= 4
    return "softmax_regions_finish_" if begun else subject.backward_op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_loss
def test_schedules_make_no_difference(subject: Loss, dtype: torch.dtype) -> None:
    results = []
    for schedule in SCHEDULES:
        x, target = make(subject, dtype)
        with fusedloss.gradient_schedule(schedule), Calls() as calls:
            subject.function(x, target, **how(subject)).backward()
        assert calls.names == [subject.forward_op, backward_op(subject, x, schedule)]
        results.append(x.grad)
    # Forward's exponentials and backward's are those of two loops: a last digit may differ.
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


def takes(subject: Loss, kind: str) -> bool:
    """Whether the loss has squared sums, or targets that are not labels."""
    return not (
        (kind == "squared" and subject.name.startswith(("generalized", "tversky")))
        or (kind == "soft" and "focal" in subject.name)
    )


BEGUN = [
    (subject, kind)
    for subject in REGION_LOSSES
    for kind in ("labels", "squared", "soft")
    if "softmax" in subject.name and takes(subject, kind)
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 19, 40])
@pytest.mark.parametrize(("subject", "kind"), BEGUN, ids=[f"{x.name}-{kind}" for x, kind in BEGUN])
def test_begun_gradients(subject: Loss, kind: str, classes: int, layout: str) -> None:
    generator = torch.Generator().manual_seed(classes)
    shape = (3, classes, 7, 29)
    logits = 4 * torch.randn(shape, generator=generator)
    target = torch.randint(0, classes, (3, 7, 29), generator=generator)
    given: dict[str, Any] = {"squared": True} if kind == "squared" else {}
    if kind == "soft":
        target = torch.rand(shape, generator=generator).softmax(1)
    else:
        given["ignore_index"] = 0
        logits[:, :, 2, 3:9] = math.nan
        target[:, 2, 3:9] = 0
    x = lay_out(logits, layout).requires_grad_()
    with Calls() as calls:
        loss = subject.function(x, target, **given)
        (first,) = torch.autograd.grad(loss, x, torch.tensor(-1.5), retain_graph=True)
        (again,) = torch.autograd.grad(loss, x, torch.tensor(-1.5))
    finish = "softmax_regions_finish"
    assert calls.names == [subject.forward_op, finish, f"{finish}_"]
    assert torch.equal(first, again)
    exact = exact_gradient(x, target, torch.tensor(-1.5), subject, **given)
    # Sums over 40 classes round more than assert_gradient allows.
    eps = torch.finfo(first.dtype).eps
    atol = 32 * eps * float(exact.abs().max())
    torch.testing.assert_close(first.double(), exact, rtol=4 * eps, atol=atol)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "class_weight"])
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("batch", [False, True], ids=["samples", "batch"])
def test_a_begun_gradient_of_few_classes_holds_all(
    classes: int, weighted: bool, batch: bool
) -> None:
    """Nothing is saved by row. Equal logits and far ones; rows left out, whatever they hold."""
    subject = LOSSES["dice-ce", "softmax"]
    generator = torch.Generator().manual_seed(classes)
    x = 4 * torch.randn(2, classes, 5, 211, generator=generator)
    target = torch.randint(0, classes, (2, 5, 211), generator=generator)
    given: dict[str, Any] = {"batch": batch, "ignore_index": 0}
    if weighted:
        given["class_weight"] = torch.linspace(0.5, 2.0, classes)
    rows = x.movedim(1, -1)
    rows[0, 1] = 1.5
    rows[0, 2] = torch.tensor([60.0, -60.0, 1.0, -1.0])[:classes]
    rows[0, 3, :8] = math.nan
    rows[0, 4, :8] = math.inf
    target[0, 3:, :8] = 0
    x.requires_grad_()
    with saved_storages(x, target, *(v for v in given.values() if isinstance(v, Tensor))) as found:
        loss = subject.function(x, target, **given)
    loss.backward()
    assert x.grad is not None
    assert_gradient(x.grad, exact_gradient(x, target, torch.tensor(1.0), subject, **given))
    assert not x.grad.movedim(1, -1)[0, 3:, :8].any()
    begun, *small = sorted(found.values(), reverse=True)
    assert begun == x.numel() * 4
    assert sum(small) <= 8 * (2 * classes + 2) + 4 * classes


@each_loss
def test_without_grad_nothing_is_kept(subject: Loss) -> None:
    leaf, target = make(subject)
    for x, grad_mode in ((leaf.detach(), True), (leaf, False)):
        with saved_storages() as found, Calls() as calls, torch.set_grad_enabled(grad_mode):
            value = subject.function(x, target, **how(subject))
        assert not value.requires_grad
        assert found == {}
        assert calls.names == [subject.forward_op]


MEMORY_CASES = [
    *("dice-2x19x527", "dice-ce-2x19x527", "dice-soft-2x19x65", "dice-ce-soft-2x19x65"),
    *("dice-ce-class-weight-smoothing-mean", "dice-focal-gamma-2.5-0.1", "dice-channels-last"),
    *("dice-multilabel-2x19x527", "dice-ce-multilabel-2x19x527", "gdice-given-2x5x21"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MEMORY_CASES)
def test_memory_kept_for_backward(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    input, target, options = case.inputs(dtype)
    x = input.detach().requires_grad_()
    sides = [value for value in options.values() if isinstance(value, Tensor)]
    with saved_storages(x, target, *sides) as found:
        loss = case.loss.function(x, target, **options)
    sizes = sorted(found.values())
    number = 8 if dtype == torch.float64 else 4
    rows = x.numel() // x.size(1)
    if "softmax" in case.loss.name:
        three = "soft" in name or "smoothing" in name or "0.1" in name
        numbers = 3 if three else 2
        if dtype != torch.bfloat16:  # the begun gradient
            assert sizes.pop() == x.numel() * number
        assert sizes.pop() == numbers * rows * number
    # Slopes of each region, and class weights in the arithmetic's dtype.
    assert all(size <= max(16, 2 * x.size(0) * x.size(1) * number) for size in sizes)
    assert len(sizes) <= 4
    loss.backward()


def compiled_functions() -> dict[str, Callable[..., Tensor]]:
    """What is compiled: (logits [N, 5, 7], labels [N, 7], soft [N, 5, 7]) -> loss."""
    module = fusedloss.DiceCrossEntropyLoss(
        weight=torch.linspace(0.1, 0.9, 5), label_smoothing=0.1, ignore_index=-1
    )
    return {
        "dice": lambda x, label, soft: dice_loss(x, label, ignore_index=-1, reduction="none"),
        "tversky": lambda x, label, soft: tversky_loss(x, soft, gamma=0.75, log=False),
        "generalized": lambda x, label, soft: fusedloss.generalized_dice_loss(
            x, label.clamp(min=0), include_background=False, batch=True
        ),
        "multilabel": lambda x, label, soft: dice_loss(x, soft > 0.5, mode="multilabel"),
        "given": lambda x, label, soft: dice_loss(
            soft + 0 * x, label.clamp(min=0), from_logits=False
        ),
        "binary": lambda x, label, soft: dice_focal_loss(x[:, 0], label > 2, mode="binary"),
        "module": lambda x, label, soft: module(torch.tanh(x) * 3, label),
    }


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", compiled_functions())
def test_compiled_whole_equals_eager(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    function = compiled_functions()[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for samples in (3, 2, 6) if dynamic else (3,):
        generator = torch.Generator().manual_seed(samples)
        x = torch.randn(samples, 5, 7, generator=generator)
        label = torch.randint(-1, 5, (samples, 7), generator=generator)
        soft = torch.rand(samples, 5, 7, generator=generator)
        inputs = (x, label, soft)
        with fusedloss.gradient_schedule("recompute"):  # what a compiled call always does
            found = run(function, *inputs)
        for got, expected in zip(run(compiled, *inputs), found, strict=True):
            assert torch.equal(got, expected)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), function(*inputs))
        with fusedloss.backend("reference"):
            torch.testing.assert_close(compiled(*inputs), function(*inputs))


def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    function = compiled_functions()["module"]
    compiled = torch.compile(function, fullgraph=True)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 7, generator=generator)
    inputs = (x, torch.randint(-1, 5, (3, 7), generator=generator), torch.rand(3, 5, 7))
    for got, expected in zip(run(compiled, *inputs), run(function, *inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)


def test_compounds_are_the_sum_of_their_terms() -> None:
    for short in COMPOUNDS:
        x, target = make(LOSSES[short, "softmax"], torch.float64)
        joined = {"dice-ce": fusedloss.cross_entropy, "dice-focal": fusedloss.softmax_focal_loss}
        expected = 0.25 * dice_loss(x, target) + 4 * joined[short](x, target)
        other = "ce_weight" if short == "dice-ce" else "focal_weight"
        loss = LOSSES[short, "softmax"].function(x, target, dice_weight=0.25, **{other: 4})
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        (grad,) = torch.autograd.grad(loss, x)
        (right,) = torch.autograd.grad(expected, x)
        torch.testing.assert_close(grad, right, rtol=1e-10, atol=1e-15)
