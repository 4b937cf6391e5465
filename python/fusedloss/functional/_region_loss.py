"""The region losses under any of their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backend, _checks, reference
from .._autograd import differentiates, evaluate
from .._region_autograd import Regions
from .._region_checks import check_region_options, region_input, region_target, region_vectors
from .._regions import (
    RegionCall,
    SoftmaxRegionArguments,
    region_call,
    region_options,
    with_channels,
)


def region_loss(function: str, input: object, target: object, given: dict[str, Any]) -> Tensor:
    """The loss called `function`; `given` are all of its options by name."""
    options = check_region_options(function, given)
    mode = options["mode"]
    x = region_input(function, input, mode)
    t = region_target(function, x, target, mode)
    region_vectors(function, x, options)
    x, t = with_channels(x, t, mode)
    call = region_call(x, t, region_options(function, options))
    if t.dim() < x.dim():
        _checks.debug_labels(function, t, x.size(1), call.arguments.ignore_index)
    sides = (options.get("weight"), options.get("class_weight"), options.get("alpha"))
    if differentiates(t, *sides) or not _backend.use_kernels(x):
        form: Tensor = getattr(reference, function)(x, t, **options)
        return form
    if torch.compiler.is_compiling():
        return _native(call)
    try:
        return _native(call)
    except IndexError as error:  # which knows the family's name only
        raise IndexError(str(error).replace("region_loss", function, 1)) from None


def _native(call: RegionCall) -> Tensor:
    return evaluate(Regions, *call, differentiates(call.input), _begins_gradient(call))


def _begins_gradient(call: RegionCall) -> bool:
    """Whether forward leaves its exponentials in the gradient's memory for backward to finish: on the
    CPU, where they cost more than the memory's way there and back. Half types would round them.
    """
    x = call.input
    return (
        isinstance(call.arguments, SoftmaxRegionArguments)
        and _backend.on_native_cpu(x)
        and x.dtype in (torch.float32, torch.float64)
        and differentiates(x)
        and _backend.gradient_in_forward(x)
        and not torch.compiler.is_compiling()
    )
