"""The losses over a softmax and the region losses as modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import fusedloss
import pytest
import torch
from cases import CROSS_ENTROPY
from test_backward import make
from torch import Tensor, nn

VECTOR = torch.linspace(0.1, 0.9, 9)
# (module, the function, its options) of the losses over a softmax.
CLASS_MODULES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "cross entropy": (fusedloss.CrossEntropyLoss, fusedloss.cross_entropy, {}),
    "cross entropy, options": (
        lambda: fusedloss.CrossEntropyLoss(
            VECTOR.clone(), ignore_index=3, label_smoothing=0.2, smoothing="others", z_loss=0.1
        ),
        fusedloss.cross_entropy,
        {
            **{"weight": VECTOR, "ignore_index": 3, "label_smoothing": 0.2},
            **{"smoothing": "others", "z_loss": 0.1},
        },
    ),
    "in place": (
        lambda: fusedloss.CrossEntropyLoss(reduction="sum", inplace_backward=True),
        fusedloss.cross_entropy,
        {"reduction": "sum"},
    ),
    "label smoothing": (
        fusedloss.LabelSmoothingCrossEntropyLoss,
        fusedloss.cross_entropy,
        {"label_smoothing": 0.1},
    ),
    "label smoothing, options": (
        lambda: fusedloss.LabelSmoothingCrossEntropyLoss(
            0.3, smoothing="others", weight=VECTOR.clone()
        ),
        fusedloss.cross_entropy,
        {"label_smoothing": 0.3, "smoothing": "others", "weight": VECTOR},
    ),
    "nll": (
        lambda: fusedloss.NLLLoss(VECTOR.clone(), reduction="none"),
        fusedloss.nll_loss,
        {"weight": VECTOR, "reduction": "none"},
    ),
    "softmax focal": (fusedloss.SoftmaxFocalLoss, fusedloss.softmax_focal_loss, {}),
    "softmax focal, options": (
        lambda: fusedloss.SoftmaxFocalLoss(
            VECTOR.clone(), 0.5, ignore_index=3, label_smoothing=0.1
        ),
        fusedloss.softmax_focal_loss,
        {"alpha": VECTOR, "gamma": 0.5, "ignore_index": 3, "label_smoothing": 0.1},
    ),
    "dice": (fusedloss.DiceLoss, fusedloss.dice_loss, {}),
    "dice, options": (
        lambda: fusedloss.DiceLoss(
            weight=VECTOR.clone(), squared=True, log=True, smooth=(0.5, 1.0)
        ),
        fusedloss.dice_loss,
        {"weight": VECTOR, "squared": True, "log": True, "smooth": (0.5, 1.0)},
    ),
    "jaccard": (
        lambda: fusedloss.JaccardLoss(batch=True, reduction="none"),
        fusedloss.jaccard_loss,
        {"batch": True, "reduction": "none"},
    ),
    "tversky": (
        lambda: fusedloss.TverskyLoss(alpha=0.3, beta=0.7, gamma=0.75),
        fusedloss.tversky_loss,
        {"alpha": 0.3, "beta": 0.7, "gamma": 0.75},
    ),
    "generalized dice": (
        lambda: fusedloss.GeneralizedDiceLoss(weighting="simple", include_background=False),
        fusedloss.generalized_dice_loss,
        {"weighting": "simple", "include_background": False},
    ),
    "dice and cross entropy": (
        lambda: fusedloss.DiceCrossEntropyLoss(
            ce_weight=0.5, weight=VECTOR.clone(), label_smoothing=0.1, ignore_index=3
        ),
        fusedloss.dice_cross_entropy_loss,
        {"ce_weight": 0.5, "weight": VECTOR, "label_smoothing": 0.1, "ignore_index": 3},
    ),
    "dice and focal": (
        lambda: fusedloss.DiceFocalLoss(alpha=VECTOR.clone(), gamma=1.0, absent="skip"),
        fusedloss.dice_focal_loss,
        {"alpha": VECTOR, "gamma": 1.0, "absent": "skip"},
    ),
}


@pytest.mark.parametrize("name", CLASS_MODULES)
def test_class_modules_equal_functions_also_after_copies(name: str) -> None:
    make_module, function, options = CLASS_MODULES[name]
    module = make_module()
    x, target = make(CROSS_ENTROPY)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    with fusedloss.gradient_schedule("recompute"):  # as the in-place backward does
        expected = function(x, target, **options)
        (expected_grad,) = torch.autograd.grad(expected.sum(), x)
        for each in (
            module,
            copy.deepcopy(module),
            pickle.loads(pickle.dumps(module)),
            torch.load(saved, weights_only=False),
        ):
            leaf = x.detach().clone().requires_grad_()
            loss = each(leaf * 1, target)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            assert torch.equal(loss, expected)
            assert torch.equal(grad, expected_grad)
            assert repr(each) == repr(module)
    for key, value in options.items():
        assert f"{key}=tensor[9]" in repr(module) or f"{key}={value!r}" in repr(module)
    vectors = [key for key, value in options.items() if isinstance(value, Tensor)]
    assert list(module.state_dict()) == vectors
    assert list(module.parameters()) == []
    if vectors:
        other = make_module()
        getattr(other, vectors[0]).zero_()
        other.load_state_dict(module.state_dict())
        assert torch.equal(getattr(other, vectors[0]), VECTOR)
        assert getattr(copy.deepcopy(module).double(), vectors[0]).dtype == torch.float64
