"""Scenes and short trainings that the tests of the demo share."""

from __future__ import annotations

import pytest
import torch
from fusedloss.demo import scenes
from fusedloss.demo.detection import Detection
from fusedloss.demo.recognition import Recognition
from fusedloss.demo.task import TaskResult
from fusedloss.demo.train import Schedule, train_both
from fusedloss.demo.verification import Verification


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
