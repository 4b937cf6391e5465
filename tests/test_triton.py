"""The Triton kernels on the CPU, under TRITON_INTERPRET=1: the whole table, and parity with the native
kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import fusedloss
import pytest
import torch
from cases import CASES, Case, under_its_schedules
from fusedloss import show_config
from test_losses import _check, _expected, _upstream
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, where NaN is wanted


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with fusedloss.backend("triton"):
        yield


def run(case: Case, dtype: torch.dtype, schedule: str) -> None:
    """Value and gradient against the float64 reference, by the tolerance rule."""
    input, target, options, exact, eager = _expected(case, dtype)
    x = input.detach().requires_grad_()
    with fusedloss.gradient_schedule(schedule):
        loss = case.loss.function(x, target, **options)
        (grad,) = torch.autograd.grad(loss, x, _upstream(exact[0].to(loss.dtype)))
    assert grad.dtype == dtype
    _check(case, loss.detach(), grad, exact, eager)


@pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES, on_cuda=True))
def test_table(case: Case, schedule: str) -> None:
    run(case, torch.float32, schedule)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("case", "schedule"), under_its_schedules(CASES[::9], on_cuda=True))
def test_table_in_other_dtypes(case: Case, schedule: str, dtype: torch.dtype) -> None:
    run(case, dtype, schedule)


def results(case: Case) -> tuple[Tensor, Tensor]:
    input, target, options = case.inputs(torch.float64)
    x = input.detach().requires_grad_()
    options = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    loss = case.loss.function(x, target, **options)
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), grad


@pytest.mark.parametrize("case", CASES[::25], ids=lambda case: case.name)
def test_native_kernels_agree(case: Case) -> None:
    ours = results(case)
    with fusedloss.backend("native"):
        native = results(case)
    for got, expected in zip(ours, native, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("shape", [(7, 4), (9, 4, 3), (2, 4, 50), (3, 4, 16)])
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
@pytest.mark.parametrize("batch", [False, True])
def test_samples_shared_by_programs(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], mode: str, batch: bool
) -> None:
    """Several samples a program, and several programs a sample: 16 rows a tile."""
    from fusedloss._triton import launch

    monkeypatch.setattr(launch, "INTERPRETED_TILE", 64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(4, (shape[0], *shape[2:]), generator=generator)
    if mode == "multilabel":
        target = torch.randint(2, shape, generator=generator)

    def results() -> tuple[Tensor, Tensor]:
        loss = fusedloss.dice_loss(x, target, mode=mode, batch=batch, reduction="none")
        return loss, torch.autograd.grad((loss * loss).sum(), x)[0]

    ours = results()
    with fusedloss.backend("native"):
        torch.testing.assert_close(ours, results(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cross_entropy", (5, 4, 61)),
        ("sigmoid_focal_loss", (700, 4)),
        ("dice_cross_entropy_loss", (5, 4, 61)),
        ("ohem_cross_entropy_loss", (5, 4, 61)),
    ],
)
def test_sums_of_many_programs(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...]
) -> None:
    """More than one program adds: they are added in parallel first."""
    from fusedloss._triton import calls, launch

    monkeypatch.setattr(launch, "INTERPRETED_TILE", 16)
    monkeypatch.setattr(calls, "FINISH_PARTIALS", 2)
    monkeypatch.setattr(calls, "ADD_STEPS", 1)
    added: list[tuple[int, int]] = []
    whole = calls.add_parts
    monkeypatch.setattr(
        calls, "add_parts", lambda x, n: added.append((x.size(1), n)) or whole(x, n)
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    sizes = shape[:-1] if name == "sigmoid_focal_loss" else (shape[0], *shape[2:])
    target = torch.randint(4, sizes, generator=generator)

    def results() -> tuple[Tensor, Tensor]:
        loss = getattr(fusedloss, name)(x, target)
        return loss, torch.autograd.grad(loss, x)[0]

    ours = results()
    assert any(parts > enough for parts, enough in added)
    with fusedloss.backend("native"):
        torch.testing.assert_close(ours, results(), rtol=1e-12, atol=1e-14)


def test_the_choice_is_shown_and_taken_back() -> None:
    assert "Triton kernels" in show_config()
    x, target = torch.randn(3, 4), torch.tensor([0, 9, 1])
    assert fusedloss.cross_entropy(x, target).isnan()  # as on a GPU
    with fusedloss.backend("native"), pytest.raises(IndexError):
        fusedloss.cross_entropy(x, target)
    with pytest.raises(RuntimeError, match="on the CPU alone"):
        fusedloss.cross_entropy(x.to("meta"), target.to("meta"))
