"""The terminal: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int | None, description: str | None = None) -> None:
        """Show `done` of `total` (None: not known); another description begins a phase, with a rate of its own."""


def stdout(*, markup: bool = False) -> Console:
    """Return a console for results; long lines are left to the terminal to wrap, and texts stay as they are."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, emoji=False, markup=markup)


def stderr() -> Console:
    """Return a console for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def write(text: str) -> None:
    """Write a text to stdout to the letter, for programs: nothing is styled, replaced or wrapped."""
    if sys.stdout is not None:  # it is None where the process was started without one
        sys.stdout.write(text.rstrip("\n") + "\n")
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
        stderr().print(f"warning: {warning.message}")


@contextmanager
def leftovers_to_stderr() -> Iterator[None]:
    """Tell in one line each what killed runs left, when it is found; other warnings are shown as they would be."""
    from postproc_export.process import LeftoverWarning

    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, LeftoverWarning):
                stderr().print(f"warning: {message}")
            else:
                show(message, category, *place, **more)

        warnings.simplefilter("always", LeftoverWarning)
        warnings.showwarning = tell
        yield


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep what libraries log off stderr, where one message says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
