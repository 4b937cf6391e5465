"""Writes what is known of the CUDA kernels without a GPU, for the benchmark's report.

python tests/cuda_report.py build/cuda_facts.json
python -m fusedloss bench --cuda-facts build/cuda_facts.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import compiled_kernels
import cuda_traffic
from emulated import load_testing_module
from fusedloss._files import replacing

WORKLOADS = {
    "pointwise": cuda_traffic.WORKLOADS,
    "row softmax": cuda_traffic.ROW_WORKLOADS,
    "regions": cuda_traffic.REGION_WORKLOADS,
    "mining": cuda_traffic.MINING_WORKLOADS,
}


def traffic_rows() -> list[dict[str, Any]]:
    """One row for each pass of each workload, in the form that benchmarks/cuda_facts.py documents."""
    module = load_testing_module()
    rows = []
    for kernel, workload in ((name, w) for name, some in WORKLOADS.items() for w in some):
        pointwise = isinstance(workload, cuda_traffic.Workload)
        size = f"{workload.target.size(0)}x{workload.classes} " if pointwise else ""
        for t in cuda_traffic.measure(module, workload):
            if not t.least:
                continue
            row: dict[str, Any] = {
                "kernel": kernel,
                "workload": size + workload.name,
                "pass": t.what,
                "launches": t.launches,
                "bytes_moved": t.moved,
                "bytes_minimum": t.least,
            }
            # Labels are shared by the threads of a row, and target logits are gathered one by one.
            if isinstance(workload, cuda_traffic.Workload) and workload.target.dim() > 1:
                row["full_sectors"] = t.full_sectors / t.sectors
            rows.append(row)
    return rows


def compiler_rows() -> list[dict[str, Any]]:
    """One row for each compiled kernel; none where the library has none."""
    if not compiled_kernels.is_readable():
        return []
    return [
        {
            "kernel": k.name,
            "arch": k.architecture,
            "registers": k.registers,
            "local_bytes": k.local_bytes,
            "shared_bytes": k.shared_bytes,
            # Double exponentials take registers; float64 is held to a limit of its own.
            "occupancy_of_double" if k.is_double else "occupancy": k.occupancy,
        }
        for k in compiled_kernels.compiled_kernels()
    ]


def main() -> int:
    """Writes the file named on the command line."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(traffic_rows() + compiler_rows(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
