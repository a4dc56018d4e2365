"""The terminal: results on stdout, progress and remarks on stderr, as far as ``--json`` and ``--quiet`` leave them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_NARROWEST, _WIDE = 20, 70  # columns
_asked = {"json": False, "quiet": False}


@contextmanager
def asked_for(**how: bool) -> Iterator[None]:
    """Print as ``json`` or ``quiet`` ask for while the block runs: everything in this module looks there."""
    before = dict(_asked)
    _asked.update(how)
    try:
        yield
    finally:
        _asked.update(before)


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int | None, description: str | None = None) -> None:
        """Show `done` of `total` (None: not known); another description begins a phase, with a rate of its own."""


def stdout() -> Console:
    """Return a console for tables."""
    from rich.console import Console

    class Printable(Console):
        """A console on which a text cannot steer the terminal."""

        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(printable(text), **how)

    return Printable(highlight=False, soft_wrap=True, emoji=False, markup=False)


def stderr() -> Console:
    """Return a console for progress; with ``--quiet`` it is silent."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False, quiet=_asked["quiet"])


def grid(*titles: str, title: str) -> Table:
    """Return an empty table that fits the terminal: cells break between words, and stand closer where it is narrow."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    gap = 1 if stdout().width >= _WIDE else 0
    look = {"title": f"\n{title}", "title_justify": "left", "box": SIMPLE_HEAD, "show_edge": False}
    return Table(*titles, padding=(0, gap, 0, 0), title_style="bold", **look)  # type: ignore[arg-type]


def printable(text: str) -> str:
    """Return a text with its control characters spelt out: names of files may hold some that steer a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # not a tab, nor the end of a line


def say(text: str) -> None:
    """Tell people on stdout what is done, while it is done."""
    if not any(_asked.values()):
        write(wrapped(text, columns(sys.stdout)))


def remark(text: str, *, is_error: bool = False) -> None:
    """Tell people on stderr what they should know; with ``--quiet`` errors alone."""
    if (is_error or not _asked["quiet"]) and sys.stderr is not None:
        print(wrapped(printable(text), columns(sys.stderr)), file=sys.stderr, flush=True)


def show(result: Any, view: Callable[[Any], str | RenderableType], *, is_wanted: bool) -> None:
    """Print a result on stdout: the JSON object where that was asked for, else its view, a text or a table.

    With ``--quiet`` the view is printed only where the command failed, or where it is all that was wanted.
    """
    if _asked["json"]:
        write(json.dumps(result.to_json(), indent=2, allow_nan=False))
    elif is_wanted or not _asked["quiet"] or not result:
        shown = view(result)
        if isinstance(shown, str):
            write(wrapped(shown, columns(sys.stdout)))
        else:
            stdout().print(shown)


def show_next(words: Sequence[object]) -> None:
    """Print the command to run next, if any; it can be copied: a line that is broken ends in a backslash."""
    if words and not any(_asked.values()):
        write(command_line(words, before="next: "))


def command_line(words: Sequence[object], *, before: str = "") -> str:
    """Return a command as it is typed; on a terminal no word is broken, and every line but the last goes on."""
    lines, width = [before + "postproc-export"], columns(sys.stdout)
    for word in map(shlex.quote, map(str, words)):
        if width is not None and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append(" " * (len(before) + 3))
        lines[-1] += f" {word}"
    return "\n".join(lines)


def wrapped(text: str, width: int | None) -> str:
    """Return a text with its longer lines broken between words, and what follows below what a label is followed by.

    A line with a command stays whole: what is copied from it can be typed.
    """
    if width is None:
        return text
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("next: postproc-export "):
            lines.append(command_line(shlex.split(line)[2:], before="next: "))
            continue
        if _COMMAND.search(line):
            lines.append(line)
            continue
        own = " " * (len(line) - len(line.lstrip(" ")))
        label = next((found[0] for found in _LABEL.finditer(line) if len(found[0]) <= width // 2), f"{own}    ")
        below = " " * len(label)
        wrapper = TextWrapper(
            width, initial_indent=own, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
        )
        lines += wrapper.wrap(line.lstrip(" ")) or [""]
    return "\n".join(lines)


_COMMAND: Final = re.compile(r"\b(?:postproc-export|pip install) ")
_LABEL: Final = re.compile(r"^ *\S+(?: \S+)? {2,}")  # of a fact, with the space before its text


def columns(stream: Any) -> int | None:
    """Return how wide the terminal is; None for a file or a pipe, in which lines stay whole."""
    is_seen = bool(os.environ.get("COLUMNS")) or (stream is not None and stream.isatty())
    return max(_NARROWEST, shutil.get_terminal_size().columns) if is_seen else None


def write(text: str) -> None:
    """Write a text to stdout, for programs: nothing but control characters is changed."""
    if sys.stdout is not None:  # it is None where the process was started without one
        sys.stdout.write(printable(text.rstrip("\n")) + "\n")
        sys.stdout.flush()


@contextmanager
def progress(description: str, *, unit: str | None = None) -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs, on a terminal only; yields the function that moves it.

    `unit` is what is counted, for a rate beside the bar; None shows none.
    """
    from postproc_export.cli.progress_bar import PhaseBar

    with PhaseBar(description, unit=unit, console=stderr()) as bar:
        yield bar.advance_to


@contextmanager
def warnings_to_stderr() -> Iterator[None]:
    """Turn the package's warnings into one line each on stderr, when the block ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        remark(f"warning: {warning.message}")


@contextmanager
def leftovers_to_stderr() -> Iterator[None]:
    """Tell in one line each what killed runs left, when it is found; other warnings are shown as they would be."""
    from postproc_export.process import LeftoverWarning

    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, LeftoverWarning):
                remark(f"warning: {message}")
            else:
                show(message, category, *place, **more)

        warnings.simplefilter("always", LeftoverWarning)
        warnings.showwarning = tell
        yield


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep what libraries log off stderr, where one message says what is wrong."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
