"""Shows that an installed fusedloss works with the torch and the Python beside it, in a minute, without
pytest: every public loss against its eager reference, one loss of each family under torch.compile.

    python tests/smoke.py            # status 1, and what is wrong, where anything is
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import fusedloss
import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]


def floats(*shape: int) -> Tensor:
    """Logits that require a gradient."""
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).mul_(2).requires_grad_()


def labels(classes: int, *shape: int) -> Tensor:
    """Class indices."""
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(7))


def cosines(*shape: int) -> Tensor:
    """Between -1 and 1, leaves too."""
    return floats(*shape).detach().tanh().mul_(0.95).requires_grad_()


def rows() -> Inputs:
    """Rows of 33 classes."""
    return floats(50, 33), labels(33, 50)


def angles() -> Inputs:
    """Rows of 33 cosines."""
    return cosines(50, 33), labels(33, 50)


def image() -> Inputs:
    """Two images of five classes."""
    return floats(2, 5, 9, 11), labels(5, 2, 9, 11)


def scores() -> Inputs:
    """A score an element, 0 or 1 wanted."""
    x = floats(4, 90)
    return x, (x.detach() > 1.5).float()


def features() -> Inputs:
    """Features, the weight of a linear layer, labels."""
    return floats(20, 16), floats(33, 16), labels(33, 20)


# Every public loss: how its inputs are made, and its options.
LOSSES: dict[str, tuple[Callable[[], Inputs], dict[str, Any]]] = {
    "sigmoid_focal_loss": (rows, {}),
    "softmax_focal_loss": (rows, {}),
    "cross_entropy": (rows, {"label_smoothing": 0.1}),
    "nll_loss": (rows, {}),
    "margin_softmax_loss": (angles, {"m1": 1.1, "m2": 0.2, "m3": 0.1}),
    "arcface_loss": (angles, {}),
    "cosface_loss": (angles, {}),
    "sphereface_loss": (angles, {}),
    "normface_loss": (angles, {}),
    "modified_softmax_loss": (angles, {}),
    "linear_margin_softmax_loss": (features, {"m2": 0.5}),
    "linear_cross_entropy": (features, {}),
    "dice_loss": (image, {}),
    "jaccard_loss": (image, {}),
    "tversky_loss": (image, {"alpha": 0.3, "beta": 0.7}),
    "generalized_dice_loss": (image, {}),
    "dice_cross_entropy_loss": (image, {}),
    "dice_focal_loss": (image, {}),
    "ohem_cross_entropy_loss": (image, {"min_kept": 20}),
    "topk_cross_entropy_loss": (image, {}),
    "balanced_bce_loss": (scores, {}),
    "hard_negative_mining_loss": (scores, {"dim": 1}),
    "smooth_l1_loss": (scores, {"beta": 0.5}),
    "l1_loss": (scores, {}),
}
COMPILED = [
    *("sigmoid_focal_loss", "cross_entropy", "arcface_loss", "linear_cross_entropy"),
    *("dice_loss", "ohem_cross_entropy_loss", "balanced_bce_loss"),
]


def step(loss: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    """The value and the gradients of all that require one."""
    leaves = [x for x in inputs if x.requires_grad]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def public_losses() -> set[str]:
    """The names of all losses that are functions."""
    functional = vars(fusedloss.functional)
    return {n for n in fusedloss.__all__ if n.islower() and callable(functional.get(n))}


def check_loss(name: str) -> None:
    """Kernels against the reference, each asked for by name."""
    make, options = LOSSES[name]
    function = getattr(fusedloss, name)
    results = []
    for backend in ("native", "reference"):
        with fusedloss.backend(backend):
            results.append(step(lambda *inputs: function(*inputs, **options), make()))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-6)
        assert float(ours.abs().sum()) > 0, "all zero"


def check_compiled(name: str) -> None:
    """One graph, the same results."""
    make, options = LOSSES[name]
    function = getattr(fusedloss, name)

    def loss(*inputs: Tensor) -> Tensor:
        return function(*inputs, **options) * 2

    compiled = torch.compile(loss, fullgraph=True)
    for ours, expected in zip(step(compiled, make()), step(loss, make()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-6)


def main() -> int:
    """All checks; the exit status."""
    print(f"Python {sys.version.split()[0]}\n{fusedloss.show_config()}\n")
    failed = []
    if public_losses() != set(LOSSES):
        print(f"not the public losses: {sorted(public_losses() ^ set(LOSSES))}")
        failed.append("the list of losses")
    for kind, names, check in (
        ("loss", LOSSES, check_loss),
        ("compiled", COMPILED, check_compiled),
    ):
        for name in names:
            try:
                check(name)
                print(f"{kind} {name}: right")
            except Exception:
                traceback.print_exc()
                failed.append(f"{kind} {name}")
    print(f"FAILED: {', '.join(failed)}" if failed else "all right")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
