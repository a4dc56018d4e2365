"""Starting the command line, and the scripts of tests/scripts, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

SCRIPTS: Final = Path(__file__).parent / "scripts"
TIMEOUT: Final = 300  # seconds


def run_script(name: str, *arguments: str | Path, launcher: tuple[str, ...] = (), timeout: float = TIMEOUT) -> None:
    """Run a script that may import what tests share, with `python` or `python -m` a launcher; it has to end well."""
    command = [sys.executable, *launcher, str(SCRIPTS / name), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment())
    assert run.returncode == 0, run.stdout + run.stderr


def environment() -> dict[str, str]:
    """Return the environment of a process that may import the packages and what tests share."""
    paths = [str(SCRIPTS.parent), str(SCRIPTS.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with every warning shown."""
    return subprocess.run(
        [sys.executable, "-m", "postproc_export", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parents[1]), "COLUMNS": "200"},
    )
