"""Wrong tensors of hard example mining, as test_arguments.py for the sigmoid focal loss."""

from __future__ import annotations

from typing import Any

import fusedloss
import pytest
import torch
from test_arguments import refused_by
from test_mining import ELEMENT_LOSSES, OPTIONS, ROW_LOSSES
from torch import Tensor

each_loss = pytest.mark.parametrize("name", [*ROW_LOSSES, *ELEMENT_LOSSES])
each_row_loss = pytest.mark.parametrize("name", ROW_LOSSES)
each_element_loss = pytest.mark.parametrize("name", ELEMENT_LOSSES)


def target_of(name: str) -> Tensor:
    """Labels of three rows, or ones and zeros."""
    return torch.tensor([0, 4, 1]) if name in ROW_LOSSES else torch.zeros(3, 5)


def refused(name: str, error: type[Exception], message: str, *tensors: Any, **more: Any) -> None:
    """With all that the message names."""
    options = {**OPTIONS.get(name, {}), **more}
    refused_by(getattr(fusedloss, name), error, message, *tensors, **options)


@each_loss
def test_dtype_of_the_input(name: str) -> None:
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        message = f"input has dtype {str(dtype).removeprefix('torch.')}|float32"
        refused(name, TypeError, message, torch.zeros(3, 5).to(dtype), target_of(name))


@each_loss
def test_no_tensors(name: str) -> None:
    refused(name, TypeError, "input must be a tensor|list", [[0.0]], target_of(name))
    refused(name, TypeError, "target must be a tensor|NoneType", torch.zeros(3, 5), None)


@each_row_loss
def test_dtype_of_labels(name: str) -> None:
    for dtype in (torch.bool, torch.int8, torch.float32, torch.complex64):
        message = f"target has dtype {str(dtype).removeprefix('torch.')}|int64"
        refused(name, TypeError, message, torch.zeros(3, 5), target_of(name).to(dtype))


@each_element_loss
def test_dtype_of_elementwise_targets_and_masks(name: str) -> None:
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        given = f"has dtype {str(dtype).removeprefix('torch.')}|float32"
        other = torch.zeros(3, 5).to(dtype)
        refused(name, TypeError, f"target {given}", torch.zeros(3, 5), other)
        refused(name, TypeError, f"mask {given}", torch.zeros(3, 5), target_of(name), mask=other)


@each_loss
def test_devices(name: str) -> None:
    x, target = torch.zeros(3, 5), target_of(name)
    refused(name, ValueError, "target is on meta|input is on cpu", x, target.to("meta"))
    refused(name, ValueError, "target is on cpu|input is on meta", x.to("meta"), target)
    side = {"weight": torch.ones(5, device="meta")}
    if name in ELEMENT_LOSSES:
        side = {"mask": torch.ones(3, 5, device="meta")}
    refused(name, ValueError, f"{next(iter(side))} is on meta|input is on cpu", x, target, **side)


@each_row_loss
@pytest.mark.parametrize("label", [-1, -7, 5, 1000])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_labels_out_of_range(backend: str, label: int, name: str) -> None:
    with (
        fusedloss.backend(backend),
        pytest.raises(IndexError, match=f"^{name}: target holds label {label}, but input has 5"),
    ):
        getattr(fusedloss, name)(torch.zeros(3, 5), torch.tensor([0, label, 1]))
