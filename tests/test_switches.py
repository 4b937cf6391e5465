"""The process-wide switches, what they change, and the command line that shows them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fusedloss
import pytest
import torch
from fusedloss import _backend, _ops, cli, sigmoid_focal_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(fusedloss.__file__).parent


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(f"{func.namespace}::{func._opname}")
        return func(*args, **(kwargs or {}))

    @property
    def fused(self) -> list[str]:
        """Those of this library."""
        return [name for name in self.names if name.startswith("fusedloss::")]


def operators_of_a_step(dtype: torch.dtype = torch.float32) -> Operators:
    """What runs in one forward and backward."""
    x = torch.linspace(-3, 3, 12).view(3, 4).to(dtype).requires_grad_()
    with Operators() as operators:
        sigmoid_focal_loss(x, torch.tensor([0, 3, 4])).backward()
    return operators


FORWARD = ["fusedloss::sigmoid_focal_fwd", "fusedloss::scale_gradient_"]
RECOMPUTE = ["fusedloss::sigmoid_focal_fwd", "fusedloss::sigmoid_focal_bwd"]


def test_backend_chooses_the_implementation() -> None:
    for name, expected in (("auto", FORWARD), ("native", FORWARD), ("reference", [])):
        fusedloss.backend(name)
        operators = operators_of_a_step()
        assert operators.fused == expected
        assert ("aten::log_sigmoid_forward" in operators.names) is (name == "reference")


def test_schedule_chooses_the_backward() -> None:
    for name, expected in (("recompute", RECOMPUTE), ("forward", FORWARD)):
        fusedloss.gradient_schedule(name)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            assert operators_of_a_step(dtype).fused == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, FORWARD),
        (torch.float64, FORWARD),
        (torch.bfloat16, FORWARD),
        (torch.float16, RECOMPUTE),  # its gradients lose digits when they are scaled later
    ],
)
def test_automatic_schedule_by_dtype(dtype: torch.dtype, expected: list[str]) -> None:
    assert operators_of_a_step(dtype).fused == expected
    x = torch.zeros(2, dtype=dtype)
    assert _backend.gradient_in_forward(x) is (expected is FORWARD)
    assert _backend.gradient_in_forward(x.to("meta")) is (expected is FORWARD)
    with fusedloss.gradient_schedule("forward"):
        assert _backend.gradient_in_forward(x) is True
        assert _backend.gradient_in_forward(x.to("meta")) is True
    with fusedloss.gradient_schedule("recompute"):
        assert _backend.gradient_in_forward(x) is False


SWITCHES: list[tuple[Callable[[Any], Any], Callable[[], Any], list[Any]]] = [
    (fusedloss.backend, lambda: _backend._backend_setting.value, ["auto", "native", "reference"]),
    (
        fusedloss.gradient_schedule,
        lambda: _backend._schedule_setting.value,
        ["auto", "recompute", "forward"],
    ),
    (fusedloss.debug, _backend.debugging, [False, True]),
]
each_switch = pytest.mark.parametrize(
    ("switch", "current", "values"), SWITCHES, ids=["backend", "gradient_schedule", "debug"]
)


@each_switch
def test_setter_stays_and_context_returns(
    switch: Callable[[Any], Any], current: Callable[[], Any], values: list[Any]
) -> None:
    assert current() == values[0]
    switch(values[-1])
    assert current() == values[-1]
    for value in values:
        with switch(value):
            assert current() == value
            with switch(values[0]):
                assert current() == values[0]
                with switch(values[1]):
                    assert current() == values[1]
                assert current() == values[0]
            assert current() == value
        assert current() == values[-1]


@each_switch
def test_context_returns_after_an_error(
    switch: Callable[[Any], Any], current: Callable[[], Any], values: list[Any]
) -> None:
    with pytest.raises(RuntimeError, match="inside"), switch(values[1]):
        raise RuntimeError(f"inside, the value was {current()}")
    assert current() == values[0]
    # A refused value leaves everything as it was.
    with switch(values[1]):
        with pytest.raises((TypeError, ValueError)):
            switch("nonsense")
        assert current() == values[1]


@each_switch
def test_switches_are_for_the_whole_process(
    switch: Callable[[Any], Any], current: Callable[[], Any], values: list[Any]
) -> None:
    seen = []
    with switch(values[1]):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [values[1]]


def test_switches_are_independent() -> None:
    with fusedloss.backend("reference"), fusedloss.gradient_schedule("forward"):
        with fusedloss.debug(True):
            text = fusedloss.show_config()
            assert [line.split()[-1] for line in text.splitlines()[-3:]] == [
                "reference",
                "forward",
                "True",
            ]
        assert not _backend.debugging()
        assert operators_of_a_step().fused == []


@pytest.mark.parametrize(
    ("shape", "reduction", "divisor", "expected"),
    [
        ((64, 1000), "mean", "rows", True),
        ((64, 1000), "mean", "weights", False),  # never the number of rows
        ((64, 1000), "none", "rows", False),  # every row has a factor
        ((2, 19, 8, 8), "mean", "rows", False),  # pixels are often ignored
        ((2, 19, 8, 8), "mean", "known", True),
        ((2, 19, 8, 8), "sum", "weights", True),
        ((2, 32000), "sum", "known", False),  # reads its row from memory twice
    ],
)
def test_automatic_schedule_of_rows_on_a_gpu(
    shape: tuple[int, ...], reduction: str, divisor: str, expected: bool
) -> None:
    x = torch.zeros(shape, device="meta")  # stands for a device that is no CPU
    asked = (shape[1], reduction, divisor)
    assert _backend.row_gradient_in_forward(x, *asked) is expected
    assert _backend.row_gradient_in_forward(x.half(), *asked) is False
    on_cpu = torch.zeros(1).expand(shape)
    assert _backend.row_gradient_in_forward(on_cpu, *asked) is True
    for schedule in ("recompute", "forward"):
        with fusedloss.gradient_schedule(schedule):
            assert _backend.row_gradient_in_forward(x, *asked) is (schedule == "forward")


@pytest.mark.parametrize("value", ["", "Native", "cuda", "eager", None, 1, ["native"]])
def test_refused_values(value: Any) -> None:
    with pytest.raises(ValueError, match=r"backend: got .*'native', 'triton' and 'reference'") as e:
        fusedloss.backend(value)
    assert repr(value) in str(e.value)
    with pytest.raises(
        ValueError, match=r"gradient_schedule: got .*'recompute' and 'forward'"
    ) as e:
        fusedloss.gradient_schedule(value)
    assert repr(value) in str(e.value)
    with pytest.raises(TypeError, match=f"debug: .*bool, got {type(value).__name__}"):
        fusedloss.debug(value)


def test_implementations_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "_library", None)
    with pytest.raises(RuntimeError, match="native library of fusedloss was not built"):
        fusedloss.backend("native")
    assert _backend._backend_setting.value == "auto"
    monkeypatch.setattr(_backend, "_warned", set())
    with pytest.warns(RuntimeWarning, match="was not built; using the eager reference"):
        assert operators_of_a_step().fused == []
    text = fusedloss.show_config()
    assert "not built" in text
    assert "eager reference" in text


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_gpu_without_compiled_kernels_gets_those_of_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library built without CUDA, on a machine with a GPU (which is pretended here)."""
    from fusedloss import _triton_backend

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(_ops, "_facts", {**_ops.build_facts(), "cuda": 0})
    served: list[tuple[str, ...]] = []
    monkeypatch.setattr(_triton_backend, "_permanent", {})
    monkeypatch.setattr(_triton_backend, "_register", served.append)
    text = fusedloss.show_config()
    assert "Triton kernels (this build of fusedloss holds no CUDA kernels)" in text
    assert re.search(r"^CUDA kernels +no$", text, re.MULTILINE)
    assert re.search(r"^CPU tensors use +native kernels$", text, re.MULTILINE)
    on_gpu = types.SimpleNamespace(device=torch.device("cuda"))
    assert _backend.use_kernels(on_gpu)  # type: ignore[arg-type]
    assert _backend.use_kernels(on_gpu)  # type: ignore[arg-type]
    assert served == [("cuda",)]
    with fusedloss.backend("triton"):
        assert re.search(
            r"^CUDA tensors use +Triton kernels$", fusedloss.show_config(), re.MULTILINE
        )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setattr(_triton_backend, "_permanent", {})
    with pytest.warns(RuntimeWarning, match=r"no CUDA kernels.*triton is not installed"):
        assert not _backend.use_kernels(on_gpu)  # type: ignore[arg-type]


def test_forcing_triton_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"no cuda device.*TRITON_INTERPRET=1"):
        fusedloss.backend("triton")
    assert _backend._backend_setting.value == "auto"


def meta_call(**options: Any) -> Tensor:
    """A loss on a device that has no kernels."""
    x = torch.zeros(3, 4, device="meta", requires_grad=True)
    return sigmoid_focal_loss(x, torch.zeros(3, dtype=torch.int64, device="meta"), **options)


def test_unsupported_device_warns_once_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for options in ({}, {"reduction": "none"}, {"gamma": 0.5}):
            loss = meta_call(**options)
            assert loss.device.type == "meta"
            assert loss.shape == ((3, 4) if options.get("reduction") else ())
            assert loss.dtype == torch.float32
            assert loss.requires_grad
    assert [w.category for w in caught] == [RuntimeWarning]
    message = str(caught[0].message)
    assert message == "fusedloss has no kernels for meta tensors; using the eager reference"


def test_the_warning_points_at_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_warned", set())
    x, pixels = torch.zeros(3, 4, device="meta"), torch.zeros(3, 4, 2, device="meta")
    labels = torch.zeros(3, dtype=torch.int64, device="meta")
    for call in (
        meta_call,
        lambda: fusedloss.SigmoidFocalLoss()(x, labels),
        lambda: fusedloss.CrossEntropyLoss()(x, labels),
        lambda: fusedloss.SmoothL1Loss()(x, x),
        lambda: fusedloss.DiceLoss()(pixels, labels[:, None].expand(3, 2)),
        lambda: fusedloss.OHEMCrossEntropyLoss()(x, labels),
        lambda: fusedloss.linear_cross_entropy(x, x, labels),
    ):
        _backend._warned.clear()
        with pytest.warns(RuntimeWarning) as caught:
            call()
        assert caught[0].filename == __file__


def test_unsupported_device_with_native_asked_for_is_an_error() -> None:
    with fusedloss.backend("native"), pytest.raises(RuntimeError) as caught:
        meta_call()
    assert "'native' was asked for" in str(caught.value)
    assert "no kernels for meta tensors" in str(caught.value)


def test_reference_asked_for_never_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fusedloss.backend("reference"):
            meta_call()
        operators_of_a_step()


def test_debug_changes_no_result_on_the_cpu() -> None:
    x, target = torch.randn(6, 5), torch.tensor([0, 5, -1, 2, -100, 4])
    plain = sigmoid_focal_loss(x, target)
    with fusedloss.debug():  # the default argument turns it on
        assert _backend.debugging()
        assert torch.equal(sigmoid_focal_loss(x, target), plain)
        with pytest.raises(IndexError, match="label 10"):
            sigmoid_focal_loss(x, target + 5)


def test_backends_agree() -> None:
    x, target = torch.randn(40, 6), torch.randint(-1, 7, (40,))
    results = []
    for name in ("native", "reference"):
        leaf = x.clone().requires_grad_()
        with fusedloss.backend(name):
            loss = sigmoid_focal_loss(leaf, target, gamma=1.5)
            loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-8)


def config_lines() -> dict[str, str]:
    """The text of show_config as {name: value}."""
    pairs = (line.split("  ", 1) for line in fusedloss.show_config().splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def test_show_config() -> None:
    config = config_lines()
    assert config["fusedloss"] == fusedloss.__version__
    assert config["torch"] == torch.__version__
    assert config["native library"] == str(_ops.library_path())
    assert Path(config["native library"]).is_file()
    assert config["CPU level"].startswith(("AVX-512", "AVX2", "baseline", "compiler's"))
    assert config["compiler"]
    assert config["CUDA kernels"] == "no" or config["CUDA kernels"].startswith("yes, for ")
    assert config["CPU tensors use"] == "native kernels"
    if config["CUDA kernels"] == "no":
        assert config["CUDA tensors use"].startswith("eager reference")
    assert (config["GPU"] == "none") is not torch.cuda.is_available()
    assert config["backend"] == "auto"
    assert config["gradient schedule"] == "auto"
    assert config["debug"] == "False"
    torch.set_num_threads(1)
    assert config_lines()["threads"] == "1"
    # One column of values.
    starts = {
        len(line) - len(line.split("  ", 1)[1].lstrip())
        for line in fusedloss.show_config().splitlines()
    }
    assert len(starts) == 1


def test_command_line_from_a_shell() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-m", "fusedloss", "info"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].split() == ["fusedloss", fusedloss.__version__]
    assert "native kernels" in run.stdout


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == fusedloss.show_config() + "\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["info", "--nonsense"], ["info", "more"]])
def test_wrong_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: python -m fusedloss")
    if arguments:
        assert arguments[-1] in error
    else:
        assert "required" in error


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for command in ("info", "bench", "demo"):
        assert command in text


@pytest.mark.parametrize(
    ("command", "module"), [("demo", "fusedloss.demo"), ("bench", "fusedloss.benchmarks.run")]
)
def test_commands_hand_over_their_arguments_and_status(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []

    def main(arguments: list[str]) -> int:
        received.append(arguments)
        return 7

    parts = module.split(".")
    for end in range(2, len(parts) + 1):
        stand_in = types.ModuleType(".".join(parts[:end]))
        stand_in.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    assert cli.main([command, "--steps", "3", "--help"]) == 7
    assert received == [["--steps", "3", "--help"]]


def test_a_library_that_does_not_load_says_what_to_do(tmp_path: Path) -> None:
    package = Path(fusedloss.__file__).parent
    shutil.copytree(package, tmp_path / "fusedloss", ignore=shutil.ignore_patterns("_C*", "*.pyc"))
    (tmp_path / "fusedloss" / "_C.abi3.so").write_text("not a library")
    done = subprocess.run(
        [sys.executable, "-c", "import fusedloss"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ImportError: fusedloss: _C.abi3.so does not load with torch" in done.stderr
    assert "FUSEDLOSS_CUDA=0" in done.stderr
