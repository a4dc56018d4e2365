"""The workflow that the repository runs for itself: what a runner takes, and the commands that the pages have."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = DOCUMENT["jobs"]["ci"]["steps"]
COMMANDS = [line for step in STEPS if "run" in step for line in step["run"].strip().splitlines()]


def page(name: str) -> str:
    """Return the text of a page."""
    return (ROOT / name).read_text(encoding="utf-8")


def test_a_runner_takes_it() -> None:
    """One job for every change, which may read and no more; each step uses a fixed action or runs a command."""
    assert set(DOCUMENT[True]) == {"pull_request", "push"}  # YAML 1.1 reads the key `on` as a boolean
    assert (list(DOCUMENT["jobs"]), DOCUMENT["permissions"]) == (["ci"], {"contents": "read"})
    for step in STEPS:
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
    kept = [step["with"]["path"] for step in STEPS if step.get("uses", "").startswith("actions/upload-artifact")]
    assert kept == ["dist", "site"]


def test_it_runs_what_contributors_run() -> None:
    """The script of a change, and the two commands that build; a page for contributors names each."""
    assert COMMANDS[0] == ".ci/run"
    assert (ROOT / COMMANDS[0]).stat().st_mode & 0o100
    built = [line.removeprefix(".venv/bin/") for line in COMMANDS if line.startswith(".venv/bin/")]
    assert len(built) == 2
    for command in (COMMANDS[0], *built):
        assert f"`{command}`" in page("CONTRIBUTING.md")


def test_the_wheel_does_the_first_how_to() -> None:
    """The commands are those of docs/onnx.md, with extras that there are."""
    typed = [line.removeprefix("clean/bin/") for line in COMMANDS if "bin/postproc-export" in line]
    assert [line.split()[1] for line in typed] == ["calibrate", "attach", "check"]
    assert [line for line in typed if f"\n{line}\n" not in page("docs/onnx.md")] == []
    extras = tomllib.loads(page("pyproject.toml"))["project"]["optional-dependencies"]
    (named,) = (found for line in COMMANDS for found in re.findall(r"\.whl\)\[([\w,]+)\]", line))
    assert set(named.split(",")) <= set(extras)
