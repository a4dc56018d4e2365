"""docs/export.md: every command and every program, run as it stands there beside docs/examples/feature_distance.py."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import hosts
import onnx
import openvino
import pytest
from checks import check_briefly
from conftest import Invoke
from doc_pages import DOCS, missing

from postproc_export import CalibrationStats, LevelStats
from postproc_export.process import quiet_exporter
from postproc_export.runtimes.openvino import openvino_core

pytestmark = pytest.mark.e2e

PAGE = (DOCS / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)
(SHOWN,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
STATS = CalibrationStats(
    image=LevelStats(threshold=2.0, min=0.0, max=4.0), pixel=LevelStats(threshold=1.5, min=0.0, max=4.0)
)
MADE = ("dist/model.onnx", "dist/model.xml", "release/model.onnx")
ATTACHED = ("attached.onnx", "attached.xml", "attached_ir.onnx", "program.onnx")


def test_every_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """The files that the page speaks of come about, and each passes its check, and it shows what is printed."""
    shutil.copy(DOCS / "examples/feature_distance.py", tmp_path)
    hosts.write(hosts.score_and_map(), tmp_path / "raw.onnx")
    STATS.save(tmp_path / "stats.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    core = openvino_core(purpose="the tests")
    monkeypatch.setattr(openvino, "Core", lambda: core)  # one core per process
    names: dict[str, Any] = {}
    assert [language for language, _ in BLOCKS] == ["sh", *["python"] * 5]
    for language, text in BLOCKS:
        if language == "sh":
            result = invoke(*shlex.split(text)[1:])
            assert result.exit_code == 0, result.stderr
            assert [*missing(SHOWN, result.stdout)] == []
        else:
            with quiet_exporter():
                exec(compile(text, "docs/export.md", "exec"), names)
    assert all(Path(name).is_file() for name in MADE)
    assert all(check_briefly(Path(name)) for name in ATTACHED)
    assert onnx.load("program.onnx").graph.output[0].name == "pred_score"
