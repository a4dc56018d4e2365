"""docs/vectors.md: every command and the program, run as they stand there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from attached_files import detector, labelled

from postproc_export.cli import main

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "vectors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_block_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kit of a detector and three photos, run by the program of the page, and judged: it passes."""
    shutil.move(detector(tmp_path), tmp_path / "attached.onnx")
    labelled(tmp_path / "bottle" / "test")
    monkeypatch.chdir(tmp_path)
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/vectors.md", "exec"), {})
            continue
        program, *arguments = shlex.split(text)
        assert program == "postproc-export"
        assert main(arguments) == 0, capsys.readouterr().err
    assert "PASSED: the model of kit decides as PyTorch does" in capsys.readouterr().out


def test_the_page_names_what_is_in_the_folder(tmp_path: Path) -> None:
    """Every kind of file; the keys of the manifest are those of its schema (docs/json.md)."""
    assert main(["vectors", str(detector(tmp_path)), "-o", str(tmp_path / "kit"), "--quiet"]) == 0
    document = json.loads((tmp_path / "kit" / "kit.json").read_text())
    kinds = {re.sub(r"\d+", "0", path) for path in document["files"]}
    shown = PAGE.split("## The kit")[1].split("## Running it")[0]
    assert [kind for kind in kinds if Path(kind).name not in shown] == []
