"""The native library: loading it, its operators, and what they return for fake tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# In the order of the kernels' enum Reduction.
REDUCTION_NAMES = ("none", "sum", "mean")
REDUCTIONS = {name: number for number, name in enumerate(REDUCTION_NAMES)}

_library = next(iter(sorted(Path(__file__).parent.glob("_C*.so"))), None)
if _library is not None:
    try:
        torch.ops.load_library(str(_library))
    except OSError as error:
        raise ImportError(
            f"fusedloss: {_library.name} does not load with torch {torch.__version__}: {error}. A "
            "library with CUDA kernels needs a CUDA build of torch: install fusedloss again with "
            "`pip install --no-build-isolation`, or with FUSEDLOSS_CUDA=0."
        ) from error

ops: Any = torch.ops.fusedloss

# Read once: torch.compile must not meet this call, and a loss on a GPU asks for it every time.
_facts: dict[str, Any] = json.loads(ops.build_facts()) if _library is not None else {}


def library_path() -> Path | None:
    """The shared library in use, or None where it was not built."""
    return _library


def has_cuda_kernels() -> bool:
    """Whether the library holds CUDA kernels (not whether there is a GPU)."""
    return bool(_facts.get("cuda"))


def build_facts() -> dict[str, Any]:
    """How the native library was built and which CPU level it runs at; empty without it."""
    return dict(_facts)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results: float32 for half logits, else the logits' own."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def class_dim(input: Tensor) -> int:
    """The dimension that numbers the classes in ``[C]``, ``[N, C]`` and ``[N, C, d1, ...]``."""
    return 0 if input.dim() == 1 else 1


def _fake_pointwise_fwd(input: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, with_grad = given[-2:]
    dtype = accumulator_dtype(input.dtype)
    loss = torch.empty_like(input, dtype=dtype)
    if reduction != REDUCTIONS["none"]:
        loss = input.new_empty((), dtype=dtype)
    grad = torch.empty_like(input) if with_grad else input.new_empty(0)
    return loss, input.new_empty((), dtype=dtype), grad


def _fake_pointwise_bwd(grad_output: Tensor, scale: Tensor, input: Tensor, *_: object) -> Tensor:
    return torch.empty_like(input)


def as_divisor(normalizer: float | Tensor | None, input: Tensor) -> float | Tensor | None:
    """A mean's divisor as the operators take it: a number, or one number where the input lies."""
    if not isinstance(normalizer, Tensor):
        return normalizer
    dtype = accumulator_dtype(input.dtype)
    return normalizer.reshape(()).to(device=input.device, dtype=dtype)


def as_class_weight(weight: Tensor | None, input: Tensor) -> Tensor | None:
    """Class weights as the operators take them: contiguous, in the arithmetic's dtype."""
    if weight is None:
        return None
    return weight.to(accumulator_dtype(input.dtype)).contiguous()


def _row_outputs(
    input: Tensor, saved: int, reduction: int, with_saved: bool, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a forward operator of the row-softmax engine returns, unfilled."""
    dtype = accumulator_dtype(input.dtype)
    dim = class_dim(input)
    rows = [*input.shape[:dim], *input.shape[dim + 1 :]]
    loss = input.new_empty(rows if reduction == REDUCTIONS["none"] else (), dtype=dtype)
    return (
        loss,
        input.new_empty(2, dtype=dtype),
        input.new_empty([saved, *rows] if with_saved else [0], dtype=dtype),
        torch.empty_like(input) if with_grad else input.new_empty(0),
    )


def _fake_cross_entropy_fwd(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    smooth_others: bool,
    z_loss: float,
    ignore_index: int,
    reduction: int,
    with_saved: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weighted = target.dim() == input.dim() or (weight is not None and label_smoothing > 0)
    return _row_outputs(input, 3 if weighted else 2, reduction, with_saved, with_grad)


def _fake_row_bwd(
    grad_output: Tensor, scale: Tensor, saved: Tensor, input: Tensor, *_: object
) -> Tensor:
    return torch.empty_like(input)


def _fake_row_bwd_(*_: object) -> None:
    return None


def _fake_cross_entropy_fwd_(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    smooth_others: bool,
    z_loss: float,
    ignore_index: int,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    return _row_outputs(input, 0, reduction, False, False)[:2]


def _fake_softmax_focal_fwd(
    input: Tensor,
    target: Tensor,
    alpha: Tensor | None,
    normalizer: Tensor | None,
    alpha_value: float,
    gamma: float,
    label_smoothing: float,
    normalizer_value: float,
    ignore_index: int,
    reduction: int,
    with_saved: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = 3 if label_smoothing > 0 else 2
    return _row_outputs(input, saved, reduction, with_saved, with_grad)


def _fake_margin_softmax_fwd(
    input: Tensor,
    target: Tensor,
    m1: Tensor | None,
    m2: Tensor | None,
    m3: Tensor | None,
    logit_scale: float,
    m1_value: float,
    m2_value: float,
    m3_value: float,
    easy: bool,
    linear: bool,
    straight_through: bool,
    label_smoothing: float,
    ceiling: float,
    ignore_index: int,
    reduction: int,
    with_saved: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _row_outputs(input, 3, reduction, with_saved, with_grad)


def _fake_margin_softmax_fwd_(
    input: Tensor,
    target: Tensor,
    m1: Tensor | None,
    m2: Tensor | None,
    m3: Tensor | None,
    logit_scale: float,
    m1_value: float,
    m2_value: float,
    m3_value: float,
    easy: bool,
    linear: bool,
    straight_through: bool,
    label_smoothing: float,
    ceiling: float,
    ignore_index: int,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    return _row_outputs(input, 0, reduction, False, False)[:2]


def _fake_scale_gradient(grad: Tensor, grad_output: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(grad)


def _fake_scale_gradient_(grad: Tensor, grad_output: Tensor, scale: Tensor) -> None:
    return None


if _library is not None:
    for _name, _fake in (
        ("sigmoid_focal_fwd", _fake_pointwise_fwd),
        ("sigmoid_focal_bwd", _fake_pointwise_bwd),
        ("smooth_l1_fwd", _fake_pointwise_fwd),
        ("smooth_l1_bwd", _fake_pointwise_bwd),
        ("cross_entropy_fwd", _fake_cross_entropy_fwd),
        ("cross_entropy_bwd", _fake_row_bwd),
        ("cross_entropy_fwd_", _fake_cross_entropy_fwd_),
        ("cross_entropy_bwd_", _fake_row_bwd_),
        ("softmax_focal_fwd", _fake_softmax_focal_fwd),
        ("softmax_focal_bwd", _fake_row_bwd),
        ("margin_softmax_fwd", _fake_margin_softmax_fwd),
        ("margin_softmax_fwd_", _fake_margin_softmax_fwd_),
        ("margin_softmax_bwd", _fake_row_bwd),
        ("margin_softmax_bwd_", _fake_row_bwd_),
        ("scale_gradient", _fake_scale_gradient),
        ("scale_gradient_", _fake_scale_gradient_),
    ):
        torch.library.register_fake(f"fusedloss::{_name}")(_fake)
