"""The region losses at their edges: ignored pixels, wrong labels, half images, nothing at all."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import fusedloss
import pytest
import torch
from cases import REGION_LOSSES, Loss
from fusedloss import dice_loss, generalized_dice_loss, jaccard_loss, reference, tversky_loss
from test_regions import each_backend, example, one_hot
from tolerances import check_close, check_gradient
from torch import Tensor

each_loss = pytest.mark.parametrize("loss", REGION_LOSSES, ids=lambda loss: loss.name)
SOFTMAX = [loss for loss in REGION_LOSSES if loss.name.endswith("softmax")]


def options_of(loss: Loss) -> dict[str, Any]:
    """What makes a loss of this engine."""
    return {} if loss in SOFTMAX else {"mode": "multilabel"}


def problem(loss: Loss, *shape: int) -> tuple[Tensor, Tensor]:
    """Logits and a target of the loss's kind."""
    x, label = example(*shape)
    return x, label if loss in SOFTMAX else one_hot(label, shape[1])


@each_backend
@each_loss
def test_ignored_pixels_change_nothing(loss: Loss, backend: str) -> None:
    x, target = problem(loss, 3, 5, 8, 4)
    drop = torch.rand(3, 1, 8, 4, generator=torch.Generator().manual_seed(4)) < 0.3
    target = torch.where(drop if target.dim() == x.dim() else drop[:, 0], 255, target)
    results = []
    for garbage in (0.0, math.nan, math.inf, -math.inf):
        leaf = torch.where(drop, garbage, x).float().requires_grad_()
        with fusedloss.backend(backend):
            value = loss.function(leaf, target, ignore_index=255, **options_of(loss))
            value.backward()
        results.append((value.detach(), leaf.grad))
    for value, grad in results:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])
        assert (grad[drop.expand_as(grad)] == 0).all()
        assert torch.isfinite(grad).all()
    # The same as if they were not there, where a sample keeps what it has.
    keep = ~drop[0, 0]
    alone = x[:1, :, keep]
    there = target[:1, keep] if target.dim() < x.dim() else target[:1, :, keep]
    with fusedloss.backend(backend):
        got = loss.function(x[:1], target[:1], ignore_index=255, **options_of(loss))
        expected = loss.function(alone, there, **options_of(loss))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", SOFTMAX, ids=lambda loss: loss.name)
@pytest.mark.parametrize("label", [-1, -2, 5, 1000, -100])
def test_out_of_range_label(label: int, loss: Loss) -> None:
    x, target = example(2, 5, 6)
    target[1, 3] = label
    name = loss.function.__name__
    for backend in ("native", "reference"):
        with (
            fusedloss.backend(backend),
            pytest.raises(
                IndexError, match=f"^{name}: target holds label {label}, but input has 5"
            ),
        ):
            loss.function(x, target)
        given = (
            {} if name in ("dice_cross_entropy_loss", "dice_focal_loss") else {"from_logits": False}
        )
        if given:
            with (
                fusedloss.backend(backend),
                pytest.raises(IndexError, match=f"^{name}: target holds label {label}"),
            ):
                loss.function(torch.softmax(x, 1), target, **given)
        assert torch.isfinite(loss.function(x, target, ignore_index=label))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_do_not_overflow(loss: Loss, dtype: torch.dtype) -> None:
    # 262,144 pixels of one class, beyond float16's 65,504 and what bfloat16 counts.
    x = torch.ones(1, 2, 512, 512, dtype=dtype, requires_grad=True)
    target = torch.ones(1, 512, 512, dtype=torch.uint8)
    if loss not in SOFTMAX:
        target = target.unsqueeze(1).expand(1, 2, 512, 512)
    value = loss.function(x, target, **options_of(loss))
    value.backward()
    assert value.dtype == torch.float32
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    wide = loss.reference(x.detach().double(), target, **options_of(loss))
    torch.testing.assert_close(value.double(), wide, rtol=1e-5, atol=0)


SHAPES_OF_NONE = [
    ({}, (3, 5)),
    ({"batch": True}, (5,)),
    ({"include_background": False}, (3, 4)),
    ({"include_background": False, "batch": True}, (4,)),
]


@each_backend
@pytest.mark.parametrize(("options", "shape"), SHAPES_OF_NONE)
def test_shapes_without_reduction(
    options: dict[str, Any], shape: tuple[int, ...], backend: str
) -> None:
    x, target = example(3, 5, 4, 2)
    for function in (dice_loss, jaccard_loss, tversky_loss, generalized_dice_loss):
        expected = shape
        if function is generalized_dice_loss:
            expected = (1,) if options.get("batch") else (3,)
        with fusedloss.backend(backend):
            each = function(x, target, reduction="none", **options)
            assert each.shape == expected
            torch.testing.assert_close(each.mean(), function(x, target, **options))
            torch.testing.assert_close(each.sum(), function(x, target, reduction="sum", **options))
    with fusedloss.backend(backend):
        binary = dice_loss(x[:, 0], target > 2, mode="binary", reduction="none")
    assert binary.shape == (3, 1)


@each_backend
@each_loss
def test_nothing_has_loss_0(loss: Loss, backend: str) -> None:
    for shape in ((0, 5), (0, 5, 7), (3, 5, 0)):
        x = torch.zeros(shape, requires_grad=True)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        target = target if loss in SOFTMAX else torch.zeros(shape)
        for smooth in (0, 1e-5, (0, 1e-6)):
            with fusedloss.backend(backend):
                value = loss.function(x, target, smooth=smooth, **options_of(loss))
            value.backward()
            assert value == 0


def test_skipped_classes_leave_the_mean() -> None:
    x, target = example(2, 19, 5)
    present = one_hot(target, 19).sum(2) > 0
    each = dice_loss(x, target, reduction="none")
    skipping = dice_loss(x, target, absent="skip")
    torch.testing.assert_close(skipping, each[present].mean(), rtol=1e-12, atol=0)
    none = dice_loss(x, target, absent="skip", reduction="none")
    assert (none[~present] == 0).all()
    torch.testing.assert_close(none[present], each[present])
    # Without any class at all: nothing is left.
    everywhere = torch.full_like(target, 7)
    leaf = x.clone().requires_grad_()
    value = dice_loss(leaf, everywhere, ignore_index=7, absent="skip", smooth=0)
    value.backward()
    assert value == 0
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


@each_loss
def test_ignored_pixels_on_the_emulator(loss: Loss, emulator: ModuleType) -> None:
    emulator.configure(count=False)
    x, target = problem(loss, 3, 5, 8, 4)
    drop = torch.rand(3, 1, 8, 4, generator=torch.Generator().manual_seed(4)) < 0.3
    target = torch.where(drop if target.dim() == x.dim() else drop[:, 0], 255, target)
    results = []
    for garbage in (0.0, math.nan, math.inf):
        spoiled = torch.where(drop, garbage, x).float()
        kernel = loss.emulated(emulator, spoiled, target, ignore_index=255, **options_of(loss))
        results.append(kernel.run("recompute"))
    for value, grad in results:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])
        assert (grad[drop.expand_as(grad)] == 0).all()


@pytest.mark.parametrize("loss", SOFTMAX, ids=lambda loss: loss.name)
@pytest.mark.parametrize("label", [-2, 5, 1000])
def test_out_of_range_label_on_the_emulator(label: int, loss: Loss, emulator: ModuleType) -> None:
    # Nothing waits for the device: the loss is NaN.
    emulator.configure(count=False)
    x, target = example(2, 5, 6)
    target[1, 3] = label
    value, _ = loss.emulated(emulator, x.float(), target).run("recompute")
    assert torch.isnan(value)


FAR = [
    ((2, 40), (2**31, 1)),
    ((2, 2, 20), (20, 2**31, 1)),
]


@pytest.mark.parametrize(("shape", "stride"), FAR)
@each_loss
def test_offsets_beyond_32_bits(
    loss: Loss, shape: tuple[int, ...], stride: tuple[int, ...], emulator: ModuleType
) -> None:
    """4 GiB of address space, of which two pages are touched."""
    store = torch.empty(2**31 + 64, dtype=torch.float16)
    x = store.as_strided(shape, stride)
    values, target = problem(loss, *shape)
    x.copy_(values)
    near = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = loss.function(near, target, **options_of(loss))
    (grad,) = torch.autograd.grad(expected, near)
    far = x.detach().requires_grad_()
    value = loss.function(far, target, **options_of(loss))
    (far_grad,) = torch.autograd.grad(value, far)
    check_close("loss", value.detach(), expected.detach().double(), expected.detach())
    check_close("gradient", far_grad, grad.double(), grad)
    emulator.configure(count=False, race_check=False)
    emulated = loss.emulated(emulator, x, target, **options_of(loss)).run("recompute")
    check_close("loss", emulated[0], expected.detach().double(), expected.detach())
    check_close("gradient", emulated[1], grad.double(), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss", "dice_cross_entropy_loss"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_whose_ignored_pixels_hold_anything(
    classes: int, name: str, dtype: torch.dtype
) -> None:
    """Of two to four classes a pixel stays in registers: loops of their own."""
    generator = torch.Generator().manual_seed(classes)
    x = (4 * torch.randn(3, classes, 37, 21, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (3, 37, 21), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    ignored = (labels == 255).unsqueeze(1)
    spoilt = x.clone()
    spoilt[ignored.expand_as(x)] = torch.tensor([math.nan, math.inf, -math.inf, 3e4]).to(dtype)[
        torch.randint(0, 4, (int(ignored.sum()) * classes,), generator=generator)
    ]
    exact = torch.where(ignored, 0, x).double().requires_grad_()
    eager = torch.where(ignored, 0, x).requires_grad_()
    leaf = spoilt.requires_grad_()
    for reduction in ("mean", "sum"):
        options = {"ignore_index": 255, "reduction": reduction}
        found = []
        for function, y in ((fusedloss, leaf), (reference, exact), (reference, eager)):
            loss = getattr(function, name)(y, labels, **options)
            found.append((loss.detach(), torch.autograd.grad(loss, y)[0]))
        (loss, grad), wide, same = found
        check_close("loss", loss, wide[0], same[0])
        check_gradient("gradient", grad, wide[1], same[1])
        assert not grad[ignored.expand_as(grad)].any()
