"""The CUDA emulator's counters: exact launches, bytes, sectors and requests."""

from __future__ import annotations

import numpy as np
from emulator_device import Device


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
