"""What all tests share: hypothesis profiles, the demo's files, the command line in process."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from postproc_export.runtimes.openvino import import_openvino

import_openvino(purpose="the tests")  # before any test imports it: without the telemetry of a bare import
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=10)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one demo run."""
    from postproc_export.demo.run import run_demo

    folder = tmp_path_factory.mktemp("demo") / "postproc-export-demo"
    assert run_demo(folder).passed
    return folder


@dataclass(frozen=True)
class Invoked:
    """What a command printed, and its exit code."""

    exit_code: int
    stdout: str
    stderr: str


Invoke = Callable[..., Invoked]


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str]) -> Invoke:
    """Run the command line in this process."""

    def run(*arguments: object) -> Invoked:
        from postproc_export.cli import main

        capfd.readouterr()
        exit_code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Invoked(exit_code, captured.out, captured.err)

    return run
