"""What all tests share: hypothesis profiles, the demo's files, the command line in process."""

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from schemas import SCHEMA_OF, faults
from scripting import run_command

from postproc_export.runtimes.openvino import import_openvino

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process that a test starts compiles the packages anew
os.environ.pop("COLUMNS", None)  # of a terminal that nobody looks at: what is printed stays in whole lines
# Two processes share two cores: threads of PyTorch and NumPy that wait for each other take a fifth of the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(100_000, 20, 20)  # exports make a million objects, which a collector counts again and again
import_openvino(purpose="the tests")  # before any test imports it: without the telemetry of a bare import
hypothesis.settings.register_profile("default", deadline=None, max_examples=100, print_blob=True)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=10)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_setup() -> None:
    """Let torch's exporter read the sources of its operators once, which take two fifths of an export."""
    registry = getattr(sys.modules.get("torch.onnx._internal.exporter._registration"), "ONNXRegistry", None)
    if registry is not None and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one process run all files that ask for the demo, which takes long, and else any process the next file."""
    from xdist.scheduler import LoadFileScheduling

    files = Path(__file__).parent.rglob("test_*.py")
    of_demo = {
        path.name
        for path in files
        if re.search(r"\bdemo(_folder)?: |beside_the_demo", path.read_text(encoding="utf-8"))
    }

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "demo" if Path(file).name in of_demo else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder in which the demo ran in a process of its own, once for all tests, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    return home, run_command("demo", cwd=home)


@pytest.fixture(scope="session")
def demo_folder(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The files of that run."""
    home, finished = demo
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return home / "postproc-export-demo"


@pytest.fixture
def beside_the_demo(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """Work in a folder that holds the demo's; return what gives what a program has printed."""
    (tmp_path / "postproc-export-demo").symlink_to(demo_folder)
    monkeypatch.chdir(tmp_path)
    return lambda: capfd.readouterr().out


@dataclass(frozen=True)
class Invoked:
    """What a command printed, and its exit code."""

    exit_code: int
    stdout: str
    stderr: str


Invoke = Callable[..., Invoked]


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str]) -> Invoke:
    """Run the command line in this process; a JSON object that it prints has to be as docs/schemas says."""

    def run(*arguments: object) -> Invoked:
        from postproc_export.cli import main

        capfd.readouterr()
        exit_code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        if "--json" in arguments and exit_code < 2:
            assert faults(SCHEMA_OF.get(str(arguments[0]), str(arguments[0])), json.loads(captured.out)) == []
        return Invoked(exit_code, captured.out, captured.err)

    return run
