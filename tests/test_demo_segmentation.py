"""The demo's segmentation: its loss in both spellings, its metric, and a short run from end to end."""

from __future__ import annotations

import pytest
import torch
from fusedloss.demo import scenes
from fusedloss.demo.metrics import class_iou
from fusedloss.demo.report import relative_differences
from fusedloss.demo.require import require
from fusedloss.demo.scenes import EMPTY, NUM_CLASSES
from fusedloss.demo.segmentation import (
    Segmentation,
    Segmenter,
    eager_dice_cross_entropy,
    fused_dice_cross_entropy,
)
from fusedloss.demo.task import FUSED, TaskResult
from fusedloss.demo.train import Schedule, train_both


@pytest.fixture(scope="module")
def split() -> scenes.SceneSplit:
    return scenes.make_split(num_train=40, num_held_out=12, seed=3)


@pytest.fixture(scope="module")
def result(split: scenes.SceneSplit) -> TaskResult:
    return train_both(
        Segmentation(), split, Schedule(steps=8, batch=4, seed=3), torch.device("cpu")
    )


def test_both_losses_agree_on_the_same_logits(split: scenes.SceneSplit) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = split.train.mask[:3]
    shape = (3, NUM_CLASSES + 1, *mask.shape[1:])
    logits = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    found = []
    for loss in (fused_dice_cross_entropy, eager_dice_cross_entropy):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, mask)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert found[0][1].any()


def test_the_two_trainings_agree(result: TaskResult) -> None:
    # As for detection. A smooth of 1e-3 instead of 1e-5 is off by 1e-5 and more in the first step.
    differences = relative_differences(result)
    assert differences[0] < 2e-6
    assert max(differences) < 1e-3
    assert result.value_error < 2e-6
    assert result.gradient_error < 5e-6
    losses = result.runs[FUSED].losses
    assert losses[-1] < 0.9 * losses[0]  # it learns


def test_iou_of_worked_masks() -> None:
    truth = torch.tensor([[0, 0, 1], [1, 1, 2]])
    answers = torch.tensor([[0, 1, 1], [1, 2, 2]])
    # Class 0: 1 of 2; class 1: 2 of 4; class 2: 1 of 2; class 3 has no pixel in either.
    iou = class_iou(answers, truth, 4)
    assert iou[:3].tolist() == pytest.approx([1 / 2, 2 / 4, 1 / 2])
    assert iou[3].isnan()


def test_a_perfect_model_is_judged_perfect(
    split: scenes.SceneSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = split.held_out
    answers = iter(held_out.mask.long().split(32))
    monkeypatch.setattr("fusedloss.demo.segmentation.segment", lambda *_: next(answers))
    quality = Segmentation().evaluate(Segmenter(), held_out)
    assert set(quality.values()) == {1.0}


def test_every_digit_of_a_drawn_scene_has_a_label(
    split: scenes.SceneSplit, result: TaskResult
) -> None:
    row = require("matplotlib.figure").Figure().subplots(1, 3)
    Segmentation().draw(row, result.runs[FUSED].model, split.held_out)
    for scene, axes in enumerate(row):
        digits = int((split.held_out.labels[scene] != EMPTY).sum())
        answers = [text.get_text() for text in axes.texts]
        assert len(answers) == digits
        assert set(answers) <= {"missed", *map(str, range(NUM_CLASSES))}
        assert len(axes.images) == 2  # the scene and its mask
