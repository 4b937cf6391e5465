"""The inputs and references of the mining rows: what is selected is known and beyond rounding."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from benchmark_helpers import CPU
from fusedloss.benchmarks import baselines_mining as mining
from fusedloss.benchmarks import cases, inputs
from fusedloss.benchmarks.workload import Case
from torch import Tensor

IGNORE = mining.IGNORE


def case_named(name: str, *shape: int) -> Case:
    """The case of that name at another size."""
    case = next(case for case in cases.CASES if case.name == name)
    return dataclasses.replace(case, shape=shape)


def rows_with(*p: float) -> Tensor:
    """Logits [N, 2] that give class 1 these probabilities."""
    probability = torch.tensor(p, dtype=torch.float64)
    return torch.stack((torch.zeros_like(probability), probability.logit()), 1)


def widest_gap_at(losses: Tensor, wanted: int) -> float:
    """Distance of the `wanted`-th largest loss and the next."""
    ranked = losses.sort(descending=True).values
    return float(ranked[wanted - 1] - ranked[wanted])


@pytest.mark.parametrize(
    ("hard", "p", "kept"),
    [
        (mining.Hard(), [0.9] * 17 + [0.5, 0.8, 0.69], [17, 19]),
        (mining.Hard(), [0.9] * 17 + [0.75, 0.8, 0.95], [17, 18]),
        (mining.Hard(min_kept=1), [0.9] * 17 + [0.75, 0.8, 0.95], [17]),
        (mining.Hard(share=0.2), [0.9] * 7 + [0.1, 0.8, 0.3], [7, 9]),
    ],
    ids=["below the threshold", "a tenth at least", "min_kept at least", "a share"],
)
def test_the_reference_of_mined_rows_selects_the_hardest(
    hard: mining.Hard, p: list[float], kept: list[int]
) -> None:
    logits, labels = rows_with(*p), torch.ones(len(p), dtype=torch.int64)
    value, gradient = hard.reference(logits, labels)
    assert value.item() == pytest.approx(-sum(math.log(p[i]) for i in kept) / len(kept))
    expected = torch.zeros(len(p), 2, dtype=torch.float64)
    for i in kept:
        expected[i] = torch.tensor([1 - p[i], p[i] - 1], dtype=torch.float64) / len(kept)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_the_reference_of_mined_rows_never_selects_ignored_ones() -> None:
    logits, labels = rows_with(0.1, 0.5, 0.9, 0.9), torch.tensor([IGNORE, 1, 1, IGNORE])
    for hard in (mining.Hard(), mining.Hard(share=0.5)):
        value, gradient = hard.reference(logits, labels)
        assert value.item() == pytest.approx(math.log(2))
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("name", ["cityscapes-ohem-fp32", "cityscapes-topk-fp32"])
def test_the_reference_of_mined_rows_does_not_depend_on_its_slices(name: str) -> None:
    case = case_named(name, 2, 5, 40, 33)
    made = case.setup(case, CPU)
    whole = case.reference(made.logits, *made.args)
    for rows in (7, 1_000):
        sliced = case.reference(made.logits, *made.args, rows_at_once=rows)
        torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-17)


def test_the_balanced_reference_of_worked_elements() -> None:
    # One positive at x = 0 and its three hardest negatives of four; the hardest of all is masked out.
    logits = torch.tensor([0.0, 9.0, 1.0, -1.0, 0.5, -3.0], dtype=torch.float64)
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    value, gradient = mining.balanced_reference(logits, target, mask)
    divisor = 4 + mining.EPSILON
    losses = [math.log(2), *(math.log1p(math.exp(x)) for x in (1.0, -1.0, 0.5))]
    assert value.item() == pytest.approx(sum(losses) / divisor)
    slopes = [-0.5, 0.0, *(1 / (1 + math.exp(-x)) for x in (1.0, -1.0, 0.5)), 0.0]
    assert gradient.tolist() == pytest.approx([slope / divisor for slope in slopes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_pixel_is_where_rounding_would_select_it(dtype: torch.dtype) -> None:
    for name in ("cityscapes-ohem-fp32", "cityscapes-topk-fp32"):
        case = dataclasses.replace(case_named(name, 2, 19, 256, 256), dtype=dtype)
        made = case.setup(case, CPU)
        (labels,) = made.args
        losses = F.cross_entropy(
            made.logits.detach().double(), labels, ignore_index=IGNORE, reduction="none"
        )[labels != IGNORE]
        if name == "cityscapes-topk-fp32":
            assert widest_gap_at(losses, int(0.1 * losses.numel())) > 1e-4
        else:
            p = torch.exp(-losses)
            assert (p - mining.THRESHOLD).abs().min() > 0.9 * inputs.AT_THRESHOLD
            assert (p < mining.THRESHOLD).sum() > losses.numel() // 10  # so min_kept has no say


@pytest.mark.parametrize("shape", [(2, 1, 320, 320), (1, 1, 32, 32)], ids=["large", "small"])
def test_no_element_of_text_is_where_rounding_would_select_it(shape: tuple[int, ...]) -> None:
    case = case_named("text-balanced-bce-fp32", *shape)
    made = case.setup(case, CPU)
    target, mask = made.args
    x = made.logits.detach().double()
    losses = F.binary_cross_entropy_with_logits(x, target.double(), reduction="none")
    wanted = int(mining.RATIO * int((target * mask).sum()))
    negative = (1 - target) * mask > 0
    assert 0 < wanted < int(negative.sum())
    assert widest_gap_at(losses[negative], wanted) > 1e-4


def test_text_has_few_positives_and_few_masked() -> None:
    case = case_named("text-balanced-bce-fp32", 4, 1, 640, 640)
    target, mask = case.setup(case, CPU).args
    assert target.mean().item() == pytest.approx(inputs.TEXT_SHARE, rel=0.1)
    assert (1 - mask.mean()).item() == pytest.approx(inputs.MASKED_SHARE, rel=0.3)
