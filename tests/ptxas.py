"""What the CUDA compiler says of the kernels: registers, spills, shared memory, occupancy.

Each .cu file is compiled for each architecture with `-Xptxas -v`, two at a time; the figures are kept in
the build folder under a hash of the sources, so a second look costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90", "100")
REGISTERS_PER_MULTIPROCESSOR = 65536
THREADS_PER_MULTIPROCESSOR = 2048  # sm_80, sm_90 and sm_100
SHARED_PER_MULTIPROCESSOR = 164 * 1024  # of sm_80, the smallest; a block costs 1 KB beside its own
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

    file: str
    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
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
            shared = self.shared_bytes + dynamic + 1024
            blocks = min(
                REGISTERS_PER_MULTIPROCESSOR // (per_thread * threads),
                SHARED_PER_MULTIPROCESSOR // shared,
            )
            shares.append(min(1.0, blocks * threads / THREADS_PER_MULTIPROCESSOR))
        return min(shares)


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    return shutil.which("nvcc")


def _sources() -> list[Path]:
    return sorted((REPOSITORY / "kernels" / "cuda").glob("*.cu"))


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted((REPOSITORY / "kernels").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    version = subprocess.run([str(nvcc()), "--version"], capture_output=True, check=True)
    digest.update(version.stdout)
    return digest.hexdigest()[:16]


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


def _compile(source: Path, architecture: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(nvcc()), "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-cubin"]
        command += ["-Werror=cross-execution-space-call"]
        command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-Xptxas=-v"]
        command += ["-o", str(Path(folder) / "out.cubin"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    found = re.findall(pattern, done.stderr, re.DOTALL)
    kernels = []
    for name, match in zip(_readable([m[0] for m in found]), found, strict=True):
        shared = re.search(r"(\d+) bytes smem", match[5])
        kernels.append(
            Kernel(
                source.name,
                name,
                f"sm_{architecture}",
                int(match[4]),
                int(match[1]),
                int(match[2]) + int(match[3]),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def compiled_kernels() -> list[Kernel]:
    """Every kernel of every .cu file for every architecture."""
    cache = REPOSITORY / "build" / "ptxas" / f"{_source_hash()}.json"
    if cache.exists():
        return [Kernel(**row) for row in json.loads(cache.read_text())]
    jobs = [(source, arch) for source in _sources() for arch in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        kernels = [k for some in pool.map(lambda job: _compile(*job), jobs) for k in some]
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    return kernels
