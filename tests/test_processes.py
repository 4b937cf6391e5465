"""Losses among threads and processes: concurrent callers, forks after use, thread counts that change."""

from __future__ import annotations

import threading
from collections.abc import Callable

import fusedloss
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROWS, CLASSES, SIDE = 3, 5, 64


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of rows and of images, with labels of both; large enough for several threads."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(4_096, 40, generator=generator),
        torch.randint(0, 40, (4_096,), generator=generator),
        torch.randn(ROWS, CLASSES, SIDE, SIDE, generator=generator),
        torch.randint(0, CLASSES, (ROWS, SIDE, SIDE), generator=generator),
    )


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "focal": lambda x, t, image, labels: fusedloss.sigmoid_focal_loss(x, t),
    "boxes": lambda x, t, image, labels: fusedloss.smooth_l1_loss(x, x.detach().sin()),
    "cross entropy": lambda x, t, image, labels: fusedloss.cross_entropy(x, t, label_smoothing=0.1),
    "arcface": lambda x, t, image, labels: fusedloss.arcface_loss(x.tanh(), t),
    "dice": lambda x, t, image, labels: fusedloss.dice_cross_entropy_loss(image, labels),
    "ohem": lambda x, t, image, labels: fusedloss.ohem_cross_entropy_loss(
        image, labels, min_kept=500
    ),
    "balanced": lambda x, t, image, labels: fusedloss.balanced_bce_loss(image, image.detach() > 1),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def step(name: str, seed: int, threads_of_backward: int | None = None) -> tuple[Tensor, ...]:
    """The loss and its gradients."""
    x, t, image, labels = inputs(seed)
    leaves = x.requires_grad_(), image.requires_grad_()
    loss = LOSSES[name](x, t, image, labels)
    if threads_of_backward is not None:
        torch.set_num_threads(threads_of_backward)
    loss.backward()
    return loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Bit for bit."""
    return len(found) == len(expected) > 1 and all(map(torch.equal, found, expected))


@each_loss
@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (4, 3)])
def test_thread_counts_that_change_before_backward(name: str, counts: tuple[int, int]) -> None:
    expected = step(name, 0)
    torch.set_num_threads(counts[0])
    assert same(step(name, 0, threads_of_backward=counts[1]), expected)


def test_concurrent_calls() -> None:
    """Every thread has its own inputs; each must get what a single one gets."""
    jobs = [(name, seed) for seed in range(4) for name in LOSSES]
    expected = {job: step(*job) for job in jobs}
    found: dict[tuple[int, str, int], tuple[Tensor, ...]] = {}

    def run(number: int) -> None:
        for name, seed in jobs[number:] + jobs[:number]:
            found[number, name, seed] = step(name, seed)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(found) == 4 * len(jobs)
    for (_, name, seed), got in found.items():
        assert same(got, expected[name, seed]), name


def bits(value: Tensor) -> int:
    """A sum that does not depend on how many threads add it up."""
    return int(value.contiguous().view(torch.int32).long().sum())


class LossesOfSamples(Dataset[tuple[int, list[int]]]):
    """Computes losses and gradients where a data loader fetches its samples."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        found = [step(name, index) for name in LOSSES]
        return index, [bits(value) for values in found for value in values]


def test_data_loader_workers_after_use() -> None:
    """Forked workers, though this process has used its threads already."""
    data = LossesOfSamples()
    expected = dict(data[i] for i in range(len(data)))
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120
    )
    found = {int(index): list(map(int, sums)) for index, sums in loader}
    assert found == expected
