"""Shared fixtures: the emulated device, switches put back after every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

# torch.compile's cache on disk knows nothing of what our operators' fakes return: a graph compiled with
# an earlier version of them would be taken for this one's.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import fusedloss
import pytest
import torch
from emulated import load_testing_module
from emulator_device import device, rng, selftest_module  # noqa: F401

# Not skipped but left out: a run without a GPU must not look as if it had tested one.
GPU_TESTS = ["test_cuda.py", "test_cuda_regions.py", "test_cuda_mining.py", "test_cuda_triton.py"]
collect_ignore = [] if torch.cuda.is_available() else list(GPU_TESTS)
if os.environ.get("TRITON_INTERPRET") != "1":  # which runs by itself, as the kernels read it once
    collect_ignore.append("test_triton.py")
if os.environ.get("FUSEDLOSS_LARGE") != "1":  # minutes, and most of the memory: make test-slow
    collect_ignore.append("test_large.py")


def pytest_report_header() -> str:
    """What this run can and cannot test."""
    gpu = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"none, {', '.join(GPU_TESTS)} left out"
    )
    return f"fusedloss {fusedloss.__version__}, torch {torch.__version__}, GPU: {gpu}"


@pytest.fixture(scope="session")
def emulator() -> ModuleType:
    """The test module with the CUDA kernels on the emulator."""
    return load_testing_module()


@pytest.fixture(autouse=True)
def _default_switches() -> Iterator[None]:
    threads = torch.get_num_threads()
    with (
        fusedloss.backend("auto"),
        fusedloss.gradient_schedule("auto"),
        fusedloss.debug(False),
    ):
        yield
    torch.set_num_threads(threads)
