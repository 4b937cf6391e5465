"""The CUDA kernels of region losses on the emulator: what they move, that every layout and option is
right, and that no alignment, label or order of threads makes them wrong.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cuda_traffic
import pytest
import torch
from emulated_regions import emulated_regions
from fusedloss import reference
from tolerances import check_close, check_gradient
from torch import Tensor

TRAFFIC_LIMIT = 1.02


def test_traffic_and_launches(emulator: ModuleType) -> None:
    print(
        f"\n{'workload':<34} {'pass':<9} {'kernel':<24} {'launches':>8} {'bytes':>9} {'/ least':>8} "
        f"{'full':>6}"
    )
    for workload in cuda_traffic.REGION_WORKLOADS:
        for t in cuda_traffic.measure(emulator, workload):
            policy, full = t.kernels[0].removesuffix("_kernel"), t.full_sectors / t.sectors
            print(
                f"{workload.name:<34} {t.what:<9} {policy:<24} {t.launches:8} {t.moved:9} "
                f"{t.moved / t.least:8.4f} {full:6.3f}"
            )
            assert t.launches <= (3 if t.what == "forward" else 1)
            assert t.atomics == 0
            assert policy.startswith(workload.policy), workload.name
            assert t.moved <= TRAFFIC_LIMIT * t.least, f"{workload.name} {t.what}"


def _reference(x: Tensor, target: Tensor, function: str, o: dict[str, Any]) -> Any:
    leaf = x.detach().clone().requires_grad_()
    loss = getattr(reference, function)(leaf, target, **o)
    upstream = torch.linspace(0.5, 1.5, max(1, loss.numel())).view(loss.shape).to(loss.dtype)
    (grad,) = torch.autograd.grad((loss * upstream).sum(), leaf)
    return loss.detach(), grad, upstream


def _check(
    emulator: ModuleType,
    what: str,
    x: Tensor,
    target: Tensor,
    function: str = "dice_loss",
    **options: Any,
) -> None:
    """Against the reference in float64, with an incoming gradient of any size."""
    soft = target.is_floating_point()
    in_double = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    wide = target.double() if soft else target
    loss, grad, upstream = _reference(x.double(), wide, function, in_double)
    narrow = torch.float64 if x.dtype == torch.float64 else torch.float32
    eager = _reference(x.to(narrow), target.to(narrow) if soft else target, function, options)
    kernel = emulated_regions(emulator, x, target, function, **options)
    got, got_grad = kernel.run(grad_output=upstream.to(kernel.dtype))
    check_close(f"{what} loss", got, loss, eager[0])
    check_gradient(f"{what} gradient", got_grad, grad, eager[1].to(x.dtype))


torch.manual_seed(7)  # what follows is made once, whatever was imported before
SHAPES: dict[str, Tensor] = {
    "pixels, aligned": torch.randn(2, 5, 4, 16),
    "pixels, odd": torch.randn(3, 19, 5, 7),
    "several blocks": torch.randn(2, 3, 2100),
    "one class": torch.randn(2, 1, 40),
    "many classes": torch.randn(2, 150, 9),
    "rows": torch.randn(70, 6),
    "channels last": torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last),
    "transposed": torch.randn(9, 6, 11).transpose(0, 2),
    "samples innermost": torch.randn(6, 7, 5).permute(2, 0, 1),
    "sliced": torch.randn(3, 9, 40)[:, 1::2, 3:36],
    "expanded": torch.randn(1, 5, 13).expand(4, 5, 13),
    "3-D": torch.randn(1, 3, 4, 6, 5),
    "bf16": torch.randn(2, 5, 70).bfloat16(),
    "fp64": torch.randn(2, 5, 70).double(),
}
# Function, options; True stands for a tensor of the right size.
SOFTMAX: dict[str, tuple[str, dict[str, Any]]] = {
    "dice": ("dice_loss", {}),
    "dice, none, weighted": ("dice_loss", {"reduction": "none", "weight": True}),
    "dice, squared batch, none": (
        "dice_loss",
        {"squared": True, "batch": True, "reduction": "none"},
    ),
    "dice, soft": ("dice_loss", {"soft": True, "reduction": "sum"}),
    "dice, soft squared": ("dice_loss", {"soft": True, "squared": True, "batch": True}),
    "tversky": ("tversky_loss", {"alpha": 0.3, "beta": 0.7, "gamma": 1.3, "ignored": True}),
    "generalized": ("generalized_dice_loss", {"reduction": "none", "ignored": True}),
    "generalized batch": ("generalized_dice_loss", {"weighting": "simple", "batch": True}),
    "ce": ("dice_cross_entropy_loss", {"ignored": True, "ce_weight": 0.5}),
    "ce, smoothed, weighted": (
        "dice_cross_entropy_loss",
        {"class_weight": True, "label_smoothing": 0.2, "squared": True, "reduction": "sum"},
    ),
    "ce, soft": ("dice_cross_entropy_loss", {"soft": True, "label_smoothing": 0.1}),
    "focal": ("dice_focal_loss", {"alpha": True, "ignored": True, "batch": True}),
    "focal, smoothed": ("dice_focal_loss", {"gamma": 1.5, "label_smoothing": 0.1}),
}
ELEMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dice": ("dice_loss", {"mode": "multilabel"}),
    "dice, none, ignored": (
        "dice_loss",
        {"mode": "multilabel", "reduction": "none", "ignored": True, "squared": True},
    ),
    "jaccard, soft batch": ("jaccard_loss", {"mode": "multilabel", "soft": True, "batch": True}),
    "probabilities, labels": ("dice_loss", {"from_logits": False, "ignored": True}),
    "probabilities, dense": ("dice_loss", {"from_logits": False, "mode": "multilabel"}),
    "bce": ("dice_cross_entropy_loss", {"mode": "multilabel", "ignored": True}),
    "focal": ("dice_focal_loss", {"mode": "multilabel", "soft": True, "alpha": True}),
    "focal, smoothed": (
        "dice_focal_loss",
        {"mode": "multilabel", "label_smoothing": 0.1, "alpha": 0.25, "batch": True},
    ),
}


def _case(x: Tensor, given: tuple[str, dict[str, Any]]) -> tuple[Tensor, str, dict[str, Any]]:
    """Target, function and options for an input."""
    function, options = given[0], dict(given[1])
    classes = x.size(1)
    generator = torch.Generator().manual_seed(3)
    soft, ignored = options.pop("soft", False), options.pop("ignored", False)
    for name in ("weight", "class_weight", "alpha"):
        if options.get(name) is True:
            options[name] = torch.rand(classes, generator=generator) + 0.5
    elementwise = options.get("mode") == "multilabel"
    if soft:
        target = torch.rand(x.shape, generator=generator)
    elif elementwise:
        target = torch.randint(0, 2, x.shape, generator=generator)
    else:
        target = torch.randint(0, classes, (x.size(0), *x.shape[2:]), generator=generator)
    if ignored:
        target.view(-1)[1::4] = 255
        options["ignore_index"] = 255
    return target, function, options


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", SOFTMAX)
def test_softmax_layouts_and_options(emulator: ModuleType, shape: str, options: str) -> None:
    emulator.configure(count=False, race_check=True, seed=11)
    x = SHAPES[shape]
    target, function, given = _case(x, SOFTMAX[options])
    _check(emulator, f"{shape} {options}", x, target, function, **given)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", ELEMENTS)
def test_element_layouts_and_options(emulator: ModuleType, shape: str, options: str) -> None:
    emulator.configure(count=False, race_check=True, seed=12)
    x = SHAPES[shape]
    if not ELEMENTS[options][1].get("from_logits", True):
        x = x.sigmoid()
    target, function, given = _case(x, ELEMENTS[options])
    _check(emulator, f"{shape} {options}", x, target, function, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pixels", [64, 65, 1030])
def test_every_misalignment(emulator: ModuleType, dtype: torch.dtype, pixels: int) -> None:
    """Slides the logits through every alignment: the emulator reports any access beside the tensors
    and any race, and the gradient's own alignment differs from the logits' but at offset 0.
    """
    emulator.configure(count=False, race_check=True, seed=9)
    torch.manual_seed(pixels)
    store = torch.randn(2 * 3 * pixels + 17).to(dtype)
    labels = torch.randint(0, 3, (2, pixels))
    bits = (torch.rand(2 * 3 * pixels + 17) < 0.3).to(torch.uint8)
    for offset in range(17):
        span = slice(offset, offset + 2 * 3 * pixels)
        x, dense = store[span].view(2, 3, pixels), bits[span].view(2, 3, pixels)
        _check(emulator, f"{dtype} offset {offset}", x, labels, "dice_cross_entropy_loss")
        _check(emulator, f"{dtype} offset {offset}", x, dense, mode="multilabel")
        probabilities = x[:1].sigmoid()
        _check(emulator, f"{dtype} offset {offset}", probabilities, labels[:1], from_logits=False)


# Windows of classes, the last partly filled; slopes beyond shared memory; a sample for each block.
SIZES = {
    "two windows": (2, 500, 40),
    "windows and no shared slopes": (1, 5003, 3),
    "more samples than blocks": (2500, 2, 3),
    "many blocks of samples": (3, 4, 5000),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [False, True])
def test_sizes(emulator: ModuleType, size: str, batch: bool) -> None:
    emulator.configure(count=False, race_check=True, seed=4)
    torch.manual_seed(1)
    x = torch.randn(SIZES[size])
    labels = torch.randint(0, x.size(1), (x.size(0), x.size(2)))
    _check(emulator, size, x, labels, "dice_cross_entropy_loss", batch=batch)
    if x.size(1) < 5000:
        dense = torch.randint(0, 2, x.shape).bool()
        _check(emulator, size, x, dense, "dice_focal_loss", batch=batch, mode="multilabel")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_label_types(emulator: ModuleType, dtype: torch.dtype) -> None:
    emulator.configure(count=False, race_check=True, seed=2)
    x = torch.randn(2, 6, 1100)
    target = torch.randint(0, 6, (2, 1100)).to(dtype)
    target.view(-1)[::5] = 255
    _check(emulator, "softmax", x, target, "dice_cross_entropy_loss", ignore_index=255)
    _check(emulator, "plain", x.sigmoid(), target, from_logits=False, ignore_index=255)
    dense = torch.randint(0, 2, x.shape).to(dtype)
    _check(emulator, "dense", x, dense, "dice_cross_entropy_loss", mode="multilabel")


@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("dice_loss", {}),
        ("dice_cross_entropy_loss", {"label_smoothing": 0.1}),
        ("dice_focal_loss", {}),
        ("dice_loss", {"from_logits": False}),
        ("dice_loss", {"mode": "multilabel"}),
        ("dice_focal_loss", {"mode": "multilabel"}),
    ],
)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_ignored_logits_change_nothing(
    emulator: ModuleType, function: str, options: dict[str, Any], poison: float
) -> None:
    emulator.configure(count=False, race_check=True, seed=6)
    torch.manual_seed(5)
    x = torch.rand(2, 5, 1100) * 0.9
    target, _, _ = _case(x, (function, options))
    flat = target.view(-1)
    flat[torch.rand(flat.shape) < 0.3] = 255
    ignored = target == 255 if target.dim() == 3 else (target == 255).unsqueeze(1).expand_as(x)
    poisoned = torch.where(ignored, poison, x)
    results = [
        emulated_regions(emulator, given, target, function, ignore_index=255, **options).run()
        for given in (x, poisoned)
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][ignored] == 0).all()


@pytest.mark.parametrize("function", ["dice_loss", "dice_cross_entropy_loss"])
@pytest.mark.parametrize("label", [5, -1, 2**40])
@pytest.mark.parametrize("from_logits", [True, False])
def test_bad_labels_are_nan_in_their_sample(
    emulator: ModuleType, function: str, label: int, from_logits: bool
) -> None:
    """And are never used as an index."""
    emulator.configure(count=False, race_check=True, seed=6)
    x, target = torch.rand(2, 5, 70), torch.randint(0, 5, (2, 70))
    target[1, 3] = label
    if function == "dice_loss":
        options = {"reduction": "none", "from_logits": from_logits}
        loss, grad = emulated_regions(emulator, x, target, function, **options).run()
        assert loss[0].isfinite().all()
        assert grad[0].isfinite().all()
        assert loss[1].isnan().all()
    elif from_logits:
        loss, _ = emulated_regions(emulator, x, target, function).run()
        assert loss.isnan()


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_nan_logits_spread(emulator: ModuleType, mode: str) -> None:
    emulator.configure(count=False, race_check=True, seed=6)
    x = torch.randn(2, 3, 70)
    x[1, 2, 5] = torch.nan
    target, _, _ = _case(x, ("dice_loss", {"mode": mode}))
    loss, _ = emulated_regions(emulator, x, target, mode=mode, reduction="none").run()
    assert loss[0].isfinite().all()
    assert loss[1, 2].isnan()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("dice_cross_entropy_loss", {"label_smoothing": 0.1}),
        ("dice_focal_loss", {"mode": "multilabel", "batch": True}),
        ("generalized_dice_loss", {}),
        ("dice_loss", {"soft": True}),
    ],
)
def test_same_bits_in_any_order(
    emulator: ModuleType, function: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 4, 3000)
    target, _, given = _case(x, (function, options))
    results = []
    for seed in (0, 1, 2, 3):
        emulator.configure(count=False, race_check=False, seed=seed)
        results.append(emulated_regions(emulator, x, target, function, **given).run())
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("shape", [(2, 5, 70), (2, 5, 1100)])
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_gradient_in_place(emulator: ModuleType, shape: tuple[int, ...], mode: str) -> None:
    """No thread reads what another has written."""
    emulator.configure(count=False, race_check=True, seed=3)
    x = torch.randn(shape)
    target, _, _ = _case(x, ("dice_loss", {"mode": mode}))
    kernel = emulated_regions(emulator, x.clone(), target, "dice_cross_entropy_loss", mode=mode)
    _, scale, slopes = kernel.forward()
    apart = kernel.backward(torch.ones(()), scale, slopes)
    assert torch.equal(kernel.backward(torch.ones(()), scale, slopes, in_place=True), apart)


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_everything_ignored(emulator: ModuleType, mode: str) -> None:
    emulator.configure(count=False, race_check=True, seed=1)
    x = torch.full((2, 3, 20), torch.nan)
    target = torch.full((2, 3, 20) if mode == "multilabel" else (2, 20), 255)
    kernel = emulated_regions(
        emulator, x, target, "dice_cross_entropy_loss", mode=mode, ignore_index=255
    )
    loss, grad = kernel.run()
    assert loss == 0  # 1 - s / s, and a mean over nothing
    assert (grad == 0).all()


def test_half_volume_of_ones_is_finite(emulator: ModuleType) -> None:
    emulator.configure(count=False, race_check=False, seed=0)
    x = torch.ones(1, 1, 512, 512, dtype=torch.float16)
    loss, grad = emulated_regions(emulator, x, x, mode="multilabel", from_logits=False).run()
    assert loss.abs() < 1e-6
    assert grad.isfinite().all()
