"""Correct kernels run right on the CUDA emulator, whatever the order of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulator_device import SEEDS, Device


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
