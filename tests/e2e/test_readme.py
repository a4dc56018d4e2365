"""Every command and every program of the README, run as it stands there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Invoke
from doc_pages import run_block

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SETUP = re.search(r"<!-- setup -->\n```sh\n(.*?)```", README, flags=re.DOTALL)
REST = README.split("<!-- /setup -->")[1]
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", REST, flags=re.DOTALL)

pytestmark = pytest.mark.e2e


def test_the_setup_is_two_commands_of_one_line() -> None:
    """The README sets everything up in two lines; CI runs them from there."""
    assert SETUP is not None
    lines = SETUP.group(1).strip().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("postproc-export demo")
    assert "pytest" in lines[1]


def test_every_other_block_runs_on_the_files_of_the_demo(beside_the_demo: Callable[[], str], invoke: Invoke) -> None:
    """The commands of the three users run in order, in a folder that holds the demo's files.

    What a command is said to print is what it prints, but for numbers, and what a machine may add: lines in between,
    and at the end of one what it could not check.
    """
    assert len(BLOCKS) >= 5
    assert any(told for _, _, told in BLOCKS)
    for language, text, told in BLOCKS:
        out = run_block(language, text, {}, invoke, beside_the_demo)
        printed = [re.sub(r"\d+", "0", line) for line in out.splitlines()]
        for line in re.sub(r"\d+", "0", re.sub(r"\n {4}", " ", told)).splitlines():
            assert any(each == line or each.startswith(f"{line.removesuffix('.')};") for each in printed), line


def test_every_linked_file_is_there() -> None:
    """No link or picture of the README leads nowhere."""
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
