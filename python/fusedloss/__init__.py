"""fusedloss: training losses as fused forward/backward kernels for PyTorch."""

from . import functional, reference
from ._backend import backend, debug, gradient_schedule
from ._config import show_config
from ._version import __version__
from .functional import (
    arcface_loss,
    cosface_loss,
    cross_entropy,
    linear_cross_entropy,
    linear_margin_softmax_loss,
    margin_softmax_loss,
    modified_softmax_loss,
    nll_loss,
    normface_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
    sphereface_loss,
)
from .modules import (
    ArcFaceLoss,
    CombinedMarginLoss,
    CosFaceLoss,
    CrossEntropyLoss,
    LabelSmoothingCrossEntropyLoss,
    ModifiedSoftmaxLoss,
    NLLLoss,
    NormFaceLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    SphereFaceLoss,
)

__all__ = [
    "ArcFaceLoss",
    "CombinedMarginLoss",
    "CosFaceLoss",
    "CrossEntropyLoss",
    "LabelSmoothingCrossEntropyLoss",
    "ModifiedSoftmaxLoss",
    "NLLLoss",
    "NormFaceLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "SphereFaceLoss",
    "__version__",
    "arcface_loss",
    "backend",
    "cosface_loss",
    "cross_entropy",
    "debug",
    "functional",
    "gradient_schedule",
    "linear_cross_entropy",
    "linear_margin_softmax_loss",
    "margin_softmax_loss",
    "modified_softmax_loss",
    "nll_loss",
    "normface_loss",
    "reference",
    "show_config",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "sphereface_loss",
]
