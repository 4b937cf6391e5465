"""fusedloss: training losses as fused forward/backward kernels for PyTorch."""

from . import functional, reference
from ._backend import backend, debug, gradient_schedule
from ._config import show_config
from ._version import __version__
from .functional import sigmoid_focal_loss
from .modules import SigmoidFocalLoss

__all__ = [
    "SigmoidFocalLoss",
    "__version__",
    "backend",
    "debug",
    "functional",
    "gradient_schedule",
    "reference",
    "show_config",
    "sigmoid_focal_loss",
]
