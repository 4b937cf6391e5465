"""The sdist of this tree, and the wheel that is made from the unpacked sdist around the library in use:
nothing is compiled here. `make wheel` compiles too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import wheel_check
from fusedloss import _ops

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF libraries")

ROOT = wheel_check.ROOT
# Neither built nor found in a fresh checkout, nor needed to build, test or read it.
NOT_OF_THE_TREE = shutil.ignore_patterns(
    *("__pycache__", "*.so", "*.egg-info", "generated", ".hypothesis", ".*_cache"),
    *("results", "_triton", "fusedloss_demo.png"),
)
PARTS = ["benchmarks", "csrc", "docs", "kernels", "python", "tests"]
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "CMakeLists.txt", "Makefile", "LICENSE"]
FILES += ["README.md", "CHANGELOG.md", ".clang-format"]


def setup(folder: Path, *commands: str) -> None:
    """Runs setup.py there, without CUDA."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *commands],
        cwd=folder,
        env={**os.environ, "FUSEDLOSS_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, in which commands may write."""
    folder = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=NOT_OF_THE_TREE, symlinks=True)
    (folder / "python" / "fusedloss" / "benchmarks").unlink(missing_ok=True)  # a link in a checkout
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def unpacked(tree: Path) -> Path:
    """The unpacked sdist."""
    setup(tree, "sdist", "--dist-dir", "made")
    (archive,) = (tree / "made").iterdir()
    with tarfile.open(archive) as file:
        # Python 3.11.2 and others of their age have no filters yet.
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        file.extractall(tree / "unpacked", **safe)
    (folder,) = (tree / "unpacked").iterdir()
    assert archive.name == f"{folder.name}.tar.gz"
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """A wheel of the unpacked sdist, with the library that these tests run."""
    library = _ops.library_path()
    assert library is not None
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    built = unpacked / "build" / f"lib.{tag}" / "fusedloss"
    built.mkdir(parents=True)
    shutil.copy(library, built / "_C.abi3.so")
    setup(unpacked, "build_py", "bdist_wheel", "--skip-build")
    (made,) = (unpacked / "dist").iterdir()
    return made


def files_below(folder: Path, parts: list[str]) -> set[str]:
    """Relative names of all files of some folders."""
    found = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_sdist_holds_the_tree(tree: Path, unpacked: Path) -> None:
    expected = files_below(tree, PARTS) | set(FILES)
    held = files_below(unpacked, [*PARTS, "."])
    egg_info = {name for name in held | expected if "egg-info" in name}
    assert expected - egg_info - held == set()
    assert held - egg_info - expected == {"PKG-INFO", "setup.cfg"}
    for name in sorted(expected - egg_info):
        assert (unpacked / name).read_bytes() == (tree / name).read_bytes(), name


def test_the_wheel_is_complete(wheel: Path) -> None:
    assert wheel_check.check(wheel) == []


def repacked(wheel: Path, folder: Path, leave_out: str, add: dict[str, bytes]) -> Path:
    """The wheel without a file and with others."""
    spoilt = folder / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(spoilt, "w") as new:
        for name in old.namelist():
            if name != leave_out:
                new.writestr(name, old.read(name))
        for name, content in add.items():
            new.writestr(name, content)
    return spoilt


@pytest.mark.parametrize(
    "name", ["fusedloss/py.typed", "fusedloss/_triton/loss/sigmoid_focal.py", wheel_check.LIBRARY]
)
def test_a_file_that_is_missing_is_found(name: str, wheel: Path, tmp_path: Path) -> None:
    spoilt = repacked(wheel, tmp_path, name, {})
    assert wheel_check.check_names(spoilt) == [f"{name} is missing"]


@pytest.mark.parametrize("name", ["fusedloss/_C.o", "csrc/device.h", "tests/conftest.py"])
def test_a_file_too_many_is_found(name: str, wheel: Path, tmp_path: Path) -> None:
    spoilt = repacked(wheel, tmp_path, "", {name: b""})
    assert wheel_check.check_names(spoilt) == [f"{name} does not belong here"]


def test_a_tag_of_one_python_is_found(wheel: Path, tmp_path: Path) -> None:
    renamed = tmp_path / wheel.name.replace("cp310-abi3", "cp311-cp311")
    shutil.copy(wheel, renamed)
    assert any("is not fusedloss-" in problem for problem in wheel_check.check_names(renamed))


def test_types_reach_the_user(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert wheel_check.check_types(wheel) == []
    untyped = wheel_check.check_types(repacked(wheel, tmp_path, "fusedloss/py.typed", {}))
    assert any("import-untyped" in line for line in untyped)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a library")
def test_what_a_library_must_not_need_is_found(tmp_path: Path) -> None:
    source = tmp_path / "spoilt.cpp"
    source.write_text(
        "namespace c10 { int gone(); }\n"
        'extern "C" int PyList_Size(void*);\n'
        "const char* place() { return c10::gone() + PyList_Size(nullptr) ? __FILE__ : 0; }\n"
    )
    library = tmp_path / "spoilt.so"
    command = ["g++", "-g", "-shared", "-fPIC", "-Wl,-rpath,/opt/lib", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    problems = wheel_check.check_library(library)
    for words in (f"holds the path {source}", "needs c10::gone()", "needs PyList_Size of Python"):
        assert any(words in problem for problem in problems), (words, problems)
    assert any("/opt/lib" in problem for problem in problems)
    assert "holds debug information" in problems
