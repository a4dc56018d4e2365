"""docs/steps.md: every command, run as it stands there, with the class that stands there."""

import re
import shlex
from pathlib import Path

import hosts
import numpy as np
import onnx
import pytest
from shipped_tails import labelled_images

from postproc_export.cli import main

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "steps.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


def test_every_command_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a model of opset 14; what is detached is the model itself."""
    host = hosts.score_and_map(opset=14, dynamic=False, batch="N", size=(32, 32))
    hosts.write(host, tmp_path / "model.onnx")
    labelled_images(tmp_path / "images")
    (tmp_path / "own_step.py").write_text(PAGE.split("```python\n")[1].split("```")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "scores.npz", pred_score=np.array([-1, -2, -3, -4], np.float32), gt_label=[1, 1, 0, 0])
    np.savez(tmp_path / "columns.npz", pred_score=np.eye(4, 2, dtype=np.float32), gt_label=[0, 1, 0, 0])
    hosts.write(hosts.draem(), tmp_path / "draem.onnx")
    assert len(COMMANDS) == 14
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "postproc-export"
        assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"
    assert onnx.load("original.onnx") == host
    names = [item.name for item in onnx.load("points.onnx").graph.output]
    assert names[-2:] == ["pred_label_strict", "pred_label_safe"]
