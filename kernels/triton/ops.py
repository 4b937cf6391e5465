"""The operators of fusedloss as launches of Triton kernels: the same arguments and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .mining_ops import (
    mined_binary_cross_entropy_bwd,
    mined_binary_cross_entropy_fwd,
    mined_cross_entropy_bwd,
    mined_cross_entropy_bwd_,
    mined_cross_entropy_fwd,
)
from .pointwise_ops import (
    scale_gradient,
    scale_gradient_,
    sigmoid_focal_bwd,
    sigmoid_focal_fwd,
)
from .region_ops import (
    element_regions_bwd,
    element_regions_fwd,
    softmax_regions_bwd,
    softmax_regions_fwd,
)
from .row_ops import (
    cross_entropy_bwd,
    cross_entropy_bwd_,
    cross_entropy_fwd,
    cross_entropy_fwd_,
    margin_softmax_bwd,
    margin_softmax_bwd_,
    margin_softmax_fwd,
    margin_softmax_fwd_,
    softmax_focal_bwd,
    softmax_focal_fwd,
)

OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        cross_entropy_fwd,
        cross_entropy_fwd_,
        cross_entropy_bwd,
        cross_entropy_bwd_,
        softmax_focal_fwd,
        softmax_focal_bwd,
        margin_softmax_fwd,
        margin_softmax_fwd_,
        margin_softmax_bwd,
        margin_softmax_bwd_,
        sigmoid_focal_fwd,
        sigmoid_focal_bwd,
        scale_gradient,
        scale_gradient_,
        softmax_regions_fwd,
        softmax_regions_bwd,
        element_regions_fwd,
        element_regions_bwd,
        mined_cross_entropy_fwd,
        mined_cross_entropy_bwd,
        mined_cross_entropy_bwd_,
        mined_binary_cross_entropy_fwd,
        mined_binary_cross_entropy_bwd,
    )
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
