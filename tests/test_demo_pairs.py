"""Verification in the demo: pairs of drawings, thresholds, the picture of the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from fusedloss.demo import require, scenes
from fusedloss.demo.drawing import hammer
from fusedloss.demo.pairs import Pairs, accepted_at, accuracy, all_pairs, best_threshold
from fusedloss.demo.scenes import EMPTY
from fusedloss.demo.task import FUSED, TaskResult
from fusedloss.demo.verification import (
    Verification,
    embed,
)

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_the_threshold_is_chosen_on_training_digits(
    split: scenes.SceneSplit, verification: TaskResult
) -> None:
    model = verification.runs[FUSED].model
    threshold = float(model.get_buffer("threshold"))
    embeddings, cosine, labels = embed(model, split.train)
    drawing = split.train.digit_index[split.train.labels != EMPTY]
    pairs = all_pairs(embeddings, labels, drawing)
    others = torch.linspace(-1.1, 1.1, 200).tolist()
    assert accuracy(pairs, threshold) >= max(accuracy(pairs, other) for other in others)
    embeddings, cosine, labels = embed(model, split.held_out)
    drawing = split.held_out.digit_index[split.held_out.labels != EMPTY]
    right = accuracy(all_pairs(embeddings, labels, drawing), threshold)
    quality = verification.runs[FUSED].quality
    assert quality["accuracy, same or different"] == pytest.approx(right)
    nearest = (cosine.argmax(1) == labels).double().mean().item()
    assert quality["accuracy of the nearest class"] == pytest.approx(nearest)


def test_pairs_are_all_but_those_of_one_drawing() -> None:
    root = math.sqrt(0.5)
    embeddings = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    pairs = all_pairs(embeddings, torch.tensor([7, 7, 1, 7]), torch.tensor([10, 11, 12, 10]))
    # 0-1, 0-2, 1-2, 1-3, 2-3; 0 and 3 are one drawing.
    assert pairs.cosine.tolist() == pytest.approx([root, 0.0, root, root, 0.0])
    assert pairs.same.tolist() == [True, False, False, True, False]


def worked_pairs() -> Pairs:
    cosine = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7, 0.7], dtype=torch.float64)
    return Pairs(cosine, torch.tensor([True, False, True, False, False, True]))


def test_accuracy_of_worked_pairs() -> None:
    pairs = worked_pairs()  # same 0.9 0.5 0.7, different 0.1 0.3 0.7
    assert accuracy(pairs, 0.4) == pytest.approx((3 / 3 + 2 / 3) / 2)
    assert accuracy(pairs, 0.5) == pytest.approx((3 / 3 + 2 / 3) / 2)  # 0.5 itself is accepted
    assert accuracy(pairs, 1.0) == pytest.approx((0 + 1) / 2)
    # Twice as many different pairs change nothing.
    more = Pairs(pairs.cosine.repeat(2)[:-1], pairs.same.repeat(2)[:-1])
    different = Pairs(
        torch.cat([more.cosine, more.cosine[~more.same]]),
        torch.cat([more.same, more.same[~more.same]]),
    )
    assert accuracy(different, 0.4) == pytest.approx(accuracy(more, 0.4))
    assert best_threshold(pairs) == pytest.approx(0.4)  # between 0.3 and 0.5
    assert accepted_at(pairs, 0.0) == pytest.approx(1 / 3)  # only 0.9 is above 0.7
    assert accepted_at(pairs, 0.34) == pytest.approx(1.0)  # one of three may be accepted
    assert accepted_at(pairs, 1.0) == 1.0


def test_a_threshold_is_never_between_equal_cosines() -> None:
    cosine = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    same = Pairs(cosine, torch.tensor([True, True, False]))
    assert accuracy(same, best_threshold(same)) == pytest.approx(0.5)
    all_same = Pairs(cosine, torch.ones(3, dtype=torch.bool))
    assert best_threshold(all_same) < 0.5
    none_same = Pairs(cosine, torch.zeros(3, dtype=torch.bool))
    assert best_threshold(none_same) > 0.5


def test_the_map_of_the_sphere_keeps_areas() -> None:
    x, y = hammer(torch.eye(3))
    assert x.tolist() == pytest.approx([0.0, 2 / math.sqrt(1 + math.sqrt(0.5)), 0.0])
    assert y.tolist() == pytest.approx([0.0, 0.0, math.sqrt(2)])
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    x, y = hammer(points / points.norm(dim=1, keepdim=True))
    assert (x**2 / 8 + y**2 / 2).max() <= 1 + 1e-9
    # Half of the axes hold a quarter of the ellipse, so a quarter of the sphere.
    inner = (x**2 / 8 + y**2 / 2 < 0.25).double().mean().item()
    assert inner == pytest.approx(0.25, abs=0.01)


def test_verification_draws_the_sphere_and_scenes_with_a_same_digit(
    split: scenes.SceneSplit, verification: TaskResult
) -> None:
    part = split.train
    repeated = (part.labels[:, 1:] == part.labels[:, :1]).any(1)
    assert not repeated[0]
    assert repeated.sum() >= 2
    row = require.require("matplotlib.figure").Figure().subplots(1, 3)
    Verification().draw(row, verification.runs[FUSED].model, part)
    (dots,) = row[0].collections
    assert len(dots.get_offsets()) == (part.labels != EMPTY).sum()
    for axes, scene in zip(row[1:], repeated.nonzero().flatten().tolist(), strict=False):
        answers = [text.get_text().split()[0] for text in axes.texts]
        assert len(answers) == (part.labels[scene] != EMPTY).sum() - 1
        assert set(answers) <= {"same", "other"}
