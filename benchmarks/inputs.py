"""Inputs of the workloads, the same in every run: logits and targets as a training would meet them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .baselines_sigmoid_focal import one_hot_without_background
from .baselines_softmax_focal import IGNORE
from .workload import Case, Inputs

POSITIVE_SHARE = 0.01
PRIOR_LOGIT = -math.log(99.0)
"""RetinaNet starts its classification head at p = 0.01."""
IGNORED_SHARE = 0.05


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(20_170_807)


def focal_index(case: Case, device: torch.device) -> Inputs:
    """Anchors with one class index each (C = background), 1 % positive; divisor: positives."""
    generator = _generator(device)
    *rows, classes = case.shape
    logits = torch.randn(case.shape, generator=generator, device=device).mul_(2).add_(PRIOR_LOGIT)
    labels = torch.randint(0, classes, rows, generator=generator, device=device)
    background = torch.rand(rows, generator=generator, device=device) >= POSITIVE_SHARE
    labels[background] = classes
    normalizer = (labels < classes).sum().clamp_(min=1).float()
    return Inputs(logits.to(case.dtype).requires_grad_(), (labels, normalizer))


def focal_dense(case: Case, device: torch.device) -> Inputs:
    """The same with the target written out in the dtype and shape of the logits."""
    inputs = focal_index(case, device)
    labels, normalizer = inputs.args
    dense = one_hot_without_background(labels, inputs.logits.detach())
    return Inputs(inputs.logits, (dense.contiguous(), normalizer))


def _favour_labels(logits: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """Raises each row's target logit by 0..10: some rows are learnt, some are still wrong."""
    gain = torch.rand(labels.shape, generator=generator, device=labels.device).mul_(10.0)
    logits.scatter_add_(1, labels[:, None], gain[:, None])


def classification(case: Case, device: torch.device) -> Inputs:
    """Logits [N, C] and a label for each row."""
    generator = _generator(device)
    rows, classes = case.shape
    logits = torch.randn(case.shape, generator=generator, device=device)
    labels = torch.randint(0, classes, (rows,), generator=generator, device=device)
    _favour_labels(logits, labels, generator)
    return Inputs(logits.to(case.dtype).requires_grad_(), (labels,))


def segmentation(case: Case, device: torch.device) -> Inputs:
    """Logits [N, C, H, W] and labels [N, H, W] in patches of 32 pixels, frequent and rare classes.

    5 % of the pixels are ignored, in patches of 16.
    """
    generator = _generator(device)
    batch, classes, height, width = case.shape
    logits = torch.randn(case.shape, generator=generator, device=device)
    # The square of a uniform number: road, buildings and sky fill most of a street scene.
    labels = _patches(batch, height, width, 32, generator).square_().mul_(classes).long()
    _favour_labels(logits, labels, generator)
    labels[_patches(batch, height, width, 16, generator) < IGNORED_SHARE] = IGNORE
    return Inputs(logits.to(case.dtype).requires_grad_(), (labels,))


def _patches(batch: int, height: int, width: int, side: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers [N, H, W], one for each square of `side` pixels."""
    coarse = torch.rand(
        batch, -(-height // side), -(-width // side), generator=generator, device=generator.device
    )
    fine = coarse.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return fine[:, :height, :width].contiguous()
