"""The progress bar: how much is done, how fast, and how long it takes; every phase counts from its own start."""

from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_IN_FULL: Final = 10_000  # numbers below it are not shortened


class PhaseBar(Progress):
    """One bar for work in several phases, such as passes over files; nothing is shown unless on a terminal.

    `unit` is what is counted, for the rate; None shows none. `clock` gives seconds; None is the console's own.
    """

    def __init__(
        self, description: str, *, unit: str | None, console: Console, clock: Callable[[], float] | None = None
    ) -> None:
        rate = [] if unit is None else [_Rate(unit)]
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=16), _Count(), *rate, _Time())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal, get_time=clock)
        self._phase = self.add_task(description, total=None)

    def advance_to(self, done: int, total: int | None, description: str | None = None) -> None:
        """Show `done` of `total` (None: not known); another description, or less than before, begins a phase."""
        task = self.tasks[0]
        if done < task.completed or description not in (None, task.description):
            self.remove_task(self._phase)
            self._phase = self.add_task(description or task.description, total=None)
        self.update(self._phase, completed=done, total=total)


def short(number: float) -> str:
    """Return a number in at most six characters, such as ``4.2`` or ``12.3M``."""
    for size, prefix in _PREFIXES if number >= _IN_FULL else ():
        if number >= size:
            return f"{number / size:.1f}{prefix}"
    return f"{number:.1f}" if number < 100 and number != int(number) else f"{number:.0f}"


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        if task.total is None and not task.completed:
            return Text()
        total = "?" if task.total is None else short(task.total)
        return Text(f"{short(task.completed)}/{total}", style="progress.download")


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text() if speed is None else Text(f"{short(speed)} {self._unit}/s", style="progress.data.speed")


class _Time(ProgressColumn):
    """The time that is left, or where nobody knows, the time that has passed."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed, self._left = TimeElapsedColumn(), TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        return (self._elapsed if task.total is None else self._left).render(task)
