"""The terminal: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int | None, description: str | None = None) -> None:
        """Show `done` of `total` (None: not known), and another text beside the bar if one is given."""


def stdout() -> Console:
    """Return a console for results; long lines are left to the terminal to wrap."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """Return a console for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def progress(description: str) -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs, on a terminal only; yields the function that moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def advance(done: int, total: int | None, description: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=description)

        yield advance


@contextmanager
def warnings_to_stderr() -> Iterator[None]:
    """Turn the package's warnings into one line each on stderr, when the block ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        stderr().print(f"warning: {warning.message}", markup=False)


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep what libraries log off stderr, where one message says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
