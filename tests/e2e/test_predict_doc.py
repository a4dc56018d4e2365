"""docs/predict.md: every command and the program, run as they stand there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from attached_files import detector, labelled, photo
from doc_pages import missing

from postproc_export.cli import main
from postproc_export.prediction.folder import COLUMNS, FOLDERS, NAMES

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)
(SHOWN,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_block_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On labelled photos, and on others by a pattern, a list and a listing; each writes a table."""
    shutil.move(detector(tmp_path), tmp_path / "attached.onnx")
    labelled(tmp_path / "bottle" / "test")
    photo(tmp_path / "parts" / "a.png", (1, 1, 2, 2))
    photo(tmp_path / "parts" / "b" / "c.png")
    (tmp_path / "parts.csv").write_text("image,label,mask\nparts/a.png,bad,\nparts/b/c.png,,\n")
    monkeypatch.chdir(tmp_path)
    commands = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
    assert len(commands) == 4
    for line in commands:
        program, *arguments = shlex.split(line)
        assert program == "postproc-export"
        assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"
        assert line != commands[0] or [*missing(SHOWN, capsys.readouterr().out)] == []
        output = arguments[arguments.index("-o") + 1]
        lines = (tmp_path / output / "predictions.csv").read_text().splitlines()
        assert len(lines) == (5 if output == "predicted" else 3)
    (program,) = (text for language, text in BLOCKS if language == "python")
    capsys.readouterr()
    exec(compile(program, "docs/predict.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        str(Path("bottle/test/good/001.png")),
        str(Path("bottle/test/spot/000.png")),
    ]


def test_the_page_names_everything_that_is_written() -> None:
    """Every file and folder, every column of the table, and no other."""
    first = PAGE.split("bottle/test -o predicted")[1].split("\n\n")[2]
    table = PAGE.split("## The table")[1].split("\n\n")[1]
    rows = re.findall(r"^\| (`[^|]*`) \|", table, flags=re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(COLUMNS)
    for name in NAMES:
        assert f"`{name}{'/' if name in FOLDERS.values() else ''}`" in PAGE
    assert first.startswith("It takes")
