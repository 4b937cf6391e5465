"""Inputs of the workloads, the same in every run: logits and targets as a training would meet them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .baselines_margin_softmax import MARGIN
from .baselines_mining import RATIO, THRESHOLD
from .baselines_sigmoid_focal import one_hot_without_background
from .baselines_softmax_focal import IGNORE
from .workload import Case, Inputs

POSITIVE_SHARE = 0.01
PRIOR_LOGIT = -math.log(99.0)
"""RetinaNet starts its classification head at p = 0.01."""
IGNORED_SHARE = 0.05
AT_THRESHOLD = 1e-5
"""Pixels whose p is so close to OHEM's threshold are ignored."""
CANDIDATES_A_GAP = 1_000
"""Of so many candidates one is left out at the end of the hardest, where rounding would decide."""
TEXT_SHARE, MASKED_SHARE = 0.03, 0.02
EMBEDDING = 512
"""Width of the features that the classes of a face recognition are compared with."""
FAR_ROWS = 64
"""Of so many rows one has its class on the far side of theta = pi - m, as at the start of a training."""


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


def boxes(case: Case, device: torch.device) -> Inputs:
    """Deltas [N, 4] of anchors, their targets, a weight of 1 for the positive third; divisor: these."""
    generator = _generator(device)
    rows, _ = case.shape
    deltas = torch.randn(case.shape, generator=generator, device=device).mul_(0.3)
    target = torch.randn(case.shape, generator=generator, device=device).mul_(0.3)
    weight = (torch.rand(rows, 1, generator=generator, device=device) < 1 / 3).float()
    normalizer = weight.sum().clamp_(min=1)
    deltas, target = deltas.to(case.dtype), target.to(case.dtype)
    return Inputs(deltas.requires_grad_(), (target, weight.to(case.dtype), normalizer))


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
    labels = _patches((batch, height, width), 32, generator).square_().mul_(classes).long()
    _favour_labels(logits, labels, generator)
    labels[_patches((batch, height, width), 16, generator) < IGNORED_SHARE] = IGNORE
    return Inputs(logits.to(case.dtype).requires_grad_(), (labels,))


def mined(case: Case, device: torch.device, *, share: float = 0.0) -> Inputs:
    """Segmentation or classification with no row at the bound of the selection: rounding would decide.

    The bound is OHEM's threshold or, given a `share`, the loss of the last of the hardest pixels.
    """
    setup = classification if len(case.shape) == 2 else segmentation
    inputs = setup(case, device)
    (labels,) = inputs.args
    logits = inputs.logits.detach().float()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if share:
        valid = labels != IGNORE
        count = int(valid.sum())
        wanted = int(share * (count - _gap(count)))  # of what is valid afterwards
        labels.view(-1)[_after_the_hardest(losses, valid, wanted)] = IGNORE
    else:
        labels[(torch.exp(-losses) - THRESHOLD).abs() < AT_THRESHOLD] = IGNORE
    return inputs


def _gap(candidates: int) -> int:
    return max(1, candidates // CANDIDATES_A_GAP)


def _after_the_hardest(losses: Tensor, candidate: Tensor, wanted: int) -> Tensor:
    """Flat indices of the candidates that follow on the `wanted` largest losses, a gap of them."""
    count = int(candidate.sum())
    ranked = torch.where(candidate, losses, -math.inf).view(-1)
    return ranked.topk(min(wanted + _gap(count), count)).indices[wanted:]


def text(case: Case, device: torch.device) -> Inputs:
    """Logits, targets of 0 and 1 and a mask, as text detectors have: patches of text, most of it found.

    3 % of the elements are text, in patches of 8; 2 % are masked out, in patches of 32, and so are a
    few elements next to the bound of the selection.
    """
    generator = _generator(device)
    shape = (case.shape[0], *case.shape[2:])
    target = (_patches(shape, 8, generator) < TEXT_SHARE).float().unsqueeze(1)
    mask = (_patches(shape, 32, generator) >= MASKED_SHARE).float().unsqueeze(1)
    target[..., :8, :8] = mask[..., :8, :8] = 1.0  # some, however small the images
    logits = torch.randn(case.shape, generator=generator, device=device).mul_(2.0)
    logits += 8.0 * target - 5.0
    logits = logits.to(case.dtype)
    losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    wanted = int(RATIO * int((target * mask).sum()))
    mask.view(-1)[_after_the_hardest(losses, (1 - target) * mask > 0, wanted)] = 0.0
    return Inputs(logits.requires_grad_(), (target, mask))


def _every_class(inputs: Inputs) -> Inputs:
    """Every class occurs: packages differ about those that do not."""
    (labels,) = inputs.args
    classes = min(inputs.logits.shape[1], labels.numel())
    labels.view(-1)[:classes] = torch.arange(classes, device=labels.device)
    return inputs


def regions(case: Case, device: torch.device) -> Inputs:
    """Segmentation or classification in which every class occurs."""
    setup = classification if len(case.shape) == 2 else segmentation
    return _every_class(setup(case, device))


def volumes(case: Case, device: torch.device) -> Inputs:
    """Logits [N, C, D, H, W] and labels [N, D, H, W] in cubes of 16 voxels, most of them background."""
    generator = _generator(device)
    batch, classes, *sizes = case.shape
    logits = torch.randn(case.shape, generator=generator, device=device)
    labels = _patches((batch, *sizes), 16, generator).square_().mul_(classes).long()
    _favour_labels(logits, labels, generator)
    return _every_class(Inputs(logits.to(case.dtype).requires_grad_(), (labels,)))


def cosines(case: Case, device: torch.device) -> Inputs:
    """Cosines [N, C] of features and classes in 512 dimensions, and a label for each row.

    Random directions have cosines of about N(0, 1/512). The label's own is anywhere from -0.2 to 0.9:
    some rows are learnt, some are not. The first row, and one in 64, is beyond theta = pi - m.
    """
    generator = _generator(device)
    rows, classes = case.shape
    cosine = torch.randn(case.shape, generator=generator, device=device)
    cosine.mul_(EMBEDDING**-0.5).clamp_(-1.0, 1.0)
    labels = torch.randint(0, classes, (rows,), generator=generator, device=device)
    cosine.scatter_(1, labels[:, None], _target_cosines(rows, generator)[:, None])
    return Inputs(cosine.to(case.dtype).requires_grad_(), (labels,))


def features(case: Case, device: torch.device) -> Inputs:
    """Features [N, 512], class weights [C, 512] and labels with cosines of that kind."""
    generator = _generator(device)
    rows, classes = case.shape
    weight = torch.randn(classes, EMBEDDING, generator=generator, device=device)
    labels = torch.randint(0, classes, (rows,), generator=generator, device=device)
    towards = torch.nn.functional.normalize(weight[labels])
    across = torch.randn(rows, EMBEDDING, generator=generator, device=device)
    across -= (across * towards).sum(1, keepdim=True) * towards
    cosine = _target_cosines(rows, generator)[:, None]
    sine = (1.0 - cosine.square()).sqrt()
    found = cosine * towards + sine * torch.nn.functional.normalize(across)
    found *= 20.0  # about the length that networks give
    weight *= 0.01  # as insightface starts its classes
    return Inputs(
        found.to(case.dtype).requires_grad_(), (weight.to(case.dtype).requires_grad_(), labels)
    )


def _target_cosines(rows: int, generator: torch.Generator) -> Tensor:
    """Cosines [N] of rows and their own classes."""
    found = torch.rand(rows, generator=generator, device=generator.device).mul_(1.1).sub_(0.2)
    found[::FAR_ROWS] = -math.cos(MARGIN / 2)  # theta = pi - m / 2
    return found


def _patches(shape: tuple[int, ...], side: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers [N, H, W] or [N, D, H, W], one for each square or cube of this side."""
    batch, *sizes = shape
    coarse = [-(-size // side) for size in sizes]
    found = torch.rand(batch, *coarse, generator=generator, device=generator.device)
    for dim, size in enumerate(sizes, start=1):
        found = found.repeat_interleave(side, dim).narrow(dim, 0, size)
    return found.contiguous()
