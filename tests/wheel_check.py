"""What a wheel must hold before anybody installs it; `make wheel` runs this on the one it made.

python tests/wheel_check.py dist/fusedloss-*.whl           # status 1, and what is wrong
python tests/wheel_check.py --types dist/fusedloss-*.whl   # mypy as well, of a user's file
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Where packages of the wheel come from: everything there belongs into it, but figures of past runs.
FOLDERS = {
    "fusedloss": ROOT / "python" / "fusedloss",
    "fusedloss/benchmarks": ROOT / "benchmarks",
    "fusedloss/_triton": ROOT / "kernels" / "triton",
}
LEFT_OUT = {"__pycache__", "results"}
LIBRARY = "fusedloss/_C.abi3.so"
METADATA = {"METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE"}
# What PyPI takes of a single file; without CUDA kernels it is 3 MB.
MOST_BYTES = 100_000_000
# An absolute path of a source file, as a check that quotes its place would leave it behind.
SOURCE_PATH = re.compile(rb"(?<![\w.+-])/[\w./+-]+\.(?:cpp|h|cu|cuh|hpp)\b")


def expected_files(folders: dict[str, Path] = FOLDERS) -> set[str]:
    """Names in the wheel of all that lies in the packages' folders, beside the metadata."""
    found = {LIBRARY}
    for package, folder in folders.items():
        for path in folder.rglob("*"):  # does not follow links, as a checkout may have to packages
            inside = path.relative_to(folder)
            if path.is_file() and path.suffix != ".so" and not LEFT_OUT & set(inside.parts):
                found.add(f"{package}/{inside.as_posix()}")
    return found


def _version() -> str:
    text = (ROOT / "python" / "fusedloss" / "_version.py").read_text()
    found = re.search(r'__version__ = "(.+)"', text)
    assert found is not None
    return found[1]


def check_names(wheel: Path) -> list[str]:
    """The tag, the files, the metadata, the size."""
    problems = []
    version = _version()
    if not re.fullmatch(rf"fusedloss-{re.escape(version)}-cp310-abi3-\w+\.whl", wheel.name):
        problems.append(f"{wheel.name}: is not fusedloss-{version}-cp310-abi3-*.whl")
    if wheel.stat().st_size > MOST_BYTES:
        problems.append(f"{wheel.stat().st_size:,} bytes, of at most {MOST_BYTES:,}")
    information = f"fusedloss-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        expected = expected_files() | {f"{information}/{name}" for name in METADATA}
        problems += [f"{name} is missing" for name in sorted(expected - names)]
        problems += [f"{name} does not belong here" for name in sorted(names - expected)]
        for file, lines in (
            ("WHEEL", ("Root-Is-Purelib: false", "Tag: cp310-abi3-")),
            ("METADATA", (f"Version: {version}\n", "Requires-Python: >=3.10", "Dist: torch>=2.10")),
        ):
            name = f"{information}/{file}"
            text = archive.read(name).decode() if name in names else ""
            problems += [
                f"{file} does not say {line.strip()!r}" for line in lines if line not in text
            ]
    return problems


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_library(library: Path) -> list[str]:
    """Only the stable ABI of torch and nothing of Python; no search paths, no paths of the builder."""
    problems = []
    places = sorted({path.decode() for path in SOURCE_PATH.findall(library.read_bytes())})
    problems += [f"holds the path {place}" for place in places]
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        return [*problems, "nm and readelf (binutils) are needed to read the library"]
    for line in _output("nm", "-D", "-C", "--undefined-only", str(library)).splitlines():
        symbol = line.split(maxsplit=1)[-1]
        if re.search(r"\b(at|c10|torch|caffe2)::", symbol):
            problems.append(f"needs {symbol}, which is not of the stable ABI")
        if re.match(r"_?Py[A-Z_]", symbol):
            problems.append(f"needs {symbol} of Python")
    for line in _output("readelf", "-d", str(library)).splitlines():
        if "(RPATH)" in line or "(RUNPATH)" in line:
            problems.append(f"searches for libraries: {line.strip()}")
    if ".debug_info" in _output("readelf", "-S", "-W", str(library)):
        problems.append("holds debug information")
    return problems


def check_types(wheel: Path) -> list[str]:
    """What mypy --strict says of a user's file where the wheel is installed and nothing else."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "venv", symlinks=True)
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        (packages / "torch_of_the_caller.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (folder / "user.py").write_text((ROOT / "tests" / "typed_user.py").read_text())
        python = folder / "venv" / "bin" / "python"
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "user.py"]
        # Either would find a checkout in the place of the wheel.
        outside = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "MYPYPATH")}
        done = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)
        return [] if done.returncode == 0 else (done.stdout + done.stderr).splitlines()


def check(wheel: Path) -> list[str]:
    """All that is wrong with a wheel, except its types."""
    problems = check_names(wheel)
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        if LIBRARY in archive.namelist():
            found = check_library(Path(archive.extract(LIBRARY, scratch)))
            problems += [f"{LIBRARY} {problem}" for problem in found]
    return problems


def main() -> int:
    """Checks one wheel; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--types", action="store_true", help="mypy, of a file that uses it")
    arguments = parser.parse_args()
    problems = check(arguments.wheel)
    if arguments.types:
        problems += check_types(arguments.wheel)
    size = f"{arguments.wheel.stat().st_size / 1e6:.1f} MB"
    print("\n".join([f"{arguments.wheel}: {size}, {len(problems)} problems", *problems]))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
