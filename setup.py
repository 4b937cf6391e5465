"""Builds the one native library, ``fusedloss/_C``: CPU kernels always, CUDA kernels where they can be.

Environment:
    FUSEDLOSS_CUDA        1 forces the CUDA kernels, 0 leaves them out; unset: built where nvcc and a
                          CUDA build of torch are present.
    TORCH_CUDA_ARCH_LIST  GPU architectures, as for every torch extension; by default sm_75 to the
                          newest that this nvcc knows, plus PTX of that one.
    MAX_JOBS              parallel compiler processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import setup


def toolkit_root() -> str | None:
    """The CUDA toolkit that the nvcc on PATH belongs to, also where that nvcc is a wrapper script."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    return os.path.realpath(top[1].strip()) if top else None


# torch's own guess, two folders above nvcc, is made when this module is imported.
if not os.environ.get("CUDA_HOME") and not os.environ.get("CUDA_PATH") and toolkit_root():
    os.environ["CUDA_HOME"] = str(toolkit_root())

from torch.utils import cpp_extension  # noqa: E402

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020a000000000000"  # oldest torch whose stable ABI the library needs: 2.10

# Value-preserving: the losses never read errno nor floating-point traps, and vectorisers need to know.
CPU_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fopenmp-simd",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-g0",
]
# A kernel that calls a host function is only warned of, and then undefined: what follows is left out.
CUDA_FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"]
CUDA_FLAGS += ["-Werror=cross-execution-space-call"]
# One entry for each generation: code of 8.0 also runs on 8.6, 8.7 and 8.9, of 12.0 on 12.1.
WANTED_ARCHITECTURES = ["7.5", "8.0", "9.0", "10.0", "12.0"]


def nvcc_path() -> str | None:
    home = cpp_extension.CUDA_HOME
    nvcc = str(Path(home) / "bin" / "nvcc") if home else None
    return nvcc if nvcc and Path(nvcc).exists() else shutil.which("nvcc")


def with_cuda() -> bool:
    """Whether to build the CUDA kernels; says why when it cannot although asked to."""
    import torch

    wish = os.environ.get("FUSEDLOSS_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"FUSEDLOSS_CUDA must be 0, 1 or unset, got {wish!r}")
    missing = []
    if nvcc_path() is None:
        missing.append("nvcc")
    if torch.version.cuda is None:
        missing.append(f"a CUDA build of torch (found {torch.__version__})")
    if wish == "1" and missing:
        raise SystemExit(f"FUSEDLOSS_CUDA=1, but this is missing: {', '.join(missing)}")
    return wish != "0" and not missing


def default_architectures() -> str:
    nvcc = nvcc_path()
    assert nvcc is not None
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = {f"{int(n) // 10}.{int(n) % 10}" for n in re.findall(r"compute_(\d+)", listed.stdout)}
    chosen = [arch for arch in WANTED_ARCHITECTURES if arch in known]
    return ";".join(chosen) + "+PTX"


def compression() -> list[str]:
    """Kernels are most of the library, and compressed a quarter of their size (nvcc 12.4 and newer)."""
    listed = subprocess.run([str(nvcc_path()), "--help"], capture_output=True, text=True)
    return ["--compress-mode=size"] if "--compress-mode" in listed.stdout else []


def simd_flags() -> list[str]:
    """x86 compilers default to 256-bit vectors even where 512 are there."""
    import platform

    return ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []


def path_flags() -> list[str]:
    """Checks quote the file they stand in: without the folders of the machine that built the library."""
    folders = [str(ROOT.resolve()), *cpp_extension.include_paths()]
    return [f"-fmacro-prefix-map={folder}/=" for folder in folders]


def extension() -> cpp_extension.CppExtension:
    cuda = with_cuda()
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*.cpp"))
    sources += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("kernels/cpu/*.cpp"))
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), ("FUSEDLOSS_WITH_CUDA", int(cuda))]
    cxx = CPU_FLAGS + simd_flags() + path_flags()
    if not cuda:
        return cpp_extension.CppExtension(
            "fusedloss._C",
            sources,
            define_macros=macros,
            extra_compile_args={"cxx": cxx},
            py_limited_api=True,
        )
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures())
    macros.append(("USE_CUDA", 1))
    cxx.append(
        f"-DFUSEDLOSS_CUDA_ARCHITECTURES={cuda_architectures_macro()}"
    )  # nvcc splits at commas
    return cpp_extension.CUDAExtension(
        "fusedloss._C",
        sources + sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("kernels/cuda/*.cu")),
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": CUDA_FLAGS + compression()},
        py_limited_api=True,
    )


def cuda_architectures_macro() -> str:
    """The list as one word for the preprocessor, which turns it into a string."""
    return re.sub(r"[ ;]+", ",", os.environ["TORCH_CUDA_ARCH_LIST"].strip())


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
