"""The losses as functions."""

from .cross_entropy import cross_entropy, nll_loss
from .linear import linear_cross_entropy, linear_margin_softmax_loss
from .margin_softmax import (
    arcface_loss,
    cosface_loss,
    margin_softmax_loss,
    modified_softmax_loss,
    normface_loss,
    sphereface_loss,
)
from .mining import (
    balanced_bce_loss,
    hard_negative_mining_loss,
    ohem_cross_entropy_loss,
    topk_cross_entropy_loss,
)
from .region_compounds import dice_cross_entropy_loss, dice_focal_loss
from .regions import dice_loss, generalized_dice_loss, jaccard_loss, tversky_loss
from .sigmoid_focal import sigmoid_focal_loss
from .smooth_l1 import l1_loss, smooth_l1_loss
from .softmax_focal import softmax_focal_loss

__all__ = [
    "arcface_loss",
    "balanced_bce_loss",
    "cosface_loss",
    "cross_entropy",
    "dice_cross_entropy_loss",
    "dice_focal_loss",
    "dice_loss",
    "generalized_dice_loss",
    "hard_negative_mining_loss",
    "jaccard_loss",
    "l1_loss",
    "linear_cross_entropy",
    "linear_margin_softmax_loss",
    "margin_softmax_loss",
    "modified_softmax_loss",
    "nll_loss",
    "normface_loss",
    "ohem_cross_entropy_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "softmax_focal_loss",
    "sphereface_loss",
    "topk_cross_entropy_loss",
    "tversky_loss",
]
