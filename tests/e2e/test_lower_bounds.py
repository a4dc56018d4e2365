"""The lowest versions that pyproject.toml declares, installed together in an environment of their own."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from scripting import SCRIPTS, environment

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = SCRIPTS.parents[1]
LOWEST = ("ml_dtypes", "numpy", "onnx", "onnx-graphsurgeon", "cyclopts", "rich", "onnxruntime", "openvino")


def lower_bounds() -> list[str]:
    """Return what pip has to install: the first release of each declared minor version, and patches of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", text).groups()  # type: ignore[union-attr]
        for text in (*project["dependencies"], *extras["onnxruntime"], *extras["openvino"])
    )
    assert sorted(declared) == sorted(LOWEST), "a dependency that this test does not know"
    return [
        f"{name}=={version}.*" if version.count(".") == 1 else f"{name}=={version}"
        for name, version in declared.items()
    ]


def test_every_command_works_with_the_lowest_versions(tmp_path: Path) -> None:
    """Attach, inspect, check, update and detach in every form, ONNX and IR; torch is the version installed here."""
    import torch

    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    install = [str(python), "-m", "pip", "install", "-q", *lower_bounds(), f"torch=={torch.__version__}"]
    subprocess.run(install, check=True, timeout=1200)
    (tmp_path / "files").mkdir()
    command = [str(python), str(SCRIPTS / "lower_bounds.py"), str(tmp_path / "files")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, env=environment())
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-4000:]
    assert "0 problems" in run.stdout
