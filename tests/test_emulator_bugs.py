"""Every bug that is planted in a kernel is caught by the CUDA emulator, and its memory map is strict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulator_device import SEEDS, Device


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
