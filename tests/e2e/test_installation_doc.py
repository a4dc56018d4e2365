"""docs/installation.md: every block as a user types it, in a home of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from schemas import faults

from postproc_export import installation
from postproc_export.cli import main
from postproc_export.installation import BRINGS, examine

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "installation.md").read_text(encoding="utf-8")
DOCTOR, *REST = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_doctor_tells_what_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The doctor names every extra, as the schema says in JSON; both commands tell of one long examination."""
    found = examine()
    monkeypatch.setattr(installation, "examine", lambda **_: found)
    printed = {}
    for line in DOCTOR.splitlines():
        assert main(line.split()[1:]) == 0
        printed[line] = capsys.readouterr().out
    assert all(brings in printed["postproc-export doctor"] for brings in BRINGS.values())
    document = json.loads(printed["postproc-export doctor --json"])
    assert {"postproc-export", *BRINGS} - {""} == document["extras"].keys()
    assert faults("doctor", document) == []


def test_every_other_block_runs(tmp_path: Path) -> None:
    """The scripts are where the page says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(REST)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    scripts = [path for path in tmp_path.rglob("*") if path.is_file() and "postproc-export" in path.name]
    assert len(scripts) == 3
    assert all(script.stat().st_size > 1000 for script in scripts)
