"""What the tasks draw on a scene: boxes with labels, on matplotlib axes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .scenes import Scenes

RIGHT, WRONG, TRUTH = "#35d07f", "#ff5c5c", "#ffd23f"


def draw_image(axes: Any, scene: Scenes) -> None:
    """The grey image of a ``Scenes`` of length 1."""
    axes.imshow(scene.images[0, 0].cpu().numpy(), cmap="gray", vmin=0.0, vmax=1.0)


def draw_box(axes: Any, box: Tensor, colour: str, style: str) -> None:
    """Outline of a box ``[4]``, pixels."""
    x0, y0, x1, y1 = (float(side) - 0.5 for side in box)  # pixel i is drawn from i - 0.5
    axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linestyle=style, lw=1.6)


def draw_label(axes: Any, box: Tensor, text: str, colour: str) -> None:
    """Text at the upper left corner of a box."""
    above = float(box[1]) > 4.0  # pixels: room for a line of text; else it goes below
    axes.text(
        float(box[0]) - 0.8,
        float(box[1]) - 1.0 if above else float(box[3]),
        text,
        va="bottom" if above else "top",
        color="black",
        fontsize=7.5,
        weight="bold",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )
