"""The CUDA emulator itself: right results, exact counters, and every planted bug caught.

The kernels are in tests/emu/selftest. The module is found in the CMake build folder, which the
environment variable FUSEDLOSS_CMAKE_BUILD names (default: build/cmake in the repository).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = "fusedloss_emu_selftest"
SEEDS = range(12)


def load_module() -> ModuleType:
    folder = Path(os.environ.get("FUSEDLOSS_CMAKE_BUILD", REPOSITORY / "build" / "cmake"))
    found = sorted(folder.rglob(f"{MODULE}*.so"))
    if not found:
        pytest.fail(
            f"{MODULE} is not built: no {MODULE}*.so under {folder}. Build it with "
            f"`cmake -S . -B {folder} && cmake --build {folder}`, or name the build folder in "
            "FUSEDLOSS_CMAKE_BUILD."
        )
    sys.path.insert(0, str(found[0].parent))
    try:
        return importlib.import_module(MODULE)
    finally:
        sys.path.pop(0)


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
def module() -> ModuleType:
    return load_module()


@pytest.fixture
def device(module: ModuleType) -> Iterator[Device]:
    module.configure(seed=1, count=True, race_check=True, check_uninitialized=True)
    module.reset_counters()
    device = Device(module)
    yield device
    device.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


# ---- correct kernels ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_block_sum(device: Device, rng: np.random.Generator, seed: int) -> None:
    device.module.configure(seed=seed)
    x = device.array(rng.integers(-9, 9, 1000))
    out = device.zeros(4)
    assert device.run("block_sum", 4, 256, source=x, out=out, n=1000) == "cudaSuccess"
    padded = np.zeros(1024, np.float32)
    padded[:1000] = x
    np.testing.assert_array_equal(out, padded.reshape(4, 256).sum(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_patterns_are_no_races(
    device: Device, rng: np.random.Generator, seed: int
) -> None:
    device.module.configure(seed=seed)
    x = device.array(rng.integers(-9, 9, 3000))
    scratch = device.zeros(3100)
    out = device.zeros(3000)
    for _ in range(2):  # the ticket has to come back to zero
        device.run("last_block_sum", 12, 256, source=x, out=out, scratch=scratch, n=3000)
        assert out[0] == x.sum()
    scratch[:] = 0
    for _ in range(2):
        device.run("last_block_copy", 12, 256, source=x, out=out, scratch=scratch, n=3000)
        np.testing.assert_array_equal(out, x[::-1])
    assert device.counters("last_block_sum_kernel")["atomics"] == {"atomicInc.u32": 24}
    assert device.counters("last_block_copy_kernel")["atomics"] == {"atomicAdd.u32": 24}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kernel", "dtype"), [("f32", np.float32), ("u8", np.uint8)])
def test_transpose(device: Device, seed: int, kernel: str, dtype: Any) -> None:
    device.module.configure(seed=seed)
    x = device.array(np.arange(64 * 96).reshape(64, 96) % 251, dtype)
    out = device.zeros((96, 64), dtype)
    device.run(f"transpose_{kernel}", (3, 2), (32, 8), source=x, out=out, n=96, k=64)
    np.testing.assert_array_equal(out, x.T)
    counters = device.counters("transpose_kernel")
    assert counters["static_shared_bytes"] == 32 * 33 * x.itemsize
    assert counters["shared_read_bytes"] == counters["shared_written_bytes"] == x.nbytes
    for side in ("read", "write"):
        assert counters[side]["bytes"] == x.nbytes
        assert counters[side]["sectors"] == counters[side]["full_sectors"] == x.nbytes // 32


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kernel", "bytes_needed"), [("reverse", 512), ("reverse_bytes", 1040)])
def test_dynamic_shared_memory(device: Device, seed: int, kernel: str, bytes_needed: int) -> None:
    device.module.configure(seed=seed)
    x = device.array(np.arange(512))
    out = device.zeros(512)
    device.run(kernel, 4, 128, dynamic_bytes=bytes_needed, source=x, out=out)
    np.testing.assert_array_equal(out, x.reshape(4, 128)[:, ::-1].ravel())
    assert device.counters(f"{kernel}_kernel")["dynamic_shared_bytes"] == bytes_needed


def test_half_types(device: Device, rng: np.random.Generator) -> None:
    x = device.array(rng.normal(size=2048) * 1000, np.float16)
    for kernel in ("scale_half8", "scale_half2"):
        out = device.zeros(2048, np.float16)
        device.run(kernel, 8, 128, source=x, out=out, n=2048)
        np.testing.assert_array_equal(out, x * np.float16(2))
    assert device.counters("scale_pack_kernel")["read"]["accesses_by_width"] == {"16": 256}
    assert device.counters("scale_half2_kernel")["write"]["accesses_by_width"] == {"4": 1024}

    single = rng.normal(size=2048).astype(np.float32)
    bits = device.array(single.view(np.uint32) >> 16, np.uint16)  # truncated: exact bfloat16
    out = device.zeros(2048, np.uint16)
    device.run("scale_bfloat8", 2, 128, source=bits, out=out, n=2048)
    wide = out.astype(np.uint32) << 16
    np.testing.assert_array_equal(
        wide.view(np.float32), 2 * (bits.astype(np.uint32) << 16).view(np.float32)
    )


def test_half_overflow_denormal_nan(device: Device) -> None:
    x = device.array([40000, -40000, np.inf, 2**-24, -(2**-15), 0, -0.0, 3], np.float16)
    out = device.zeros(8, np.float16)
    device.run("scale_half8", 1, 1, source=x, out=out, n=8)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out.view(np.uint16), (x * np.float16(2)).view(np.uint16))
    x[:] = np.nan
    device.run("scale_half8", 1, 1, source=x, out=out, n=8)
    assert np.isnan(out).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_struct_in_shared_memory_of_a_template(device: Device, seed: int) -> None:
    device.module.configure(seed=seed)
    values = np.arange(128) * 37 % 101
    x = device.array(values)
    out = device.zeros(1)
    device.run("arg_max", 1, 128, source=x, out=out)
    assert values[int(out[0])] == values.max()
    counters = device.counters("arg_max_kernel")
    assert counters["barriers"] == 7
    assert counters["static_shared_bytes"] == 128 * 16


def test_constants(device: Device) -> None:
    out = device.zeros(64)
    device.run("constants", 1, 64, out=out, n=64, k=1)
    expected = np.resize([1.5, 10.25, 100.125, 1000.0625], 64)
    np.testing.assert_array_equal(out, expected)
    assert device.counters("constants_kernel")["read"]["bytes"] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_counting_barriers(device: Device, seed: int) -> None:
    device.module.configure(seed=seed)
    x = np.full((3, 64), -1.0)
    x[1, :5] = 1
    x[2] = 1
    x = device.array(x)
    out = device.zeros((3, 64))
    device.run("counted_barrier", 3, 64, source=x, out=out)
    np.testing.assert_array_equal(out, np.repeat([[0], [5 * 4 + 1], [64 * 4 + 3]], 64, axis=1))
    assert device.counters("counted_barrier_kernel")["barriers"] == 9


def test_integer_atomics(device: Device, rng: np.random.Generator) -> None:
    values = rng.integers(0, 16, 1000)
    x = device.array(values)
    out = device.zeros(16, np.uint32)
    device.run("histogram", 4, 256, source=x, out=out, n=1000)
    np.testing.assert_array_equal(out, np.bincount(values, minlength=16))
    counters = device.counters("histogram_kernel")
    assert counters["atomics"] == {"atomicAdd.u32": 1000 + 4 * 16}
    assert counters["float_atomics"] == 0


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("s32", np.int32),
        ("u32", np.uint32),
        ("s64", np.int64),
        ("f32", np.float32),
        ("f64", np.float64),
    ],
)
def test_shuffles(device: Device, kernel: str, dtype: Any, width: int) -> None:
    out = device.zeros((4, 32), dtype)
    device.run(f"shuffle_{kernel}", 1, 32, out=out, k=width)
    lane = np.arange(32)
    segment = lane // width * width
    last = segment + width - 1
    up, down, xor = lane - 3, lane + 5, lane ^ 6
    sources = [
        segment + (lane * 7 + 5) % width,
        np.where(up >= segment, up, lane),
        np.where(down <= last, down, lane),
        np.where(xor <= last, xor, lane),
    ]
    np.testing.assert_array_equal(out, np.array(sources) * 3 + 1)
    assert device.counters("shuffle_kernel")["warp_collectives"] == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_votes_and_reductions(device: Device, seed: int) -> None:
    device.module.configure(seed=seed)
    votes = 0xFFFF0421
    out = device.zeros((8, 32), np.uint32)
    device.run("vote", 1, 32, out=out, n=votes)
    low, high = out[:, :16], out[:, 16:]
    assert (low[0] == 0x0421).all()
    assert (high[0] == 0xFFFF0000).all()
    assert (out[1] == 1).all()
    assert (low[2] == 0).all()
    assert (high[2] == 1).all()
    groups = np.arange(32) // 5
    expected = [sum(1 << j for j in range(32) if groups[j] == g) for g in groups]
    np.testing.assert_array_equal(out[3], np.array(expected, np.uint32))
    assert (low[4] == 120).all()
    assert (high[4] == 376).all()
    assert (low[5].view(np.int32) == -12).all()
    assert (high[5].view(np.int32) == -28).all()
    assert (low[6] == 15).all()
    assert (high[6] == 31).all()
    assert (out[7] >> np.arange(32, dtype=np.uint32) & 1 == 1).all()  # the caller's own lane


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_barriers_order_lanes(device: Device, seed: int) -> None:
    device.module.configure(seed=seed)
    x = device.array(np.arange(128))
    out = device.zeros(128)
    device.run("warp_tree", 1, 128, source=x, out=out)
    np.testing.assert_array_equal(out, np.repeat(x.reshape(4, 32).sum(1), 32))


def test_scalar_intrinsics_and_atomic_kinds(device: Device) -> None:
    out = device.zeros(19, np.int64)
    scratch = device.array([7, 0, 0, 0], np.uint32)
    device.run("scalar", 1, 1, out=out, scratch=scratch)
    assert out.tolist() == [
        8,
        31,
        4,
        0x80000000,
        3,
        -1,
        3,
        0x3F800000,
        0x4000000000000000,
        3,
        10,
        35,
        11,
        7 + 5,
        9 + 8 + 11,
        10 + 77,
        78,
        0,
        1 << 40,
    ]
    assert device.counters("scalar_kernel")["atomics"] == {
        "atomicMin.u32": 1,
        "atomicMax.u32": 1,
        "atomicAnd.u32": 1,
        "atomicOr.u32": 1,
        "atomicXor.u32": 1,
        "atomicExch.u32": 1,
        "atomicCAS.u32": 2,
        "atomicAdd.u64": 1,
    }


# ---- counters -----------------------------------------------------------------------------------


def test_counters_of_a_coalesced_kernel(device: Device) -> None:
    x, out = device.array(np.arange(4096)), device.zeros(4096)
    device.run("stride", 4, 256, source=x, out=out, n=4096, k=1)
    np.testing.assert_array_equal(out, 2 * x)
    expected = {
        "bytes": 16384,
        "requests": 128,
        "sectors": 4 * 128,
        "full_sectors": 4 * 128,
        "used_bytes": 16384,
        "unique_sectors": 512,
        "unique_bytes": 16384,
        "accesses_by_width": {"4": 4096},
    }
    counters = device.counters("stride_kernel")
    assert counters["read"] == expected
    assert counters["write"] == expected
    assert [counters[key] for key in ("launches", "blocks", "threads")] == [1, 4, 1024]


def test_counters_of_an_uncoalesced_kernel(device: Device) -> None:
    x, out = device.array(np.arange(8 * 1024)), device.zeros(1024)
    device.run("stride", 4, 256, source=x, out=out, n=1024, k=8)
    read = device.counters("stride_kernel")["read"]
    assert read["requests"] == 32
    assert read["sectors"] == 32 * 32
    assert read["full_sectors"] == 0
    assert read["used_bytes"] == 4 * 1024  # one eighth of the sectors
    assert read["bytes"] == 4 * 1024
    assert read["unique_bytes"] == 8 * 4 * 1024


def test_counters_of_a_misaligned_start(device: Device) -> None:
    x, out = device.array(np.arange(32), offset=4), device.zeros(32)
    device.run("stride", 1, 32, source=x, out=out, n=32, k=1)
    read = device.counters("stride_kernel")["read"]
    # Five sectors; of the first and last only what belongs to the array, and all of that is used.
    assert (read["requests"], read["sectors"], read["full_sectors"]) == (1, 5, 5)


def test_counters_tell_rereads_from_first_reads(device: Device) -> None:
    x, out = device.array(np.arange(32)), device.zeros(1024)
    device.run("stride", 4, 256, source=x, out=out, n=1024, k=0)
    read = device.counters("stride_kernel")["read"]
    assert read["bytes"] == 4 * 1024
    assert read["sectors"] == 32
    assert read["unique_sectors"] == 1


def test_vector_access_is_one_request(device: Device) -> None:
    x, out = device.array(np.arange(1024)), device.zeros(1024)
    device.run("copy_float4", 1, 256, source=x, out=out, n=1024)
    np.testing.assert_array_equal(out, x)
    counters = device.counters("copy_float4_kernel")
    for side in ("read", "write"):
        assert counters[side]["accesses_by_width"] == {"16": 256}
        assert counters[side]["requests"] == 8
        assert counters[side]["sectors"] == counters[side]["full_sectors"] == 128


def test_counting_can_be_switched_off(device: Device) -> None:
    device.module.configure(count=False, race_check=False)
    x, out = device.array(np.arange(4096)), device.zeros(4096)
    device.run("stride", 4, 256, source=x, out=out, n=4096, k=1)
    counters = device.counters("stride_kernel")
    assert counters["read"]["bytes"] == 0
    assert counters["launches"] == 1


def test_copies_are_counted_as_launches_of_their_own(device: Device) -> None:
    x, out = device.array(np.arange(64)), device.zeros(64)
    module = device.module
    device_to_device = 3
    assert module.copy(out.ctypes.data, x.ctypes.data, 256, device_to_device) == "cudaSuccess"
    np.testing.assert_array_equal(out, x)
    assert module.fill(out.ctypes.data, 0, 128) == "cudaSuccess"
    assert (out[:32] == 0).all()
    assert (out[32:] == x[32:]).all()
    assert module.fill(out.ctypes.data, 0, 260) == "cudaErrorInvalidValue"
    assert module.last_status() == "cudaErrorInvalidValue"
    assert module.last_status() == "cudaSuccess"
    assert device.counters("cudaMemcpyAsync")["launches"] == 1
    assert device.counters("cudaMemsetAsync")["write"]["bytes"] == 128


def test_float_atomics_are_counted(device: Device) -> None:
    out = device.zeros(1)
    device.run("float_atomic", 2, 64, out=out)
    assert out[0] == 128
    counters = device.counters("float_atomic_kernel")
    assert counters["float_atomics"] == 128
    assert counters["atomics"] == {"atomicAdd.f32": 128}


# ---- planted bugs -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "k"),
    [
        ("shared_race", 1),
        ("shared_race", 32),
        ("missing_barrier", 0),
        ("missing_second_barrier", 0),
        ("global_race", 0),
        ("byte_race", 0),
        ("atomic_and_plain", 0),
    ],
)
def test_race_within_a_block_is_caught(device: Device, seed: int, kernel: str, k: int) -> None:
    device.module.configure(seed=seed, check_uninitialized=False)
    x, out, scratch = device.array(np.arange(512)), device.zeros(512), device.zeros(64)
    with pytest.raises(device.KernelError, match="data race within a block") as error:
        device.run(kernel, 1, 256, source=x, out=out, scratch=scratch, n=256, k=k)
    assert f"{kernel}_kernel" in str(error.value)
    assert str(error.value).count("races.cu:") == 2  # both accesses, with their lines


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_warp_barrier_is_caught(device: Device, seed: int) -> None:
    device.module.configure(seed=seed, check_uninitialized=False)
    x, out = device.array(np.arange(32)), device.zeros(32)
    device.run("missing_warp_barrier", 1, 32, source=x, out=out, k=1)
    np.testing.assert_array_equal(out, x[::-1])
    with pytest.raises(device.KernelError, match="data race within a block"):
        device.run("missing_warp_barrier", 1, 32, source=x, out=out, k=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "k"),
    [("block_race", 0), ("in_place_stencil", 0), ("last_block_bug", 0), ("last_block_bug", 1)],
)
def test_race_between_blocks_is_caught(device: Device, seed: int, kernel: str, k: int) -> None:
    device.module.configure(seed=seed)
    out, scratch = device.zeros(512), device.zeros(600)
    with pytest.raises(device.KernelError, match="data race between blocks"):
        device.run(kernel, 4, 128, out=out, scratch=scratch, n=512, k=k)


def test_neighbouring_bytes_are_no_race(device: Device) -> None:
    out = device.zeros(256, np.uint8)
    device.run("byte_race", 1, 256, out=out, k=1)
    assert (out == 1).all()


def test_race_check_can_be_switched_off(device: Device) -> None:
    device.module.configure(race_check=False)
    out = device.zeros(512)
    device.run("global_race", 1, 256, out=out)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "k", "distance"),
    [
        ("write_past_end", 1, "0 bytes past the end of"),
        ("write_past_end", -1, "4 bytes before"),
        ("read_past_end", 1, "0 bytes past the end of"),
        ("read_past_end", -1, "4 bytes before"),
    ],
)
def test_out_of_bounds_is_caught(
    device: Device, kernel: str, k: int, distance: str, seed: int, fast: bool
) -> None:
    device.module.configure(seed=seed, count=not fast, race_check=not fast)
    x, out = device.array(np.arange(1024), name="x"), device.zeros(1024, name="out")
    with pytest.raises(device.KernelError, match="out-of-bounds") as error:
        device.run(kernel, 4, 256, source=x, out=out, n=1024, k=k)
    message = str(error.value)
    verb, name = ("write", "out") if kernel.startswith("write") else ("read", "x")
    thread = "block (3,0,0), thread (255,0,0)" if k > 0 else "block (0,0,0), thread (0,0,0)"
    line = "bugs.cu:"
    for part in (f"{verb} of 4 bytes", thread, f"{distance} '{name}'", line):
        assert part in message
    assert device.module.last_error() == message


def test_device_works_after_an_error(device: Device) -> None:
    x, out = device.array(np.arange(256)), device.zeros(256)
    for _ in range(3):
        with pytest.raises(device.KernelError):
            device.run("exit_before_barrier", 1, 256, out=out, k=8)
        device.run("block_sum", 1, 256, source=x, out=out, n=256)
        assert out[0] == x.sum()
    assert device.module.last_error() == ""


def test_host_memory_is_out_of_bounds(device: Device) -> None:
    host = np.zeros(256, np.float32)
    with pytest.raises(device.KernelError, match="out-of-bounds write"):
        device.run("write_past_end", 1, 256, out=host)
    with pytest.raises(device.KernelError, match="out-of-bounds write"):
        device.run("write_past_end", 1, 256, out=0)


def test_dynamic_shared_memory_has_exact_bounds(device: Device) -> None:
    out = device.zeros(64)
    device.run("dynamic_shared_past_end", 1, 64, dynamic_bytes=256, out=out, k=0)
    with pytest.raises(device.KernelError, match="past the end of 'dynamic shared memory' \\(256"):
        device.run("dynamic_shared_past_end", 1, 64, dynamic_bytes=256, out=out, k=1)


@pytest.mark.parametrize("kernel", ["misaligned_float4", "copy_four"])
def test_misaligned_vector_access_is_caught(device: Device, kernel: str) -> None:
    x, out = device.array(np.arange(1024)), device.zeros(1024)
    device.run(kernel, 1, 32, source=x, out=out, k=4)
    for k in (1, 2, 3):
        with pytest.raises(device.KernelError, match=r"misaligned access.* multiple of 16") as e:
            device.run(kernel, 1, 32, source=x, out=out, k=k)
        assert "bugs.cu:" in str(e.value)


def test_alignment_is_that_of_the_type(device: Device) -> None:
    """A 16-byte struct of two doubles is 8-byte aligned."""
    x, out = device.array(np.arange(1024)), device.zeros(1024)
    device.run("copy_pair", 1, 32, source=x, out=out, k=2)
    np.testing.assert_array_equal(out[:128], x[2:130])
    with pytest.raises(device.KernelError, match=r"misaligned access.* multiple of 8"):
        device.run("copy_pair", 1, 32, source=x, out=out, k=1)


def test_uninitialized_shared_memory_is_caught(device: Device) -> None:
    out = device.zeros(64)
    device.run("uninitialized_shared", 1, 64, out=out, k=64)
    # A block before has written the same bytes; they are poisoned again.
    with pytest.raises(device.KernelError, match="uninitialised"):
        device.run("uninitialized_shared", 1, 64, out=out, k=63)
    device.module.configure(check_uninitialized=False)
    device.run("uninitialized_shared", 1, 64, out=out, k=63)
    assert np.isnan(out[63])
    assert (out[:63] == 1).all()


def test_uninitialized_device_memory_is_caught(device: Device) -> None:
    module = device.module
    address = module.alloc(1024, "fresh")
    try:
        with pytest.raises(device.KernelError, match="uninitialised"):
            device.run("accumulate", 1, 256, out=address)
        assert module.fill(address, 0, 1024) == "cudaSuccess"
        device.run("accumulate", 1, 256, out=address)
        with pytest.raises(device.KernelError, match="past the end of 'fresh'"):
            device.run("accumulate", 1, 512, out=address)
    finally:
        module.free(address)
    with pytest.raises(device.KernelError, match="out-of-bounds"):
        device.run("accumulate", 1, 256, out=address)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("exit_before_barrier", "divergent __syncthreads"),
        ("two_barriers", "divergent __syncthreads"),
        ("mask_of_exited_lanes", "warp operation can not complete"),
        ("mask_without_caller", "does not name the calling lane"),
        ("shuffle_against_barrier", "deadlock"),
        ("trap", "__trap"),
        ("other_stack", "another thread's local memory"),
    ],
)
def test_divergence_is_caught(device: Device, kernel: str, message: str, seed: int) -> None:
    device.module.configure(seed=seed)
    out, scratch = device.zeros(128), device.zeros(512)
    with pytest.raises(device.KernelError, match=message):
        device.run(kernel, 2, 64, out=out, scratch=scratch, k=40)


def test_mask_of_missing_lanes_is_caught(device: Device) -> None:
    out = device.zeros(64)
    with pytest.raises(device.KernelError, match="lanes that the block does not have"):
        device.run("mask_of_exited_lanes", 1, 48, out=out, k=48)


@pytest.mark.parametrize(
    ("grid", "block", "dynamic_bytes", "status"),
    [
        (1, 1025, 0, "cudaErrorInvalidConfiguration"),
        (1, (32, 33), 0, "cudaErrorInvalidConfiguration"),
        (1, (1, 1, 65), 0, "cudaErrorInvalidConfiguration"),
        (1, 0, 0, "cudaErrorInvalidConfiguration"),
        (0, 32, 0, "cudaErrorInvalidConfiguration"),
        ((1, 65536), 32, 0, "cudaErrorInvalidConfiguration"),
        (2**31, 32, 0, "cudaErrorInvalidConfiguration"),
        (1, 32, 48 * 1024 + 1, "cudaErrorInvalidValue"),
        (1, 32, 48 * 1024, "cudaSuccess"),
    ],
)
def test_launch_limits(
    device: Device, grid: Any, block: Any, dynamic_bytes: int, status: str
) -> None:
    out = device.zeros(32)
    given = device.run("dynamic_shared_past_end", grid, block, dynamic_bytes=dynamic_bytes, out=out)
    assert given == status
    assert device.module.last_status() == status


def test_opting_in_to_more_shared_memory(device: Device) -> None:
    out = device.zeros(128)
    x = device.array(np.arange(128))
    sizes = {"dynamic_bytes": 100 * 1024, "source": x, "out": out}
    assert device.run("reverse", 1, 128, **sizes) == "cudaErrorInvalidValue"
    too_much = 228 * 1024
    assert device.module.allow_dynamic_bytes("reverse", too_much) == "cudaErrorInvalidValue"
    assert device.module.allow_dynamic_bytes("reverse", 227 * 1024) == "cudaSuccess"
    assert device.run("reverse", 1, 128, **sizes) == "cudaSuccess"
    np.testing.assert_array_equal(out, x[::-1])


def test_too_much_static_shared_memory_is_caught(device: Device) -> None:
    out = device.zeros(32)
    with pytest.raises(device.KernelError, match="too much shared memory: 53248 bytes static"):
        device.run("too_much_static", 1, 32, out=out)


# ---- the memory map -----------------------------------------------------------------------------


def test_overlapping_ranges_are_refused(device: Device) -> None:
    x = device.array(np.arange(64), name="x")
    module = device.module
    with pytest.raises(ValueError, match="'y' overlaps 'x'"):
        module.register_range(x.ctypes.data + 4, 16, "y")
    module.register_range(x.ctypes.data, x.nbytes, "again")
    module.unregister_range(x.ctypes.data)
    device.run("stride", 1, 32, source=x, out=device.zeros(32), n=32, k=1)


def test_unknown_setting_is_refused(device: Device) -> None:
    with pytest.raises(TypeError, match="'speed'"):
        device.module.configure(speed=3)


def test_results_do_not_depend_on_earlier_launches(device: Device) -> None:
    """The same seed and launch give the same counters, whatever ran before."""
    x, out = device.array(np.arange(4096)), device.zeros(16)
    seen = []
    for _ in range(3):
        device.module.reset_counters()
        device.run("block_sum", 16, 256, source=x, out=out, n=4096)
        seen.append(device.counters("block_sum_kernel"))
    assert seen[0] == seen[1] == seen[2]
