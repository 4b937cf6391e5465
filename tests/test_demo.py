"""The demo: its scenes, its metrics on cases worked by hand, and a short run from end to end."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from fusedloss.demo import cli, main, require, scenes
from fusedloss.demo.detection import eager_focal, fused_focal
from fusedloss.demo.detector import IGNORE
from fusedloss.demo.networks import in_use
from fusedloss.demo.progress import Progress
from fusedloss.demo.recognition import (
    Recognition,
    Recognizer,
    eager_smoothing,
    fused_smoothing,
    recognize,
)
from fusedloss.demo.report import relative_differences, summary
from fusedloss.demo.scenes import CANVAS, EMPTY, NUM_CLASSES
from fusedloss.demo.task import EAGER, FUSED, Loss, TaskResult
from fusedloss.demo.train import Schedule, batches
from fusedloss.demo.verification import (
    MARGIN,
    Verification,
    Verifier,
    eager_arcface,
    fused_arcface,
)

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


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
    assert f"pip install {package}" in error
