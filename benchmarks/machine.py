"""Facts of the machine, the load of other processes, and the switch of the C allocator."""

from __future__ import annotations

import ctypes
import datetime
import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import torch
from fusedloss import _ops

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
NEVER = 2**31 - 1

ALLOCATOR_VARIABLES = (
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)

BUSY_CORES = 0.1
"""Above this many cores used by other processes, times with all threads are not to be trusted."""


def warm_malloc() -> bool:
    """Makes glibc malloc keep freed memory from here on; False where that cannot be done.

    The default returns every large block to the system, and page faults of fresh memory then cost
    more than a fused kernel. There is no way back in the process: time the default first.
    """
    if "malloc" in os.environ.get("LD_PRELOAD", ""):  # jemalloc, tcmalloc: mallopt has no say
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Older glibc refuses a threshold above 32 MB; no mmap at all comes to the same.
    no_mmap = mallopt(M_MMAP_THRESHOLD, NEVER) or mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and no_mmap)


def allocator_variables() -> list[str]:
    """Environment variables that already change the allocator, as NAME=value."""
    return [f"{name}={os.environ[name]}" for name in ALLOCATOR_VARIABLES if name in os.environ]


class LoadMeter:
    """Cores busy with other processes since it was made (Linux; /proc/stat less our own time)."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Wall, whole machine's busy and own processor time, all in seconds."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4])
        return time.perf_counter(), busy, own

    def foreign_cores(self) -> float | None:
        """Mean number of cores that other processes kept busy; None where it cannot be told."""
        now = self._read()
        if now is None or self._start is None:
            return None
        wall, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, (busy - own) / wall) if wall > 0 else None


def load_now(seconds: float = 1.0) -> tuple[float | None, str]:
    """Cores busy while this process sleeps for `seconds`, and a sentence on it."""
    meter = LoadMeter()
    time.sleep(seconds)
    foreign = meter.foreign_cores()
    try:
        average = f"load average of the last minute {os.getloadavg()[0]:.2f}"
    except OSError:
        average = "no load average here"
    if foreign is None:
        return None, f"load of other processes not measured (no /proc/stat); {average}"
    return foreign, f"other processes use {foreign:.2f} cores just now; {average}"


def wait_idle(seconds: float) -> tuple[float | None, str]:
    """Waits at most `seconds` until other processes leave the cores alone; then as `load_now`."""
    end = time.monotonic() + seconds
    while True:
        foreign, sentence = load_now()
        if foreign is None or foreign <= BUSY_CORES or time.monotonic() > end:
            return foreign, sentence


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(module: str) -> str:
    try:
        return str(getattr(importlib.import_module(module), "__version__", "unknown"))
    except (ImportError, OSError, RuntimeError):
        return "not installed"


def _installed(distribution: str) -> str:
    """Version of a package that takes seconds to import."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} usable of {os.cpu_count()}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def _compiler() -> str:
    """What compiled the native library, and the CPU level that it runs at."""
    facts = _ops.build_facts()
    if not facts:
        return "no native library"
    compiler = facts["compiler"]
    name = f"g++ {compiler}" if compiler[:1].isdigit() else compiler  # g++ gives its number alone
    return f"{name}; CPU kernels for {facts['cpu_level']}"


def _commit() -> str:
    """The commit of the checkout that holds this file, "-dirty" where files differ from it."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not a checkout around the venv
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts() -> dict[str, str]:
    """What a reader needs to place the figures: hardware, versions, threads, date."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "cores": _cores(),
        "threads": str(torch.get_num_threads()),
        "GPU": _gpu(),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "torchvision": _version("torchvision"),
        "timm": _installed("timm"),
        "segmentation-models-pytorch": _installed("segmentation-models-pytorch"),
        "pytorch-metric-learning": _installed("pytorch-metric-learning"),
        "monai": _installed("monai"),
        "liger-kernel": _installed("liger-kernel"),
        "fusedloss": _version("fusedloss"),
        "commit": _commit(),
        "compiler": _compiler(),
        "allocator variables": ", ".join(allocator_variables()) or "none set",
    }
