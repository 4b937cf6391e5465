"""The emulated device as the emulator's own tests use it (kernels in tests/emu/selftest)."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from emulated import load_module

SEEDS = range(12)


class Device:
    """The emulated device, with arrays of the test's registered as its memory."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.KernelError = module.KernelError
        self.registered: list[np.ndarray] = []

    def array(
        self, values: Any, dtype: Any = np.float32, *, name: str = "array", offset: int = 0
    ) -> np.ndarray:
        """A registered copy whose address is `offset` bytes past a multiple of 256."""
        values = np.asarray(values, dtype=dtype)
        raw = np.full(values.nbytes + 512, 0xA5, np.uint8)
        start = -raw.ctypes.data % 256 + offset
        result: np.ndarray = (
            raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        )
        result[...] = values
        self.module.register_range(result.ctypes.data, result.nbytes, name)
        self.registered.append(result)
        return result

    def zeros(self, shape: Any, dtype: Any = np.float32, **how: Any) -> np.ndarray:
        return self.array(np.zeros(shape, dtype), dtype, **how)

    def run(self, kernel: str, grid: Any, block: Any, **arguments: Any) -> str:
        def three(size: Any) -> tuple[int, ...]:
            given = [size] if isinstance(size, int) else list(size)
            return tuple(given + [1] * (3 - len(given)))

        pointers = {
            key: value.ctypes.data if isinstance(value, np.ndarray) else value
            for key, value in arguments.items()
        }
        return str(self.module.run(kernel, three(grid), three(block), **pointers))

    def counters(self, name: str) -> dict[str, Any]:
        return next(c for c in self.module.counters() if c["name"] == name)

    def close(self) -> None:
        for array in self.registered:
            self.module.unregister_range(array.ctypes.data)


@pytest.fixture(scope="module")
def selftest_module() -> ModuleType:
    return load_module("fusedloss_emu_selftest")


@pytest.fixture
def device(selftest_module: ModuleType) -> Iterator[Device]:
    module = selftest_module
    module.configure(seed=1, count=True, race_check=True, check_uninitialized=True)
    module.reset_counters()
    device = Device(module)
    yield device
    device.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
