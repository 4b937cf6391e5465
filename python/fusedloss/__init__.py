"""fusedloss: training losses as fused forward/backward kernels for PyTorch."""

from . import functional, reference
from ._backend import backend, debug, gradient_schedule
from ._config import show_config
from ._version import __version__
from .functional import cross_entropy, nll_loss, sigmoid_focal_loss, softmax_focal_loss
from .modules import (
    CrossEntropyLoss,
    LabelSmoothingCrossEntropyLoss,
    NLLLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)

__all__ = [
    "CrossEntropyLoss",
    "LabelSmoothingCrossEntropyLoss",
    "NLLLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "__version__",
    "backend",
    "cross_entropy",
    "debug",
    "functional",
    "gradient_schedule",
    "nll_loss",
    "reference",
    "show_config",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]
