"""What the tasks draw on matplotlib axes: boxes with labels on a scene, directions in space."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .require import require
from .scenes import Scenes

RIGHT, WRONG, TRUTH = "#35d07f", "#ff5c5c", "#ffd23f"


def draw_image(axes: Any, scene: Scenes) -> None:
    """The grey image of a ``Scenes`` of length 1."""
    axes.imshow(scene.images[0, 0].cpu().numpy(), cmap="gray", vmin=0.0, vmax=1.0)


def draw_mask(axes: Any, answer: Tensor, truth: Tensor, background: int) -> None:
    """Classes ``[H, W]`` of pixels as colours over the image, and the outlines of the true ones."""
    colours = torch.as_tensor(require("matplotlib").colormaps["tab10"].colors)
    answer, truth = answer.cpu(), truth.cpu()
    inside = answer != background
    layer = torch.zeros(*answer.shape, 4)
    layer[inside] = torch.cat((colours, torch.full((len(colours), 1), 0.6)), 1)[answer[inside]]
    axes.imshow(layer.numpy())
    edge = (truth != background).numpy()
    axes.contour(edge, levels=[0.5], colors=[TRUTH], linestyles="dashed", linewidths=1.0)


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


def hammer(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Place of unit vectors ``[N, 3]`` on a map of the whole sphere that keeps areas: x, y ``[N]``.

    Hammer's projection: an ellipse of half axes 2 sqrt(2) and sqrt(2), its middle (1, 0, 0).
    """
    x, y, z = directions.double().unbind(-1)
    longitude = torch.atan2(y, x)
    flat = (1.0 - z.square()).clamp(min=0.0).sqrt()  # cosine of the latitude
    depth = (1.0 + flat * (longitude / 2).cos()).sqrt()
    return 2 * math.sqrt(2) * flat * (longitude / 2).sin() / depth, math.sqrt(2) * z / depth


def draw_sphere(axes: Any, embeddings: Tensor, labels: Tensor) -> None:
    """Directions of embeddings ``[N, 3]`` on the sphere, coloured and named by digit."""
    turn = torch.linspace(0.0, 2 * math.pi, 200)
    axes.fill(2 * math.sqrt(2) * turn.cos(), math.sqrt(2) * turn.sin(), fc="#f4f4f4", ec="#999999")
    directions = F.normalize(embeddings).cpu()
    colours = {"cmap": "tab10", "vmin": -0.5, "vmax": 9.5}
    axes.scatter(*hammer(directions), c=labels.cpu(), s=3.0, **colours)
    for label in labels.unique().tolist():
        middle = F.normalize(directions[labels.cpu() == label].sum(0), dim=0)
        x, y = (float(place) for place in hammer(middle))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.7}
        axes.text(x, y, str(label), ha="center", va="center", weight="bold", bbox=box)
    axes.margins(0.01)
    axes.set_aspect("equal")
    axes.set_xlabel("embeddings of all digits on their sphere", fontsize=9)
    axes.spines[:].set_visible(False)
