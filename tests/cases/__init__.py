"""The one table of cases: every check of test_losses.py, test_autograd.py and test_cuda.py runs over its
rows. A new loss adds rows here, not test files; table.py says what a row holds.
"""

from __future__ import annotations

from . import (
    cross_entropy,
    element_regions,
    margin_softmax,
    mining,
    regions,
    sigmoid_focal,
    smooth_l1,
    softmax_focal,
)
from .cross_entropy import CROSS_ENTROPY
from .margin_softmax import ARCFACE, MARGIN_SOFTMAX
from .region_losses import REGION_LOSSES
from .sigmoid_focal import SIGMOID_FOCAL
from .smooth_l1 import SMOOTH_L1
from .softmax_focal import SOFTMAX_FOCAL
from .table import Case, Loss, lay_out, under_its_schedules

__all__ = [
    "ARCFACE",
    "BY_NAME",
    "CASES",
    "CROSS_ENTROPY",
    "LOSSES",
    "MARGIN_SOFTMAX",
    "REGION_LOSSES",
    "SIGMOID_FOCAL",
    "SMOOTH_L1",
    "SOFTMAX_FOCAL",
    "Case",
    "Loss",
    "lay_out",
    "under_its_schedules",
]

# Those with a loss of each element or row, from labels.
LOSSES = [SIGMOID_FOCAL, CROSS_ENTROPY, SOFTMAX_FOCAL, MARGIN_SOFTMAX]
CASES = [
    *sigmoid_focal.CASES,
    *smooth_l1.CASES,
    *cross_entropy.CASES,
    *softmax_focal.CASES,
    *margin_softmax.CASES,
    *regions.CASES,
    *element_regions.CASES,
    *mining.CASES,
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "names of cases must differ"
