"""Fails where the compiler stopped vectorising the CPU's hot loops: the machine code is read."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from fusedloss import _ops

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("objdump") is None,
    reason="reads x86 machine code with objdump",
)

# version of a function -> registers of its width
LEVELS = {"arch_x86_64_v4": "zmm", "arch_x86_64_v3": "ymm", "default": "xmm"}


@dataclass(frozen=True)
class Loop:
    """A hot loop: a part of its mangled names in float32 arithmetic, how many versions of it there are
    at each level (the compiler may find some the same), and the packed multiplications and additions
    that the shortest of them needs.
    """

    name: str
    pattern: str
    versions: int
    packed: int
    selects: bool = False  # sets the label's element apart, for which SSE2 has no instruction


# Arithmetic in double calls the C library instead.
LOOPS = (
    # 3 passes x 5 exponents x float, float16 and bfloat16
    Loop("sigmoid focal", r"evaluate_block.*SigmoidFocalIf", 45, 20),
    # 3 passes x float, float16 and bfloat16
    Loop("smooth L1", r"evaluate_block.*SmoothL1If", 9, 3),
    # no terms, uniform and weighted ones, each with and without the exponentials kept
    Loop("sums along pixels", r"11pixels_sums.*Lb[01]Ef", 6, 10, True),
    Loop("sums along pixels, probabilities", r"pixels_probability_sums.*Lb[01]Ef", 2, 10),
    Loop("sums along classes", r"8SumLoopsIfL.*3row", 4, 10, True),
    # by the type of the logits
    Loop("exponentials along pixels", r"10LogitLoopsI(f|N.*Float16).*11pixels_exps", 3, 7),
    Loop("exponentials along classes", r"11NumberLoopsIf.*8row_exps", 1, 7),
    # by the type of the gradient and the terms
    Loop("gradient along pixels", r"13GradientLoopsI(f|N.*Float16).*6pixels", 12, 1, True),
    Loop("gradient along classes", r"13GradientLoopsI(f|N.*Float16).*3row", 12, 1),
    # by what is known of the target and, for focal, by the kind of exponent; regions know no z-loss
    Loop("rows of cross entropy", r"11finish_rows.*12CrossEntropyIfLb1E", 4, 20),
    Loop("rows of cross entropy, backward", r"12restore_rows.*12CrossEntropyIfLb1E", 2, 15),
    Loop("rows of joined cross entropy", r"11finish_rows.*12CrossEntropyIfLb0E", 2, 15),
    Loop("rows of joined cross entropy, backward", r"12restore_rows.*12CrossEntropyIfLb0E", 2, 8),
    Loop("rows of margin softmax", r"11finish_rows.*13MarginSoftmaxIfLb0E", 2, 20),
    Loop("rows of margin softmax, backward", r"12restore_rows.*13MarginSoftmaxIfLb0E", 1, 15),
    Loop("rows of softmax focal", r"11finish_rows.*12SoftmaxFocalIf", 4, 20),
    Loop("rows of softmax focal, backward", r"12restore_rows.*12SoftmaxFocalIf", 2, 15),
    # with and without squares; with and without a begun gradient; by the type of the logits; with and
    # without terms
    Loop("regions, sums along pixels", r"11region_sumsILb[01]ELb[01]Ef", 4, 3, True),
    Loop("regions, dots along pixels", r"11region_dotsILb[01]Ef", 2, 1, True),
    Loop("regions, exponentials along pixels", r"11region_expsILb[01]E(f|N.*Float16)", 6, 7, True),
    Loop("regions, gradient along pixels", r"15region_gradient.*E(f|N.*Float16)", 12, 2, True),
    # by what is joined: nothing, to an input or its sigmoid, or one of three kinds of exponent
    Loop("elements' regions, sums", r"12element_sums.*ElementLossIf", 5, 3),
    Loop("elements' regions, gradient", r"16element_gradient.*ElementLossIf", 10, 3),
    # two to four classes, with nothing or cross entropy joined
    Loop("regions of few classes, exponentials", r"8few_expsILi[234]Ef", 3, 14, True),
    Loop("regions of few classes, gradient", r"12few_gradientILi[234]Ef", 6, 20, True),
    Loop("regions of few classes, sums of a begun gradient", r"9few_beginILi[234]E", 3, 4, True),
    Loop("regions of few classes, begun gradient", r"10few_finishILi[234]E", 6, 12, True),
    # by the type of the logits and, for elements, by the loss and whether there is a mask
    Loop("mined rows, shares", r"10share_rowsIf", 1, 2, True),
    Loop("mined rows, coefficients", r"18mined_coefficientsIf", 1, 8),
    Loop("mined rows, gradient of few", r"16scatter_gradientI(f|N.*Float16)", 3, 1, True),
    Loop("mined elements, marks", r"13mark_elements.*CrossEntropyIf", 12, 15),
    Loop("mined elements, gradient", r"15mined_gradients.*CrossEntropyIf", 6, 4),
    Loop("selection, counts", r"11count_marksILb[01]Ef", 2, 1),
    Loop("selection, sums", r"12sum_selectedILb[01]Ef", 2, 1, True),
)


@pytest.fixture(scope="module")
def functions() -> dict[str, str]:
    """Machine code of every version of the library's functions, by mangled name."""
    listed = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", str(_ops.library_path())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.findall(r"^[0-9a-f]+ <(\S*)>:\n(.*?)\n\n", listed, re.M | re.S)
    found = [(name, code) for name, code in found if name.rpartition(".")[2] in LEVELS]
    # Of versions that came out the same, all but one jump to that one.
    return {name: code for name, code in found if not re.match(r"\s*\S+\s+jmp\b", code)}


@pytest.mark.parametrize(("level", "register"), LEVELS.items())
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
def test_hot_loop_is_vectorised(
    functions: dict[str, str], loop: Loop, level: str, register: str
) -> None:
    chosen = {
        name: code
        for name, code in functions.items()
        if name.endswith("." + level) and re.search(loop.pattern, name)
    }
    assert loop.versions // 2 < len(chosen) <= loop.versions
    if loop.selects and level == "default":
        return
    for name, code in chosen.items():
        packed = len(re.findall(rf"\bv?(?:mul|add|sub|fn?madd\d+)ps .*%{register}", code))
        assert packed >= loop.packed, f"{name}: {packed} packed operations on {register}"
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
