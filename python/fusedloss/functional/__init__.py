"""The losses as functions."""

from .cross_entropy import cross_entropy, nll_loss
from .sigmoid_focal import sigmoid_focal_loss
from .softmax_focal import softmax_focal_loss

__all__ = ["cross_entropy", "nll_loss", "sigmoid_focal_loss", "softmax_focal_loss"]
