"""The scenes of the demo, its detector and the metrics of detection."""

from __future__ import annotations

import pytest
import torch
from fusedloss.demo import scenes
from fusedloss.demo.calibration import expected_calibration_error
from fusedloss.demo.detector import IGNORE, Detector, assign, cell_centers, giou_loss, to_boxes
from fusedloss.demo.metrics import (
    Detections,
    average_precision,
    decode,
    evaluate,
    match,
    pairwise_iou,
    suppress,
)
from fusedloss.demo.scenes import BACKGROUND, CANVAS, EMPTY, NUM_CLASSES

pytest.importorskip("sklearn")


def test_scenes_are_determined_by_the_seed(split: scenes.SceneSplit) -> None:
    again = scenes.make_split(70, 12, seed=3)
    other = scenes.make_split(70, 12, seed=4)
    for name in ("images", "boxes", "labels", "digit_index", "mask"):
        assert torch.equal(getattr(split.train, name), getattr(again.train, name))
    assert not torch.equal(split.train.images, other.train.images)


def test_held_out_digits_are_in_no_training_scene(split: scenes.SceneSplit) -> None:
    train, held_out = (
        set(part.digit_index.unique().tolist()) - {EMPTY} for part in (split.train, split.held_out)
    )
    assert train
    assert held_out
    assert not train & held_out
    whole_train, whole_held_out = scenes.load_digit_split()
    together = torch.cat([whole_train.index, whole_held_out.index])
    assert torch.equal(together, torch.arange(1797))


def test_boxes_bound_the_mask_of_their_digit(split: scenes.SceneSplit) -> None:
    # Every pixel of a digit lies in exactly one box, of its class, and touches all four sides.
    part = split.train
    assert part.labels.ne(EMPTY).any(1).all()
    for boxes, labels, mask in zip(part.boxes, part.labels, part.mask, strict=True):
        seen = torch.zeros_like(mask)
        for box, label in zip(boxes, labels, strict=True):
            if label == EMPTY:
                assert not box.any()
                continue
            x0, y0, x1, y1 = box.long().tolist()
            assert 0 <= x0 < x1 <= CANVAS
            assert 0 <= y0 < y1 <= CANVAS
            inside = mask[y0:y1, x0:x1] == label
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert ((mask[y0:y1, x0:x1] == BACKGROUND) | inside).all()
            seen[y0:y1, x0:x1] += 1
        assert seen.max() <= 1
        assert ((mask == BACKGROUND) | (seen == 1)).all()


def test_digit_index_carries_the_label(split: scenes.SceneSplit) -> None:
    train, _ = scenes.load_digit_split()
    used = split.train.labels != EMPTY
    assert torch.equal(used, split.train.digit_index != EMPTY)
    assert torch.equal(train.labels[split.train.digit_index[used]], split.train.labels[used])


def test_crops_are_the_pixels_of_the_boxes(split: scenes.SceneSplit) -> None:
    crops, labels = scenes.digit_crops(split.train, side=8)
    assert torch.equal(labels, split.train.labels[split.train.labels != EMPTY])
    assert crops.shape == (len(labels), 1, 8, 8)
    # A box with sides of 8 pixels is cut out as it is.
    exact = split.train[0:1]
    boxes = torch.zeros_like(exact.boxes)
    slot = int((exact.labels[0] != EMPTY).nonzero()[0])
    boxes[0, slot] = torch.tensor([10.0, 20.0, 18.0, 28.0])
    labels = torch.full_like(exact.labels, EMPTY)
    labels[0, slot] = 5
    one = scenes.Scenes(exact.images, boxes, labels, exact.digit_index, exact.mask)
    crop, label = scenes.digit_crops(one, side=8)
    torch.testing.assert_close(crop[0, 0], exact.images[0, 0, 20:28, 10:18], atol=1e-5, rtol=0)
    assert label.tolist() == [5]


def test_assignment_has_core_rim_and_background() -> None:
    # One digit of 20 x 10 pixels; cells are pixels: core within 0.4, ignored up to 0.8.
    boxes = torch.zeros(1, 2, 4)
    boxes[0, 0] = torch.tensor([10.0, 20.0, 30.0, 30.0])
    labels = torch.tensor([[7, EMPTY]])
    target, wanted = assign(boxes, labels, cell_centers(CANVAS, CANVAS))
    grid = target.reshape(CANVAS, CANVAS)
    assert grid[25, 20] == 7
    assert grid[25, 27] == IGNORE  # 7.5 of the half side 10 from the middle
    assert grid[25, 29] == BACKGROUND  # 9.5 of 10: the edge of the box
    assert grid[0, 0] == BACKGROUND  # the empty slot's box of zeros claims nothing
    assert (grid == 7).sum() == 8 * 4
    assert torch.equal(wanted.reshape(CANVAS, CANVAS, 4)[25, 20], boxes[0, 0])


def test_detector_starts_at_its_prior_and_orders_cells_by_rows() -> None:
    torch.manual_seed(0)
    logits, distances = Detector()(torch.rand(2, 1, CANVAS, CANVAS))
    assert logits.shape == (2, CANVAS * CANVAS, NUM_CLASSES)
    assert distances.shape == (2, CANVAS * CANVAS, 4)
    assert abs(logits.sigmoid().mean().item() - 0.01) < 0.003
    centers = cell_centers(4, 6)
    assert centers[1].tolist() == [1.5, 0.5]
    boxes = to_boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), centers[1:2])
    assert boxes.tolist() == [[0.5, -1.5, 4.5, 4.5]]


def test_giou_of_worked_boxes() -> None:
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert giou_loss(box, box).item() == pytest.approx(0.0)
    # Shifted by 1: IoU 2/6, and the hull holds nothing else. Apart: union 8 in a hull of 10.
    assert giou_loss(box, box + torch.tensor([1.0, 0.0, 1.0, 0.0])).item() == pytest.approx(2 / 3)
    apart = torch.tensor([[3.0, 0.0, 5.0, 2.0]])
    assert giou_loss(box, apart).item() == pytest.approx(1.0 + (10 - 8) / 10)


def test_iou_and_suppression() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [8, 8, 12, 12], [0, 0, 4, 4]])
    iou = pairwise_iou(boxes, boxes)
    assert iou[0, 1].item() == pytest.approx(12 / 20)
    assert iou[0, 2].item() == 0.0
    scores = torch.tensor([[0.5, 0.9, 0.3, 0.0]])
    index, kept = suppress(boxes[None], scores, iou_threshold=0.5, max_detections=4)
    assert index[0, :2].tolist() == [1, 2]  # box 1 suppresses box 0
    assert kept[0].tolist() == pytest.approx([0.9, 0.3, 0.0, 0.0])
    index, kept = suppress(boxes[None], scores, iou_threshold=0.7, max_detections=4)
    assert index[0, :3].tolist() == [1, 0, 2]
    _, kept = suppress(boxes[None], scores, iou_threshold=0.7, max_detections=2)
    assert kept.shape == (1, 2)


def test_suppression_takes_boxes_without_area_once() -> None:
    boxes = torch.zeros(1, 2, 4)
    _, kept = suppress(boxes, torch.tensor([[0.9, 0.8]]), iou_threshold=0.5, max_detections=2)
    assert kept[0].tolist() == pytest.approx([0.9, 0.8])


def test_decode_takes_the_best_class_and_drops_low_scores() -> None:
    logits = torch.full((1, 3, 2), -9.0)
    logits[0, 0, 1], logits[0, 2, 0] = 2.0, 1.0
    boxes = torch.tensor([[[0.0, 0, 4, 4], [8, 0, 12, 4], [0, 8, 4, 12]]])
    found = decode(logits, boxes, max_detections=3)
    assert found.labels[0, :2].tolist() == [1, 0]
    assert (found.scores[0] > 0).tolist() == [True, True, False]


def _two_scenes() -> tuple[Detections, torch.Tensor, torch.Tensor]:
    """Three digits; detections: right, a duplicate, wrong class / badly placed, right."""
    a, b = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]
    far = [24.0, 24.0, 34.0, 34.0]  # IoU with b: 36 / 164
    boxes = torch.tensor([[a, b], [a, [0.0] * 4]])
    labels = torch.tensor([[3, 5], [3, EMPTY]])
    found = Detections(
        boxes=torch.tensor([[a, a, far], [a, a, a]]),
        scores=torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.3, 0.0]]),
        labels=torch.tensor([[3, 3, 5], [5, 3, 3]]),
    )
    return found, boxes, labels


def test_match_gives_each_digit_to_one_detection() -> None:
    found, boxes, labels = _two_scenes()
    assert match(found, boxes, labels).tolist() == [[True, False, False], [False, True, False]]


def test_precision_recall_and_average_precision() -> None:
    found, boxes, labels = _two_scenes()
    scores = evaluate(found, boxes, labels, threshold=0.5)
    assert scores.precision == pytest.approx(1 / 4)
    assert scores.recall == pytest.approx(1 / 3)
    # Class 3: right, wrong, right -> precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1; class 5: 0.
    assert scores.average_precision == pytest.approx((0.5 * 1 + 0.5 * 2 / 3 + 0.0) / 2)
    everything = evaluate(found, boxes, labels, threshold=0.2)
    assert everything.recall == pytest.approx(2 / 3)


def test_average_precision_does_not_depend_on_the_order_given() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5])
    right = torch.tensor([True, True, False])
    assert average_precision(scores, right, 2) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(scores[[2, 0, 1]], right[[2, 0, 1]], 2) == pytest.approx(5 / 6)
    assert average_precision(scores[:0], right[:0], 4) == 0.0
    assert average_precision(scores, torch.ones(3, dtype=torch.bool), 3) == pytest.approx(1.0)


def test_calibration_error_of_worked_answers() -> None:
    # Two bins: 0.3 and 0.4, one of two right, off by 0.5 - 0.35; 0.9 and 1.0, both right, by 0.05.
    confidence = torch.tensor([0.3, 0.9, 0.4, 1.0])
    right = torch.tensor([True, True, False, True])
    found = expected_calibration_error(confidence, right, bins=2)
    assert found == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)
    assert expected_calibration_error(confidence[:0], right[:0]) == 0.0
    sure = torch.ones(4)
    assert expected_calibration_error(sure, right) == pytest.approx(0.25)
