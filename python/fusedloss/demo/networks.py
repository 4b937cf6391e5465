"""What the networks of the tasks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution 3x3, batch normalisation, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DigitNetwork(nn.Sequential):
    """Crops of digits ``[N, 1, 16, 16]`` to ``[N, outputs]``."""

    def __init__(self, outputs: int) -> None:
        super().__init__(
            block(1, 32),
            nn.MaxPool2d(2),
            block(32, 64),
            nn.MaxPool2d(2),
            block(64, 96),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, outputs),
        )


@contextmanager
def in_use(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, as after the training; then the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
