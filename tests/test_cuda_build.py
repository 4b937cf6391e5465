"""The native library as it was built: its operators, its symbols, what the CUDA compiler made of the
kernels. The table of registers is printed under -s.
"""

from __future__ import annotations

import os
import re
import subprocess

import compiled_kernels
import pytest
import torch
from fusedloss import _ops

OPERATORS = (
    *("sigmoid_focal_fwd", "sigmoid_focal_bwd", "smooth_l1_fwd", "smooth_l1_bwd"),
    *("scale_gradient", "scale_gradient_"),
)
ROW_LOSSES = ("cross_entropy.cu", "margin_softmax.cu", "softmax_focal.cu")
# Losses that may be joined, none included, over rows and over elements (whose none are two).
JOINED = 3
needs_kernels = pytest.mark.skipif(
    not compiled_kernels.is_readable(), reason="needs CUDA kernels in the library and cuobjdump"
)


def _library() -> str:
    path = _ops.library_path()
    assert path is not None, "the native library was not built"
    return str(path)


def _has_kernel(operator: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fusedloss::{operator}", key)


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_is_registered(operator: str) -> None:
    assert _has_kernel(operator, "CPU")
    assert _has_kernel(operator, "CUDA") == _ops.build_facts()["cuda"]


def test_cuda_kernels_are_built_where_they_can_be() -> None:
    can = compiled_kernels.nvcc() is not None and torch.version.cuda is not None
    wanted = (os.environ.get("FUSEDLOSS_CUDA") or ("1" if can else "0")) == "1"
    assert _ops.build_facts()["cuda"] == wanted


def test_no_symbol_of_unstable_torch() -> None:
    """Only the stable ABI: one binary serves many versions of torch."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "--demangle", _library()],
        capture_output=True,
        text=True,
        check=True,
    )
    unstable = re.findall(r"\b(?:at|c10|torch)::\S+", listed.stdout)
    assert not unstable
    assert "torch_call_dispatcher" in listed.stdout  # the list is the right one


@needs_kernels
def test_no_spills_and_half_occupancy() -> None:
    kernels = compiled_kernels.compiled_kernels()
    held = _ops.build_facts()["cuda_architectures"]
    wanted = {a for a in compiled_kernels.ARCHITECTURES if f"{a[3:-1]}.{a[-1]}" in held}
    assert {k.architecture for k in kernels} == wanted
    assert wanted
    print(f"\n{'kernel':<72} {'arch':<7} {'regs':>4} {'local':>5} {'shared':>6} {'occupancy':>9}")
    for k in sorted(kernels, key=lambda k: (k.architecture, k.name)):
        print(
            f"{k.name[:72]:<72} {k.architecture:<7} {k.registers:4} {k.local_bytes:5} "
            f"{k.shared_bytes:6} {k.occupancy:9.2f}"
        )
    for k in kernels:
        assert k.local_bytes == 0, f"{k.name} on {k.architecture} spills"
        # Double exponentials and logarithms take registers; the row kernels call several.
        rows = k.name.startswith(("row_", "region_rows"))
        least = 0.25 if k.is_double and rows else 0.5
        assert k.occupancy >= least, f"{k.name} on {k.architecture}: {k.registers} registers"


@needs_kernels
def test_hot_path_moves_sixteen_bytes_an_instruction() -> None:
    if "9.0" not in _ops.build_facts()["cuda_architectures"]:
        pytest.skip("the library holds no CUDA kernels for sm_90")
    listed = compiled_kernels.disassemble("-sass", "-arch", "sm_90")
    functions = re.split(r"\n\s*Function : ", listed)[1:]
    assert functions, "no machine code for sm_90 in the library"
    # Three passes, of which two write gradients; a kernel for each of the three narrow logit types
    # and kinds of terms (cross entropy has three, the others two), one for double. Rows of classes
    # that are not neighbours are moved by 8 bytes a thread, full sectors all the same.
    variants = (3 * 3 + 1) + 2 * (3 * 2 + 1)
    for kernel in ("row_tile_kernel", "row_block_kernel"):
        hot = [f for f in functions if kernel in f.split("\n")[0]]
        mined = [f for f in hot if "MinedRows" in f.split("\n")[0]]
        plain = [f for f in hot if f not in mined]
        assert len([f for f in plain if "LDG.E.128" in f]) == 3 * variants, kernel
        assert len([f for f in plain if "STG.E.128" in f]) >= 2 * variants, kernel
        # Mined rows: marks, gradient; four types.
        assert len([f for f in mined if "LDG.E.128" in f]) == 2 * 4, kernel
        assert len([f for f in mined if "STG.E.128" in f]) >= 4, kernel
    # ILNS_4PassE1 and 2 in a name: loss and gradient, gradient. What the compiler took for undefined
    # writes nothing.
    writing = [f for f in functions if re.search("PassE[12]", f.split("\n")[0])]
    assert len(writing) >= 2 * 3 * 4 * len(ROW_LOSSES)
    assert not [f.split("\n")[0] for f in writing if "STG" not in f]
    plain = [f for f in functions if "plain_kernel" in f.split("\n")[0]]
    # Float, float16 and bfloat16 in three passes: labels with gamma 2 and another, dense targets; and
    # smooth L1 loss.
    assert len([f for f in plain if "LDG.E.128" in f]) == 27 + 9
    assert len([f for f in plain if "STG.E.128" in f]) == 18 + 6
    hot = [f for f in functions if "linear_kernel" in f.split("\n")[0]]
    full_width = [f for f in hot if "LDG.E.128" in f]
    # float, float16 and bfloat16 with full vectors and double, each for three passes; the others move
    # half vectors beside a wider operand. Two losses.
    assert len(full_width) >= 2 * 12
    with_gradient = [f for f in full_width if "STG.E.128" in f]
    assert len(with_gradient) >= 2 * 8
    # Regions over runs of elements, two passes each; pixels move by 8 bytes a thread, of half types
    # by 4.
    runs = [f for f in functions if re.search("region_elements_kernel.*PassE[02]ELi[248]E", f)]
    assert len([f for f in runs if "LDG.E.128" in f]) == 2 * 4 * JOINED
    assert len([f for f in runs if "STG.E.128" in f]) == 4 * JOINED
    # Mined elements: four types of logits or probabilities, vectors of marks.
    marking = [f for f in functions if "mined_elements_kernel" in f.split("\n")[0]]
    assert len([f for f in marking if "STG.E.128" in f]) == 4 * 2
    selecting = [f for f in functions if "mined_gradient_kernel" in f.split("\n")[0]]
    assert len([f for f in selecting if "LDG.E.128" in f]) == 4 * 2
    narrowing = [f for f in functions if "select_narrow_kernel" in f.split("\n")[0]]
    assert len([f for f in narrowing if "LDG.E.128" in f]) == 2
    pixels = [f for f in functions if "region_rows_gradient_kernelILi2E" in f.split("\n")[0]]
    assert len(pixels) == 3 * JOINED
    assert len([f for f in pixels if "LDG.E.64" in f and "STG.E.64" in f]) >= JOINED
