"""The operators of fusedloss as launches of Triton kernels: the same arguments and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import mining_ops, pointwise_ops, region_ops, row_ops

OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for family in (row_ops, pointwise_ops, region_ops, mining_ops)
    for function in family.OPERATORS
}


def serve(device_types: tuple[str, ...]) -> torch.library.Library:
    """Has fusedloss's operators run these kernels for tensors of these devices, until the library that is
    returned is destroyed.
    """
    library = torch.library.Library("fusedloss", "IMPL")
    for name, function in OPERATORS.items():
        for device_type in device_types:
            library.impl(name, function, device_type.upper(), allow_override=True)
    return library
