"""Metrics: IoU of boxes and of masks, non-maximum suppression, precision, recall, average precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import EMPTY


@dataclass(frozen=True)
class Detections:
    """At most K detections in each of S scenes, best first.

    Attributes:
        boxes: ``[S, K, 4]``, pixels.
        scores: ``[S, K]`` in [0, 1]; exactly 0 where there is no detection.
        labels: ``[S, K]`` int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DetectionScores:
    """Quality over a set of scenes; all three in [0, 1]."""

    precision: float
    recall: float
    average_precision: float


def class_iou(answers: Tensor, truth: Tensor, classes: int) -> Tensor:
    """IoU ``[C]`` of every class over all pixels; classes int64 of any shape. NaN for no pixel at all."""
    pairs = torch.bincount(truth.flatten() * classes + answers.flatten(), minlength=classes**2)
    counts = pairs.view(classes, classes).double()
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of all pairs of boxes ``[..., P, 4]`` and ``[..., Q, 4]``: ``[..., P, Q]``."""
    a, b = first[..., :, None, :], second[..., None, :, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = sides.clamp(min=0.0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return intersection / (areas - intersection).clamp(min=1e-9)


def suppress(
    boxes: Tensor, scores: Tensor, *, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """Greedy non-maximum suppression in all scenes at once.

    Takes the best box of every scene, drops the boxes that overlap it, and starts over.

    Args:
        boxes: ``[S, A, 4]``, pixels.
        scores: ``[S, A]``, positive; 0 leaves a box out.
        iou_threshold: a box overlaps another where their IoU is more than this.
        max_detections: K, the most that are taken in a scene.

    Returns:
        the index of the boxes that are kept, ``[S, K]``, best first, and their scores
        ``[S, K]``, 0 where a scene has fewer.
    """
    left = scores.clone()
    index, kept = [], []
    for _ in range(min(max_detections, scores.shape[1])):
        score, best = left.max(1)
        chosen = boxes.gather(1, best[:, None, None].expand(-1, 1, 4))
        overlaps = pairwise_iou(chosen, boxes)[:, 0] > iou_threshold
        left = left.masked_fill(overlaps, 0.0).scatter(1, best[:, None], 0.0)
        index.append(best)
        kept.append(score)
    return torch.stack(index, 1), torch.stack(kept, 1)


def decode(
    logits: Tensor,
    boxes: Tensor,
    *,
    min_score: float = 0.02,
    iou_threshold: float = 0.3,
    max_detections: int = 16,
) -> Detections:
    """Turn the cells' class logits ``[S, A, C]`` and boxes ``[S, A, 4]`` into detections.

    A cell speaks for its best class only. Suppression is across classes, since no two digits
    of a scene share a place.
    """
    scores, labels = logits.sigmoid().max(-1)
    scores = scores * (scores >= min_score)
    index, kept = suppress(
        boxes, scores, iou_threshold=iou_threshold, max_detections=max_detections
    )
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return Detections(boxes, kept, labels.gather(1, index))


def match(found: Detections, boxes: Tensor, labels: Tensor, iou: float = 0.5) -> Tensor:
    """Which detections are right, ``[S, K]`` bool.

    A detection is right when the digit of its class that it overlaps most, among those no
    better detection has taken, is overlapped by an IoU of at least ``iou``.
    ``boxes`` ``[S, M, 4]`` and ``labels`` ``[S, M]`` (``EMPTY`` for none) are the truth.
    """
    overlaps = pairwise_iou(found.boxes, boxes)
    same = (found.labels[..., None] == labels[:, None]) & (labels != EMPTY)[:, None]
    overlaps = overlaps * same * (found.scores > 0)[..., None]
    right = torch.zeros_like(found.scores, dtype=torch.bool)
    for k in range(overlaps.shape[1]):
        best, slot = overlaps[:, k].max(1)
        right[:, k] = best >= iou
        taken = torch.zeros_like(overlaps[:, 0], dtype=torch.bool)
        taken.scatter_(1, slot[:, None], right[:, k, None])
        overlaps = overlaps.masked_fill(taken[:, None], 0.0)
    return right


def average_precision(scores: Tensor, right: Tensor, num_truth: int) -> float:
    """Area under the precision envelope over recall (PASCAL VOC 2010 and later).

    ``scores`` ``[D]`` and ``right`` ``[D]`` bool are all detections of one class in any order;
    ``num_truth`` is the number of objects of that class, at least 1.
    """
    order = scores.argsort(descending=True, stable=True)
    hits = right[order].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return float((envelope * right[order]).sum() / num_truth)


def evaluate(
    found: Detections, boxes: Tensor, labels: Tensor, *, threshold: float, iou: float = 0.5
) -> DetectionScores:
    """Precision and recall of detections scored at least ``threshold``, and mean AP.

    The mean AP is over the classes that occur in the truth, over all scores. Precision of no
    detection is 0 here, as is recall of no object.
    """
    right = match(found, boxes, labels, iou)
    shown = found.scores >= threshold
    num_right = int((right & shown).sum())
    num_truth = int((labels != EMPTY).sum())
    present = found.scores > 0
    per_class = []
    for label in sorted(set(labels[labels != EMPTY].tolist())):
        mine = present & (found.labels == label)
        count = int((labels == label).sum())
        per_class.append(average_precision(found.scores[mine], right[mine], count))
    return DetectionScores(
        precision=num_right / max(int(shown.sum()), 1),
        recall=num_right / max(num_truth, 1),
        average_precision=sum(per_class) / max(len(per_class), 1),
    )
