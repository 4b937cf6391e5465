"""Whether two pictures show the same: pairs of embeddings, a threshold, and how often it is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """P pairs: cosine of both embeddings ``[P]`` float64, and whether they are the same ``[P]``."""

    cosine: Tensor
    same: Tensor


def all_pairs(embeddings: Tensor, labels: Tensor, drawing: Tensor) -> Pairs:
    """All pairs of N embeddings, but for those that show one and the same drawing.

    Args:
        embeddings: ``[N, E]``.
        labels: ``[N]``; two are the same where these are equal.
        drawing: ``[N]``, which drawing it is.
    """
    directions = F.normalize(embeddings.double())
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    cosine = (directions @ directions.t())[first, second]
    count = drawing[first] != drawing[second]
    return Pairs(cosine[count], (labels[first] == labels[second])[count])


def accuracy(pairs: Pairs, threshold: float) -> float:
    """Share of right answers where "same" means a cosine of at least ``threshold``.

    Same and different pairs count half each, as in LFW, which has as many of both.
    """
    accepted = pairs.cosine >= threshold
    return (_share(accepted[pairs.same]) + _share(~accepted[~pairs.same])) / 2


def best_threshold(pairs: Pairs) -> float:
    """The threshold of the highest ``accuracy``: midway between two cosines, or beyond all."""
    cosine, order = pairs.cosine.sort()
    same = pairs.same[order]
    none = torch.zeros(1, dtype=torch.float64, device=cosine.device)
    # Entry k: the k pairs of the lowest cosines are refused.
    refused_same, refused_different = (
        torch.cat([none, hit.double().cumsum(0)]) / max(int(hit.sum()), 1) for hit in (same, ~same)
    )
    ends = torch.cat([cosine[:1] - 1.0, cosine, cosine[-1:] + 1.0])
    between_equals = ends[1:] == ends[:-1]
    best = (refused_different - refused_same).masked_fill(between_equals, -torch.inf).argmax()
    return float((ends[best] + ends[best + 1]) / 2)


def accepted_at(pairs: Pairs, false_accepts: float) -> float:
    """Share of the same pairs that are accepted where this share of the different ones may be."""
    different = pairs.cosine[~pairs.same].sort(descending=True).values
    allowed = int(false_accepts * len(different))
    if allowed == len(different):
        return 1.0
    return _share(pairs.cosine[pairs.same] > different[allowed])


def _share(hits: Tensor) -> float:
    return float(hits.double().sum() / max(len(hits), 1))
