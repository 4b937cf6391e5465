"""The losses as modules: the options are given once, the call takes logits and targets."""

from .cross_entropy import CrossEntropyLoss, LabelSmoothingCrossEntropyLoss, NLLLoss
from .focal import SigmoidFocalLoss, SoftmaxFocalLoss
from .margin_softmax import (
    ArcFaceLoss,
    CombinedMarginLoss,
    CosFaceLoss,
    ModifiedSoftmaxLoss,
    NormFaceLoss,
    SphereFaceLoss,
)
from .mining import (
    BalancedBCELoss,
    HardNegativeMiningLoss,
    OHEMCrossEntropyLoss,
    TopKCrossEntropyLoss,
)
from .regions import (
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    DiceLoss,
    GeneralizedDiceLoss,
    JaccardLoss,
    TverskyLoss,
)
from .smooth_l1 import L1Loss, SmoothL1Loss

__all__ = [
    "ArcFaceLoss",
    "BalancedBCELoss",
    "CombinedMarginLoss",
    "CosFaceLoss",
    "CrossEntropyLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "DiceLoss",
    "GeneralizedDiceLoss",
    "HardNegativeMiningLoss",
    "JaccardLoss",
    "L1Loss",
    "LabelSmoothingCrossEntropyLoss",
    "ModifiedSoftmaxLoss",
    "NLLLoss",
    "NormFaceLoss",
    "OHEMCrossEntropyLoss",
    "SigmoidFocalLoss",
    "SmoothL1Loss",
    "SoftmaxFocalLoss",
    "SphereFaceLoss",
    "TopKCrossEntropyLoss",
    "TverskyLoss",
]
