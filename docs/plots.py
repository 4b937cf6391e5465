"""Draws every loss and its gradient against a logit, through the public functions.

python docs/plots.py [folder]      # default: docs/generated
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fusedloss
import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "fusedloss"  # the same file in every run
import matplotlib.pyplot as plt  # noqa: E402

Loss = Callable[[Tensor], Tensor]
"""From the swept number [N] to the losses [N]."""

SAMPLES = 401


def curve(loss: Loss, at: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and their derivatives by the swept number."""
    x = at.clone().requires_grad_()
    losses = loss(x)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), gradient


def draw(path: Path, swept: str, at: Tensor, losses: Sequence[tuple[str, Loss]]) -> None:
    """Losses on the left, gradients on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
    for name, loss in losses:
        for axis, values in zip(axes, curve(loss, at), strict=True):
            axis.plot(at, values, label=name)
    for axis, title in zip(axes, ("loss", "gradient"), strict=True):
        axis.set_title(title)
        axis.grid(alpha=0.3)
    figure.supxlabel(swept, fontsize="medium")
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def sweep(low: float, high: float) -> Tensor:
    """Numbers to draw a loss at."""
    return torch.linspace(low, high, SAMPLES, dtype=torch.float64)


def _row(x: Tensor, classes: int) -> Tensor:
    """Logits [N, classes] of which the first is swept and the others are 0."""
    return torch.cat([x[:, None], x.new_zeros(len(x), classes - 1)], 1)


def _first(x: Tensor) -> Tensor:
    """The label of that row: its first class."""
    return torch.zeros(len(x), dtype=torch.int64)


def _sigmoid_focal(gamma: float, alpha: float | None) -> Loss:
    return lambda x: fusedloss.sigmoid_focal_loss(
        x, torch.ones_like(x), alpha=alpha, gamma=gamma, reduction="none"
    )


def _softmax_focal(gamma: float) -> Loss:
    return lambda x: fusedloss.softmax_focal_loss(
        _row(x, 10), _first(x), gamma=gamma, reduction="none"
    )


def _cross_entropy(**options: float) -> Loss:
    return lambda x: fusedloss.cross_entropy(_row(x, 10), _first(x), reduction="none", **options)


def _margin(**margins: float) -> Loss:
    return lambda x: fusedloss.margin_softmax_loss(
        _row(x, 1000), _first(x), scale=64.0, reduction="none", **margins
    )


def _smooth_l1(beta: float) -> Loss:
    return lambda x: fusedloss.smooth_l1_loss(x, torch.zeros_like(x), beta=beta, reduction="none")


REGION = 64


def _region(loss: Callable[..., Tensor], **options: float) -> Loss:
    """Of a region of which a quarter is true: its true pixels have the swept logit, the others -2."""

    def losses(x: Tensor) -> Tensor:
        true = x[:, None].expand(-1, REGION // 4)
        logits = torch.cat([true, x.new_full((len(x), REGION - REGION // 4), -2.0)], 1)
        target = torch.zeros_like(logits)
        target[:, : REGION // 4] = 1.0
        return loss(logits, target, mode="binary", reduction="none", **options).reshape(-1)

    return losses


def draw_all(folder: Path) -> None:
    """Every plot of the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    label, row = "logit of a positive", "logit of the label, nine others at 0"
    draw(
        folder / "sigmoid_focal.svg",
        label,
        sweep(-6, 6),
        [(f"gamma {g:g}", _sigmoid_focal(g, None)) for g in (0.0, 0.5, 1.0, 2.0)]
        + [("gamma 2, alpha 0.25", _sigmoid_focal(2.0, 0.25))],
    )
    draw(
        folder / "softmax_focal.svg",
        row,
        sweep(-4, 10),
        [(f"gamma {g:g}", _softmax_focal(g)) for g in (0.0, 0.5, 1.0, 2.0)],
    )
    draw(
        folder / "boxes.svg",
        "difference of prediction and target",
        sweep(-2, 2),
        [("L1, beta 0" if not b else f"beta {b:g}", _smooth_l1(b)) for b in (0.0, 0.11, 0.5, 1.0)],
    )
    draw(
        folder / "cross_entropy.svg",
        row,
        sweep(-4, 10),
        [
            ("plain", _cross_entropy()),
            ("label smoothing 0.1", _cross_entropy(label_smoothing=0.1)),
            ("z-loss 0.01", _cross_entropy(z_loss=0.01)),
        ],
    )
    draw(
        folder / "margins.svg",
        "cosine of the label, 999 others at 0",
        sweep(-0.98, 0.98),
        [
            ("normface, no margin", _margin()),
            ("cosface, m3 = 0.35", _margin(m3=0.35)),
            ("arcface, m2 = 0.5", _margin(m2=0.5)),
            ("sphereface, m1 = 1.35", _margin(m1=1.35)),
        ],
    )
    draw(
        folder / "regions.svg",
        "logit of the true pixels, a quarter of all; the others at -2",
        sweep(-6, 6),
        [
            ("dice", _region(fusedloss.dice_loss)),
            ("jaccard", _region(fusedloss.jaccard_loss)),
            ("tversky 0.3, 0.7", _region(fusedloss.tversky_loss, alpha=0.3, beta=0.7)),
            ("log dice", _region(fusedloss.dice_loss, log=True)),
        ],
    )


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "generated")
