"""The help of the command line as a whole: told without cyclopts and what commands need, which take long to import."""

import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from textwrap import wrap
from types import CodeType
from typing import Any, Final

NAME: Final = "postproc-export"
ABOUT: Final = "Calibrate, attach and check the post-processing of exported anomaly-detection models."
HOMES: Final = {
    "demo": "export",
    "calibrate": "calibrate",
    "attach": "attach",
    "export": "export",
    "check": "check",
    "vectors": "check",
    "judge": "check",
    "predict": "predict",
    "inspect": "attach",
    "stats": "calibrate",
    "report": "report",
    "update": "attach",
    "detach": "attach",
    "doctor": "attach",
}
"""The module of this folder that each command stands in, in the order of the help."""
HELP_FLAGS: Final = ("--help", "-h")
_NARROWEST, _WIDEST = 20, 120  # columns of the text


def docstring_of(function: str, module: str) -> str:
    """Return the docstring of a function in this folder, read from the compiled module, which is not run.

    It is empty under ``-OO``.
    """
    spec: Any = find_spec(f"{__package__}.{module}")
    functions = [each for each in spec.loader.get_code(spec.name).co_consts if isinstance(each, CodeType)]
    (text,) = (each.co_consts[0] or "" for each in functions if each.co_name == function)
    return text


def laid_out(title: str, entries: Iterable[tuple[str, str]], width: int) -> str:
    """Return a part of a help: each name in full, however narrow the terminal, and its text below."""
    lines, room = [f"{title}:"], max(_NARROWEST, min(width, _WIDEST) - 6)
    for name, text in entries:
        lines += [f"  {name}", *(f"      {line}" for line in wrap(text, room, break_on_hyphens=False))]
    return "\n".join(lines)


def overview() -> str:
    """Return the help of the command line, as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    about = "\n".join(wrap(ABOUT, width, break_on_hyphens=False))
    entries = {name: docstring_of(name, home) for name, home in HOMES.items()}
    entries["--completion"] = docstring_of("completion", "commands")
    entries |= {", ".join(HELP_FLAGS): "Display this message and exit.", "--version": "Display application version."}
    first = ((name, text.partition("\n")[0]) for name, text in entries.items())
    return f"Usage: {NAME} COMMAND\n\n{about}\n\n{laid_out('Commands', first, width)}\n"
