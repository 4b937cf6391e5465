"""The Triton kernels compiled ahead of time for GPUs that are not here: registers, spills, the width of
loads. The table is printed under -s.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compiled_kernels
import pytest
import torch
from fusedloss._mining import WANTED
from torch import Tensor

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton as a compiler"
)
needs_cuobjdump = pytest.mark.skipif(compiled_kernels.cuobjdump() is None, reason="needs cuobjdump")

CAPABILITIES = (80, 90, 100)
AMD = ("gfx90a", "gfx942")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    name: str
    capability: int
    registers: int
    local_bytes: int
    wide_loads: int


def compile_for(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *target: Any) -> Any:
    """As a launch with these arguments would have it: what Triton leaves, by name."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    gpu = GPUTarget(*target)
    backend = make_backend(gpu)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, **kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=gpu, options=options.__dict__).asm


def for_nvidia(
    kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], capability: int, folder: Path
) -> Compiled:
    """With what cuobjdump says of it."""
    asm = compile_for(kernel, args, kwargs, "cuda", capability, 32)
    path = folder / "kernel.cubin"
    path.write_bytes(asm["cubin"])
    listed = subprocess.run(
        [str(compiled_kernels.cuobjdump()), "-res-usage", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listed)
    assert usage is not None, listed
    wide = len(re.findall(r"ld\.global\S*\.v4\.b32", asm["ptx"]))
    registers, stack, _, local = map(int, usage.groups())
    return Compiled(kernel.fn.__name__, capability, registers, stack + local, wide)


Launches = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]  # kernels, arguments, keywords


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """What the operators would launch."""
    from triton.runtime.jit import JITFunction

    noted: Launches = []

    def note(self: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
        noted.append((self, args, kwargs))

    monkeypatch.setattr(JITFunction, "run", note)
    return noted


def rows(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.empty(shape, dtype=dtype)
    return x, torch.zeros([shape[0], *shape[2:]], dtype=torch.int64)


IMAGES, VOCABULARY, VECTORS = (2, 19, 64, 128), (64, 32768), (4096, 64)
VOLUMES = (2, 4, 64, 64, 64)
OVERLAP = (2.0, 0.0, 1.0, 1.0, 0.0, 1e-6, 1.0, False, 0, False, 0)
GENERALIZED = (*OVERLAP[:8], 3, *OVERLAP[9:])  # by the square of each class's size


def cross_entropy(ops: Any, x: Tensor, target: Tensor, smoothing: float) -> None:
    one, scale = torch.ones(()), torch.ones(2)
    numbers = (None, smoothing, False, 0.0, -100)
    ops.cross_entropy_fwd(x, target, *numbers, 2, True, False)
    ops.cross_entropy_fwd(x, target, *numbers, 2, False, True)
    ops.cross_entropy_bwd(one, scale, torch.empty(2, *target.shape), x, target, *numbers)


def losses(ops: Any, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """By name, calls of the operators."""
    image, pixels = rows(IMAGES, dtype)
    words, word = rows(VOCABULARY, dtype)
    vectors, label = rows(VECTORS, dtype)
    volume, voxels = rows(VOLUMES, dtype)
    one, scale = torch.ones(()), torch.ones(2)
    saved = torch.empty(3, *pixels.shape)
    dense = torch.rand(IMAGES)
    boxes, factor = torch.empty(VECTORS), torch.empty(VECTORS[0], 1)
    focal = (None, None, 0.25, 2.0, -100, 0.0)
    margins = (None, None, None, 64.0, 1.0, 0.5, 0.0, False, True, False, 0.0, float("inf"), -100)
    regions = (0, 0.0, 0.0, False, 0.0, 1.0, False, False, -100)
    joined = (1.0, 1, 1.0, 0.1, False, 0.0, 1.0, False, False, -100, 2, True)
    bits = torch.zeros(pixels.shape, dtype=torch.int32)
    element_bits = torch.zeros(IMAGES, dtype=torch.int32)
    selection = torch.zeros(1, 2, dtype=torch.int32)
    return {
        "images": lambda: cross_entropy(ops, image, pixels, 0.0),
        "images, smoothed": lambda: cross_entropy(ops, image, pixels, 0.1),
        "words": lambda: cross_entropy(ops, words, word, 0.1),
        "softmax focal": lambda: ops.softmax_focal_fwd(
            image, pixels, None, None, 1.0, 1.5, 0.0, 0.0, -100, 2, False, True
        ),
        "arcface": lambda: ops.margin_softmax_fwd(words, word, *margins, 2, False, True),
        "arcface, backward": lambda: ops.margin_softmax_bwd(
            one, scale, torch.empty(3, VOCABULARY[0]), words, word, *margins
        ),
        "focal": lambda: ops.sigmoid_focal_fwd(
            image, dense, None, None, None, *focal[2:], 0.0, 2, True
        ),
        "focal, backward": lambda: ops.sigmoid_focal_bwd(one, scale, image, dense, *focal),
        "boxes": lambda: ops.smooth_l1_fwd(vectors, boxes, None, None, 1.0, 0.0, 2, True),
        "boxes, backward": lambda: ops.smooth_l1_bwd(one, scale, vectors, boxes, factor, 1.0),
        "scale": lambda: ops.scale_gradient(image, one, scale),
        "dice": lambda: ops.softmax_regions_fwd(
            image, pixels, None, None, *OVERLAP, 1.0, *regions, 2, True, False
        ),
        "dice with cross entropy of volumes": lambda: ops.softmax_regions_fwd(
            volume, voxels, None, None, *OVERLAP, *joined, False
        ),
        "generalized dice": lambda: ops.softmax_regions_fwd(
            image, pixels, None, None, *GENERALIZED, 1.0, *regions, 2, True, False
        ),
        "dice, backward": lambda: ops.softmax_regions_bwd(
            one, scale, saved[:2], torch.empty(38, 2), image, pixels, None, False, 0, 0, 0.0,
            False, 0.0, 1.0, False, False, -100,
        ),
        "dice of vectors": lambda: ops.softmax_regions_fwd(
            vectors, label, None, None, *OVERLAP, 1.0, *regions, 2, True, False
        ),
        "dice of vectors, backward": lambda: ops.softmax_regions_bwd(
            one, scale, torch.empty(2, VECTORS[0]), torch.empty(64 * VECTORS[0], 2), vectors, label,
            None, False, 0, 0, 0.0, False, 0.0, 1.0, False, False, -100,
        ),
        "dice with cross entropy": lambda: ops.softmax_regions_fwd(
            image, pixels, None, None, *OVERLAP, *joined, False
        ),
        "sigmoid dice": lambda: ops.element_regions_fwd(
            image, dense, None, None, *OVERLAP, 1.0, 1, 0, 1.0, 0.0, 0.0, -1.0, False, False, -100,
            2,
        ),
        "sigmoid dice of vectors": lambda: ops.element_regions_fwd(
            vectors, label, None, None, *OVERLAP, 1.0, 1, 0, 1.0, 0.0, 0.0, -1.0, False, False,
            -100, 2,
        ),
        "ohem": lambda: ops.mined_cross_entropy_fwd(
            image, pixels, None, 0.36, WANTED["together"], 1000, 0.0, True, -100, 2, False
        ),
        "ohem, backward": lambda: ops.mined_cross_entropy_bwd(
            one, scale[0], bits, selection, image, pixels, None, -100
        ),
        "balanced": lambda: ops.mined_binary_cross_entropy_fwd(
            image, dense, None, True, 0b1111, 3.0, 0, 1e-6, 2
        ),
        "balanced, backward": lambda: ops.mined_binary_cross_entropy_bwd(
            one, scale[0], element_bits, selection, image, dense, True, 0b1111
        ),
    }  # fmt: skip


def calls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    from fusedloss._triton.ops import OPERATORS

    return losses(SimpleNamespace(**OPERATORS), dtype)


@needs_cuobjdump
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_compiles_without_spills(
    launches: Launches, dtype: torch.dtype, tmp_path: Path
) -> None:
    print(f"\n{'call':<26} {'kernel':<26} {'arch':<7} {'regs':>4} {'local':>5} {'wide':>4}")
    for name, call in calls(dtype).items():
        launches.clear()
        call()
        compiled = [
            for_nvidia(*launch, capability, tmp_path)
            for launch in launches
            for capability in CAPABILITIES
        ]
        assert compiled
        for k in compiled:
            print(
                f"{name:<26} {k.name:<26} sm_{k.capability:<4} {k.registers:4} {k.local_bytes:5} "
                f"{k.wide_loads:4}"
            )
            assert k.local_bytes == 0, f"{name}: {k.name} on sm_{k.capability} spills"
        main = [
            k for k in compiled if k.name.split("_")[0] in ("row", "pointwise", "region", "mined")
        ]
        if main and main[0].name != "mined_finish_kernel" and name != "scale":
            assert main[0].wide_loads > 0, f"{name}: {main[0].name} loads less than 16 bytes a time"


@pytest.mark.parametrize("arch", AMD)
def test_every_kernel_compiles_for_amd(launches: Launches, arch: str) -> None:
    print(f"\n{'call':<26} {'kernel':<26} {'arch':<7} {'vgprs':>5} {'scratch':>7}")
    for name, call in calls(torch.float32).items():
        launches.clear()
        call()
        assert launches
        for launch in launches:
            asm = compile_for(*launch, "hip", arch, 64)
            assert asm["hsaco"].startswith(b"\x7fELF")
            numbers = dict(re.findall(r"\.(\w+): +(\d+)$", asm["amdgcn"], re.MULTILINE))
            scratch = int(numbers["private_segment_fixed_size"])
            kernel = launch[0].fn.__name__
            print(f"{name:<26} {kernel:<26} {arch:<7} {numbers['vgpr_count']:>5} {scratch:7}")
            assert scratch == 0, f"{name}: {kernel} on {arch} spills"


@pytest.mark.filterwarnings("error:.*exceeds the maximum bitwidth")
def test_no_shift_by_all_bits_of_float64(launches: Launches) -> None:
    """Which is undefined: 0 where interpreted, and a wrong selection of losses on a GPU."""
    from fusedloss._triton.ops import OPERATORS

    image, pixels = rows(IMAGES, torch.float64)
    SimpleNamespace(**OPERATORS).mined_cross_entropy_fwd(
        image, pixels, None, 0.36, WANTED["together"], 1000, 0.0, True, -100, 2, False
    )
    for launch in launches:
        assert compile_for(*launch, "cuda", 90, 32)["ptx"]
