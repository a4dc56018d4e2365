"""Every command of docs/quality_manager.md, run on the demo's files, and the figures that it works with."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import Invoke

DOC = (Path(__file__).parents[2] / "docs" / "quality_manager.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOC, flags=re.DOTALL) for line in block.splitlines()]

pytestmark = pytest.mark.e2e


@pytest.mark.usefixtures("beside_the_demo")
def test_every_command_runs_as_it_stands(invoke: Invoke) -> None:
    """In order, in a folder that holds the demo's; each file that a command names as its output is there."""
    assert {command.split()[1] for command in COMMANDS} == {"report", "inspect", "update", "predict"}
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "postproc-export"
        found = invoke(*words[1:])
        assert found.exit_code == 0, f"{command}\n{found.stdout}\n{found.stderr}"
        if "-o" in words:
            assert Path(words[words.index("-o") + 1]).exists()


@pytest.mark.parametrize(("parts", "most"), [(30, 10), (300, 100), (3_000, 1_000)])
def test_the_limits_of_what_was_not_seen(parts: int, most: int) -> None:
    """At a true rate of one in so many, no alarm in so many parts has a chance of about 5 %; the table says so."""
    assert f"| {parts:,} | 1 in {most:,} |" in DOC
    assert (1 - 1 / most) ** parts == pytest.approx(0.05, abs=0.01)
    assert (1 - 1 / (2 * most)) ** parts > 0.2


def test_the_rates_are_worked_out_right() -> None:
    """Those of the examples: 38 of 40 found with 2 false alarms in 30, and 1 defect among 1,000 parts."""
    assert "38 of 40 is a recall of 0.95" in DOC
    assert "2 of 30 is 0.0667" in DOC
    assert "38 found and 2 false alarms are a precision of 0.95" in DOC
    assert (38 / 40, round(2 / 30, 4), 38 / (38 + 2)) == (0.95, 0.0667, 0.95)
    assert "a precision of 0.09" in DOC
    assert round(1 / (1 + 0.01 * 999), 2) == 0.09


def test_every_picture_is_there_and_small() -> None:
    """`docs/pictures.py` draws all of them."""
    names = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", DOC)
    script = (Path(__file__).parents[2] / "docs" / "pictures.py").read_text(encoding="utf-8")
    assert len(names) == 3
    for name in names:
        assert (Path(__file__).parents[2] / "docs" / name).stat().st_size < 250_000
        assert f'"{name}"' in script
