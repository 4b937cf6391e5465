"""Whether a classifier is as sure as it is right (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Mean over the examples of |share that is right - mean confidence| of their bin.

    Args:
        confidence: ``[D]``, probability of the class that was answered, in [0, 1].
        right: ``[D]`` bool, whether that answer is right.
        bins: intervals of equal width that share [0, 1]; a confidence of 1 is in the last.

    Returns:
        a number in [0, 1]; 0 for no example.
    """
    place = (confidence * bins).long().clamp(max=bins - 1)
    excess = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    excess.index_add_(0, place, right.double() - confidence.double())
    return float(excess.abs().sum() / max(len(confidence), 1))
