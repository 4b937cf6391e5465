"""What the CUDA compiler made of the kernels: registers, local and shared memory, occupancy; read from
the machine code in the library, by the cuobjdump of the CUDA toolkit or of triton.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fusedloss import _ops

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # those that the tables are of
REGISTERS_PER_MULTIPROCESSOR = 65536
THREADS_PER_MULTIPROCESSOR = 2048  # sm_80, sm_90 and sm_100
# Of sm_80, the smallest. A block costs 1 KB beside its own, which the figures of sm_90 and later hold.
SHARED_PER_MULTIPROCESSOR = 164 * 1024
THREADS_PER_BLOCK = 256
# Launches that are not of 256 threads without dynamic shared memory: (threads, bytes) as
# kernels/cuda/row_softmax_launch.cuh, region_rows_launch.cuh and select.cu plan them, the largest of
# each kind. Fewer threads for double.
LAUNCHES = {
    "row_tile_kernel": [(256, 32 * 1024 + 16)],
    "row_block_kernel": [(128, 8208), (256, 16400), (512, 32784), (1024, 47 * 1024)],
    "row_pixels_kernel": [(256, 10 * 1024)],
    "row_finish_kernel": [(1024, 0)],
    "region_rows_kernel": [(256, 39 * 1024)],
    "region_rows_gradient_kernel": [(256, 39 * 1024)],
    "region_finish_kernel": [(512, 0)],
    "select_finish_kernel": [(1024, 0)],
    "select_slices_kernel": [(512, 0)],
    "select_slices_finish_kernel": [(1024, 0)],
}
MINED_TILE_BYTES = 24 * 1024 + 16  # beside the counts


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    name: str
    architecture: str
    registers: int
    local_bytes: int  # the stack frame: spilled registers, arrays that are not in registers
    shared_bytes: int

    @property
    def is_double(self) -> bool:
        """Whether its arithmetic is in float64."""
        return "double" in self.name

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's threads that registers (allocated in units of 8) and shared
        memory allow: that of the worst launch.
        """
        per_thread = -(-self.registers // 8) * 8
        launches = LAUNCHES.get(re.split(r"[<(]", self.name)[0], [(THREADS_PER_BLOCK, 0)])
        shares = []
        for threads, dynamic in launches:
            if self.is_double and "row_block" in self.name:
                threads = min(threads, 512)
            if "MinedRows" in self.name and "row_tile" in self.name:
                dynamic = min(dynamic, MINED_TILE_BYTES)
            own = self.shared_bytes + (1024 if self.architecture == "sm_80" else 0)
            shared = max(own, 1024) + dynamic
            blocks = min(
                REGISTERS_PER_MULTIPROCESSOR // (per_thread * threads),
                SHARED_PER_MULTIPROCESSOR // shared,
            )
            shares.append(min(1.0, blocks * threads / THREADS_PER_MULTIPROCESSOR))
        return min(shares)


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    return shutil.which("nvcc")


def cuobjdump() -> str | None:
    """The disassembler of the CUDA toolkit, else triton's, or None."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    try:
        import triton
    except ImportError:
        return None
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if os.access(path, os.X_OK) else None


def is_readable() -> bool:
    """Whether there is a library with CUDA kernels, and a program to read them."""
    return bool(_ops.build_facts()["cuda"]) and cuobjdump() is not None


def disassemble(*options: str) -> str:
    """What cuobjdump says of the library's kernels."""
    command = [str(cuobjdump()), *options, str(_ops.library_path())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _readable(names: list[str]) -> list[str]:
    listed = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    short = []
    for name in listed.stdout.splitlines():
        name = re.sub(r"fusedloss::(cuda::)?(\(anonymous namespace\)::)?", "", name)
        name = name.replace("(Pass)0", "loss").replace("(Pass)1", "loss+grad")
        name = name.replace("(Pass)2", "grad").removeprefix("void ")
        short.append(
            re.sub(
                r"\((PointwiseCall|RowSoftmaxCall|ScaleCall|RegionPartials|MinedElements|Select).*",
                "",
                name,
            )
        )
    return short


def compiled_kernels() -> list[Kernel]:
    """Every kernel for each of the architectures that the library holds."""
    listed = re.findall(
        r"^arch = (\S+)|^ Function (\S+):|^\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        disassemble("-res-usage"),
        re.MULTILINE,
    )
    kernels = []
    architecture = name = ""
    names = iter(_readable([row[1] for row in listed if row[1]]))
    for row in listed:
        if row[0]:
            architecture = row[0]
        elif row[1]:
            name = next(names)
        elif architecture in ARCHITECTURES:
            registers, stack, shared, local = map(int, row[2:])
            kernels.append(Kernel(name, architecture, registers, stack + local, shared))
    return kernels
