"""Fails where the compiler stopped vectorising the CPU's hot loops: the machine code is read."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fusedloss import _ops

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("objdump") is None,
    reason="reads x86 machine code with objdump",
)

# version of a function -> registers of its width, and the scalar arithmetic that may not appear
LEVELS = {"arch_x86_64_v4": "zmm", "arch_x86_64_v3": "ymm", "default": "xmm"}


@pytest.fixture(scope="module")
def functions() -> dict[str, str]:
    """Machine code of every version of the hot loop, by mangled name."""
    listed = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", str(_ops.library_path())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.findall(r"^[0-9a-f]+ <(\S*evaluate_block\S*)>:\n(.*?)\n\n", listed, re.M | re.S)
    return {name: code for name, code in found if "resolver" not in name}


def _of(functions: dict[str, str], level: str) -> dict[str, str]:
    return {name: code for name, code in functions.items() if name.endswith("." + level)}


@pytest.mark.parametrize(("level", "register"), LEVELS.items())
def test_hot_loop_is_vectorised(functions: dict[str, str], level: str, register: str) -> None:
    # 3 passes x 5 exponents x float, float16 and bfloat16; double calls the C library instead.
    chosen = {n: c for n, c in _of(functions, level).items() if "SigmoidFocalIf" in n}
    assert len(chosen) == 45
    for name, code in chosen.items():
        packed = len(re.findall(rf"\bv?(?:mul|add|fmadd\d+)ps .*%{register}", code))
        assert packed >= 20, f"{name}: {packed} packed operations on {register}"
        assert not re.search(r"call.*<(?:exp|log|log1p)f?@", code), f"{name} calls the C library"


def test_the_best_level_of_this_cpu_is_in_use() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    level = _ops.build_facts()["cpu_level"]
    if all(
        f" {flag}" in flags for flag in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
    ):
        assert "AVX-512" in level
    elif " avx2" in flags and " fma" in flags:
        assert "AVX2" in level
