"""The losses in eager PyTorch: written for clarity, differentiable to any order.

They define what the kernels must return, serve devices that have no kernels, and compute second
derivatives and gradients of arguments other than the logits. Half logits are computed in float32.
"""

from .cross_entropy import cross_entropy, nll_loss
from .linear import linear_cross_entropy, linear_margin_softmax_loss
from .margin_softmax import margin_softmax_loss
from .mining import (
    balanced_bce_loss,
    hard_negative_mining_loss,
    mined_binary_cross_entropy,
    mined_cross_entropy,
    ohem_cross_entropy_loss,
    topk_cross_entropy_loss,
)
from .regions import (
    dice_cross_entropy_loss,
    dice_focal_loss,
    dice_loss,
    generalized_dice_loss,
    jaccard_loss,
    region_loss,
    tversky_loss,
)
from .sigmoid_focal import sigmoid_focal_loss
from .smooth_l1 import smooth_l1_loss
from .softmax_focal import softmax_focal_loss

__all__ = [
    "balanced_bce_loss",
    "cross_entropy",
    "dice_cross_entropy_loss",
    "dice_focal_loss",
    "dice_loss",
    "generalized_dice_loss",
    "hard_negative_mining_loss",
    "jaccard_loss",
    "linear_cross_entropy",
    "linear_margin_softmax_loss",
    "margin_softmax_loss",
    "mined_binary_cross_entropy",
    "mined_cross_entropy",
    "nll_loss",
    "ohem_cross_entropy_loss",
    "region_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "softmax_focal_loss",
    "topk_cross_entropy_loss",
    "tversky_loss",
]
