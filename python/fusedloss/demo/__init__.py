"""The demo: train on scenes of real handwritten digits with fused and with eager losses.

``python -m fusedloss demo`` composes the scenes from scikit-learn's digits, trains each task
once with fusedloss and once with the loss as written in PyTorch, from the same seeds on the same
batches, prints the comparison, and saves a picture. ``scenes`` holds the data, ``task`` says
what a task is, ``detection``, ``recognition`` and ``verification`` are the tasks, ``train`` and
``report`` serve them all.
"""

from __future__ import annotations

from .cli import main

__all__ = ["main"]
