"""The progress bar of the command line: counts, rates, times, and phases."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scripting import TIMEOUT, environment

from postproc_export.cli.progress_bar import PhaseBar, short


class Shown:
    """A bar on a terminal of 100 columns, with a clock that is set by hand."""

    def __init__(self, unit: str | None) -> None:
        self.now = 0.0
        self._screen = StringIO()
        self._console = Console(file=self._screen, force_terminal=True, width=100, color_system=None, emoji=False)
        self._bar = PhaseBar("reading", unit=unit, console=self._console, clock=lambda: self.now)

    def after(self, seconds: float, done: int, total: int | None, description: str | None = None) -> str:
        """Return the bar as it stands after some seconds of work."""
        self.now += seconds
        self._bar.advance_to(done, total, description)
        self._screen.seek(0)
        self._screen.truncate()
        self._console.print(self._bar.make_tasks_table(self._bar.tasks))
        return " ".join(self._screen.getvalue().split())


def test_the_rate_is_shown() -> None:
    """Work done per second, shortened, beside done and total and the time that is left."""
    bar = Shown("values")
    bar.after(1, 1_000_000, 10_000_000)
    text = bar.after(1, 3_000_000, 10_000_000)
    assert text.startswith("reading ")
    assert text.endswith("3.0M/10.0M 2.0M values/s 00:04")


def test_without_a_unit_there_is_no_rate() -> None:
    """Steps of a check are not alike."""
    bar = Shown(None)
    bar.after(1, 1, 4)
    assert bar.after(1, 2, 4).endswith("2/4 00:02")


def test_an_unknown_total_shows_the_time_that_has_passed() -> None:
    """In the first pass nobody knows how much there is."""
    bar = Shown("values")
    bar.after(0, 20_000, None)
    assert bar.after(5, 40_000, None).endswith("40.0k/? 4000 values/s 0:00:05")


def test_a_phase_counts_from_its_own_start() -> None:
    """The next pass, and the next level, whose total is not known yet, inherit nothing."""
    bar = Shown("values")
    bar.after(1, 10, None, "image level, pass 1")
    bar.after(1, 70, 70, "image level, pass 2")
    assert bar.after(1, 4, None, "pixel level, pass 1").startswith("pixel level, pass 1 ")
    text = bar.after(2, 24, None, "pixel level, pass 1")
    assert text.endswith("24/? 10 values/s 0:00:02")
    assert bar.after(1, 3, 90).split()[-3] != "24/?", "less than before is another pass, too"


def test_what_has_no_count_shows_none() -> None:
    """Computing the statistics takes as long as it takes."""
    bar = Shown("images")
    bar.after(1, 70, 70)
    text = bar.after(0, 0, None, "computing the statistics")
    assert text.startswith("computing the statistics ")
    assert "/" not in text
    assert bar.after(3, 0, None).endswith("0:00:03")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (4.25, "4.2"), (70, "70"), (9_999, "9999"), (12_300, "12.3k"), (4.56e8, "456.0M"), (2e12, "2000.0G")],
)
def test_numbers_are_short(number: float, text: str) -> None:
    """A billion values and their total fit beside a bar."""
    assert short(number) == text


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_command_shows_it_on_a_terminal_alone(is_terminal: bool, tmp_path: Path) -> None:
    """Passes, level and rate of `calibrate`; a file gets none of it."""
    rng = np.random.default_rng(1)
    labels = np.tile(np.array([0, 0, 0, 1], np.uint8), 1_500_000)
    np.savez(tmp_path / "val.npz", pred_score=rng.standard_normal(labels.size, np.float32) + labels, gt_label=labels)
    import pty

    mine, theirs = pty.openpty()
    with (
        (tmp_path / "err").open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "postproc_export", "calibrate", "val.npz", "-o", "s.json", "--no-compare"],
            stdout=subprocess.DEVNULL,
            stderr=theirs if is_terminal else file,
            cwd=tmp_path,
            env={**environment(), "TERM": "xterm", "COLUMNS": "120"},
        ) as process,
    ):
        os.close(theirs)
        shown = _read(mine) if is_terminal else ""
        assert process.wait(timeout=TIMEOUT) == 0
    os.close(mine)
    shown = shown or (tmp_path / "err").read_text()
    assert ("image level, pass 1" in shown) is is_terminal
    assert ("M values/s" in shown) is is_terminal


def _read(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)
