"""The demo: its scenes, its metrics on cases worked by hand, and a short run from end to end."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fusedloss.demo import cli, main, require, scenes
from fusedloss.demo.calibration import expected_calibration_error
from fusedloss.demo.detection import Detection, eager_focal, fused_focal
from fusedloss.demo.detector import IGNORE, Detector, assign, cell_centers, giou_loss, to_boxes
from fusedloss.demo.drawing import hammer
from fusedloss.demo.metrics import (
    Detections,
    average_precision,
    decode,
    evaluate,
    match,
    pairwise_iou,
    suppress,
)
from fusedloss.demo.networks import in_use
from fusedloss.demo.pairs import Pairs, accepted_at, accuracy, all_pairs, best_threshold
from fusedloss.demo.progress import Progress
from fusedloss.demo.recognition import (
    Recognition,
    Recognizer,
    eager_smoothing,
    fused_smoothing,
    recognize,
)
from fusedloss.demo.report import relative_differences, summary
from fusedloss.demo.scenes import BACKGROUND, CANVAS, EMPTY, NUM_CLASSES
from fusedloss.demo.task import EAGER, FUSED, Loss, TaskResult
from fusedloss.demo.train import Schedule, batches, train_both
from fusedloss.demo.verification import (
    MARGIN,
    Verification,
    Verifier,
    eager_arcface,
    embed,
    fused_arcface,
)


@pytest.fixture(scope="module")
def split() -> scenes.SceneSplit:
    return scenes.make_split(num_train=70, num_held_out=12, seed=3)


@pytest.fixture(scope="module")
def result(split: scenes.SceneSplit) -> TaskResult:
    schedule = Schedule(steps=6, batch=4, seed=3)
    return train_both(Detection(), split, schedule, torch.device("cpu"))


@pytest.fixture(scope="module")
def recognition(split: scenes.SceneSplit) -> TaskResult:
    schedule = Schedule(steps=12, batch=8, seed=3)
    return train_both(Recognition(), split, schedule, torch.device("cpu"))


@pytest.fixture(scope="module")
def verification(split: scenes.SceneSplit) -> TaskResult:
    schedule = Schedule(steps=12, batch=8, seed=3)
    return train_both(Verification(), split, schedule, torch.device("cpu"))


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


def test_recognition_sees_every_digit_of_the_scenes(split: scenes.SceneSplit) -> None:
    torch.manual_seed(0)
    model = Recognizer()
    digits = split.held_out.labels[split.held_out.labels != EMPTY]
    outputs = Recognition().forward(model, split.held_out)
    assert outputs.logits.shape == (len(digits), NUM_CLASSES)
    assert torch.equal(outputs.arguments[0], digits)
    assert outputs.other_loss is None
    confidence, answers, labels = recognize(model, split.held_out)
    assert model.training
    assert torch.equal(labels, digits)
    quality = Recognition().evaluate(model, split.held_out)
    assert quality["accuracy"] == pytest.approx((answers == digits).double().mean().item())
    assert quality["mean confidence"] == pytest.approx(confidence.mean().item())


def agreed_gradient(
    fused: Loss, eager: Loss, logits: torch.Tensor, *arguments: torch.Tensor
) -> torch.Tensor:
    """The gradient of both losses for logits in float64, after a look that they are the same."""
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    values = [loss(x, *arguments) for loss, x in zip((fused, eager), leaves, strict=True)]
    gradients = [torch.autograd.grad(v, x)[0] for v, x in zip(values, leaves, strict=True)]
    # Double precision: what is left is rounding of a few operations and of the sum.
    torch.testing.assert_close(values[0], values[1], rtol=1e-11, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-13)
    return gradients[0]


def test_both_smoothing_losses_agree_on_the_same_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(50, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, NUM_CLASSES, (50,), generator=generator)
    agreed_gradient(fused_smoothing, eager_smoothing, logits, labels)


def test_both_margins_agree_on_the_same_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    cosine = 2 * torch.rand(200, NUM_CLASSES, generator=generator, dtype=torch.float64) - 1
    labels = torch.randint(0, NUM_CLASSES, (200,), generator=generator)
    own = cosine.gather(1, labels[:, None])
    beyond = own < math.cos(math.pi - MARGIN)
    assert 0 < beyond.sum() < 100
    agreed_gradient(fused_arcface, eager_arcface, cosine, labels)


def test_both_losses_agree_on_the_same_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 50, NUM_CLASSES, generator=generator, dtype=torch.float64)
    target = torch.randint(0, NUM_CLASSES + 1, (3, 50), generator=generator)
    target[:, ::7] = IGNORE
    divisor = torch.tensor(17.0, dtype=torch.float64)
    gradient = agreed_gradient(fused_focal, eager_focal, logits, target, divisor)
    assert gradient.any()
    assert not gradient[:, ::7].any()


def test_the_two_trainings_agree(result: TaskResult) -> None:
    # The first step sees the same logits: only the rounding of one loss in fp32 over
    # 4 x 4096 x 10 terms is left (some 1e-7). Later steps amplify that: Adam divides a gradient
    # by its own size, so that where it is next to nothing its rounding moves a weight by the
    # full learning rate. Six steps, all in the warm-up, stayed within 3e-7 for three seeds; a
    # loss that takes the ignored cells for background, the smallest mistake, is off by 2e-5 in
    # the first step and by 2e-3 to 5e-3 in the six.
    differences = relative_differences(result)
    assert differences[0] < 2e-6
    assert max(differences) < 2e-4
    assert result.value_error < 2e-6
    assert result.gradient_error < 2e-6
    losses = result.runs[FUSED].losses
    assert losses[-1] < 0.9 * losses[0]  # it learns


def test_the_two_trainings_of_recognition_agree(recognition: TaskResult) -> None:
    # As for detection: twelve steps with two other spellings of the loss stayed within 3e-7 for
    # three seeds. Smoothing that is spread over the wrong classes only, the smallest mistake, is
    # off by 2e-4 in the first step, by 5e-3 in the twelve, and by 1e-2 in the gradient.
    differences = relative_differences(recognition)
    assert differences[0] < 2e-6
    assert max(differences) < 2e-4
    assert recognition.value_error < 2e-6
    assert recognition.gradient_error < 2e-6
    losses = recognition.runs[FUSED].losses
    assert losses[-1] < 0.9 * losses[0]  # it learns


def test_the_two_trainings_of_verification_agree(verification: TaskResult) -> None:
    # As above, but these twelve steps amplify more: for four seeds up to 6e-4. A margin of 0.499 is
    # off by 5e-4 in the first step and by 3e-2 in the twelve; a straight-through gradient by 1e-1
    # in the gradient, by 4e-1 in the twelve.
    differences = relative_differences(verification)
    assert differences[0] < 2e-6
    assert max(differences) < 5e-3
    assert verification.value_error < 2e-6
    assert verification.gradient_error < 2e-6
    losses = verification.runs[FUSED].losses
    assert losses[-1] < 0.9 * losses[0]  # it learns


def test_the_compared_loss_is_that_of_the_module(split: scenes.SceneSplit) -> None:
    torch.manual_seed(0)
    model = Verifier()
    crops, labels = scenes.digit_crops(split.train)
    outputs = Verification().forward(model, split.train)
    assert outputs.logits.shape == (len(labels), NUM_CLASSES)
    assert outputs.logits.abs().max() <= 1 + 1e-6
    embeddings, cosine = model(crops)
    torch.testing.assert_close(cosine, outputs.logits)
    expected = eager_arcface(cosine, labels)
    found = model.head(embeddings, labels)
    torch.testing.assert_close(found, expected)
    weights = [torch.autograd.grad(value, model.head.weight)[0] for value in (found, expected)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


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


def test_a_model_is_in_use_until_the_block_ends() -> None:
    model = torch.nn.Linear(2, 2)
    with in_use(model):
        assert not model.training
        assert not model(torch.ones(2)).requires_grad
    assert model.training
    with pytest.raises(RuntimeError), in_use(model):
        raise RuntimeError
    assert model.training
    with in_use(model.eval()):
        pass
    assert not model.training


def test_the_unit_of_memory_follows_the_size(recognition: TaskResult) -> None:
    rows, classes = recognition.runs[FUSED].logits_shape
    assert classes == NUM_CLASSES
    assert recognition.runs[FUSED].logits_bytes == rows * classes * 4
    text = summary(recognition)
    assert "[KiB]" in text or "[bytes]" in text
    assert "MiB" not in text


def test_time_and_memory_are_measured(result: TaskResult) -> None:
    fused, eager = result.runs[FUSED], result.runs[EAGER]
    logits = 4 * CANVAS * CANVAS * NUM_CLASSES * 4
    assert fused.logits_bytes == logits
    for run in (fused, eager):
        assert len(run.loss_seconds) == len(run.step_seconds) == len(run.losses) == 6
        assert all(
            0 < loss < step for loss, step in zip(run.loss_seconds, run.step_seconds, strict=True)
        )
        assert run.memory.peak >= logits  # the gradient alone
    # The eager loss keeps the one-hot target, the probabilities and more.
    assert eager.memory.saved >= 4 * logits
    assert eager.memory.peak > eager.memory.saved
    assert fused.memory.peak < 2 * logits
    assert "same logits" in summary(result)


def test_batches_are_shuffled_epochs() -> None:
    order = batches(10, Schedule(steps=5, batch=5, seed=1))
    assert len(order) == 5
    assert sorted(torch.cat(order[:2]).tolist()) == list(range(10))
    again = batches(10, Schedule(steps=5, batch=5, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(order, again, strict=True))


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Progress(40, "training", stream) as progress:
        for step in progress:
            progress.note = f"loss {step}"
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert "\r" not in stream.getvalue()
    assert "40/40" in lines[-1]
    assert "loss 39" in lines[-1]


def test_quick_demo_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.png"
    assert main(["--quick", "--threads", "1", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    for text in (
        "precision",
        "recall",
        "average precision",
        "accuracy",
        "mean confidence",
        "calibration error",
        "same or different",
        "false accepts",
        "kept for backward",
        str(picture),
    ):
        assert text in output


def test_one_task_can_be_picked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.png"
    arguments = ["--quick", "--task", "recognition", "--steps", "3", "--out", str(picture)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "accuracy" in output
    assert "precision" not in output
    assert "3 steps" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "at least 1"),
        (["--steps", "many"], "invalid integer value: 'many'"),
        (["--threads", "-2"], "at least 1"),
        (["--seed", "-1"], "must be in 0"),
        (["--out", "picture.txt"], "must end in .png"),
        (["--out", "no/such/folder/picture.png"], "does not exist"),
        (["--device", "toaster"], "toaster"),
        (["--task", "cooking"], "'cooking'"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")]
)
def test_a_missing_package_is_named(
    module: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    imported = require.importlib.import_module

    def without(name: str) -> object:
        if name.split(".", maxsplit=1)[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=module)
        return imported(name)

    monkeypatch.setattr(require.importlib, "import_module", without)
    assert cli.main(["--quick"]) == 1
    error = capsys.readouterr().err
    assert package in error
    assert "pip install 'fusedloss[demo]'" in error
