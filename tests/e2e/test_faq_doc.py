"""docs/faq.md: every command, run as it stands there on the files of the demo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from postproc_export import CalibrationStats

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "faq.md").read_text(encoding="utf-8")


def test_every_command_runs_and_the_answers_hold(demo_folder: Path, tmp_path: Path) -> None:
    """Each ends well; good images alone have a threshold; a sensitivity for recall 1 finds every defect."""
    (tmp_path / "postproc-export-demo").symlink_to(demo_folder)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 6
    for text in blocks:
        command = ["bash", "-euo", "pipefail", "-c", text]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
        printed += run.stdout
    assert "40 of 40 anomalous" in printed
    good = CalibrationStats.load(tmp_path / "good.json")
    assert good.image is not None
    assert (good.image.n_anomalous, good.image.policy) == (0, "fpr=0.05")
