"""Every program and every command of docs/scale.md, run as it stands there, a section at a time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOC = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in DOC.split("\n## ")[1:]}
BLOCKS = {title: re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL) for title, text in SECTIONS.items()}

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("title", [title for title, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_section_run_in_order(title: str, tmp_path: Path) -> None:
    """A program that opens with its name is saved under it, for the commands that follow; the others are run."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, text in BLOCKS[title]:
        name = re.match(r"# (\w+\.py)\n", text)
        if name is not None:
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"


def test_the_programs_are_all_used() -> None:
    """A saved program is run by a command of its section."""
    for blocks in BLOCKS.values():
        commands = "".join(text for language, text in blocks if language == "sh")
        names = [name for _, text in blocks for name in re.findall(r"\A# (\w+\.py)\n", text)]
        assert all(name in commands for name in names), names
