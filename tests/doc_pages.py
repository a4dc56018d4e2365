"""Running the blocks of a page as they stand there, and comparing what it shows with what is printed."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[1] / "docs"
_BLOCK: Final = re.compile(r"```(sh|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", flags=re.DOTALL)
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+[\w.+-]*")
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Return the language and the text of each block of a page, and what the page says that it prints."""
    return _BLOCK.findall((DOCS / name).read_text(encoding="utf-8"))


def run_page(name: str, invoke: Callable[..., Any], capture: Callable[[], str]) -> str:
    """Run every block in order in the working folder, and return what all of them print; see `run_block`."""
    names: dict[str, Any] = {}
    whole = ""
    for language, text, told in blocks(name):
        printed = run_block(language, text, names, invoke, capture)
        assert [*missing(told, printed)] == [], f"{name}: {text}\nprinted:\n{printed}"
        whole += printed
    return whole


def run_block(
    language: str, text: str, names: dict[str, Any], invoke: Callable[..., Any], capture: Callable[[], str]
) -> str:
    """Run a block, and return what it prints: commands of ours and programs in this process, other lines in bash.

    `names` are those of the programs before. `capture` returns what a program has printed.
    """
    if language == "python":
        exec(compile(text, "a page", "exec"), names)
        return capture()
    return "".join(_run(line, invoke) for line in text.replace("\\\n", " ").strip().splitlines())


def _run(line: str, invoke: Callable[..., Any]) -> str:
    if line.startswith("postproc-export ") and " > " not in line:
        found = invoke(*shlex.split(line)[1:])
        assert found.exit_code == 0, f"{line}\n{found.stdout}\n{found.stderr}"
        return str(found.stdout + found.stderr)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", line]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def missing(told: str, printed: str) -> Iterator[str]:
    """Yield the lines of a page that nothing printed is like; `...` stands for what is left out."""
    lines = [line.rstrip() for line in printed.splitlines()]
    for line in told.splitlines():
        start = line.removesuffix("...").rstrip() if line.endswith("...") else None
        if not any(_alike(line if start is None else start, each, is_start=start is not None) for each in lines):
            yield line


def _alike(told: str, printed: str, *, is_start: bool) -> bool:
    """Return whether a line is the other one, or its start, but for versions and for numbers that are near."""
    told, printed = (_VERSION.sub("V", " ".join(text.split())) for text in (told, printed))
    words, found = _NUMBER.split(told), _NUMBER.split(printed)
    numbers = zip(_NUMBER.findall(told), _NUMBER.findall(printed), strict=False)
    if is_start:
        last = len(words) - 1
        same = words[:last] == found[:last] and len(found) > last and found[last].startswith(words[last])
    else:
        same = words == found
    return same and all(_near(one, other) for one, other in numbers)


def _near(one: str, other: str) -> bool:
    """Return whether numbers differ by less than another processor makes of them."""
    first, second = (float(text.replace(",", "")) for text in (one, other))
    is_count = "." not in one + other
    return abs(first - second) <= max(0.03 * max(first, second), 2.0 if is_count else 0.0)
