"""A row of the table of peers: who did what, how fast, in how much memory, and what came of it."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import Call, interleaved

OURS = "postproc-export"
Wanted = Callable[[str], bool]
"""Whether a case is to be measured."""


@dataclass(kw_only=True)
class Row:
    """One measurement; `ratio` is its time by ours in the same case, None where there is nothing to divide by."""

    part: str
    case: str
    who: str
    seconds: float | None = None  # the median
    spread: float | None = None  # the interquartile range by the median
    ratio: float | None = None
    peak_mb: float | None = None
    result: str = ""

    def cells(self) -> list[str]:
        """Return the row of a Markdown table."""
        return [
            self.part,
            self.case,
            self.who,
            time_text(self.seconds),
            "" if self.spread is None else f"{100 * self.spread:.0f} %",
            ratio_text(self.ratio),
            "" if self.peak_mb is None else f"{self.peak_mb:,.0f}",
            self.result.replace("|", "/").replace("\n", " "),
        ]


COLUMNS = ("part", "case", "who", "median", "spread", "by ours", "peak MB", "result")


def time_text(seconds: float | None) -> str:
    """Return a time with three digits, in the unit that suits it."""
    if seconds is None:
        return ""
    unit, scale = ("s", 1.0) if abs(seconds) >= 1 else ("ms", 1e3) if abs(seconds) >= 1e-3 else ("us", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def ratio_text(ratio: float | None) -> str:
    """Return a ratio with two digits at least."""
    if ratio is None:
        return ""
    return f"{ratio:,.0f}" if abs(ratio) >= 10 else f"{ratio:.2g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_turn(calls: Mapping[str, Call], *, seconds: float, least: int = 7, most: int = 101) -> dict[str, list[float]]:
    """Return the processor's seconds of each call in each of as many rounds as fit into a time, after a warm-up.

    All calls have one thread, so that this is their time on a machine that does nothing else.
    """
    for call in calls.values():
        call()
    start = time.perf_counter()
    for call in calls.values():
        call()
    rounds = int(seconds / (time.perf_counter() - start))
    return interleaved(calls, rounds=min(most, max(least, rounds)), warm_up=0, clock=time.process_time)


def spread(values: Sequence[float]) -> float | None:
    """Return the interquartile range by the median of several values."""
    if len(values) < 2:
        return None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle if middle else None


def rows_of(
    part: str, case: str, seconds: Mapping[str, list[float]], results: Mapping[str, str] | None = None
) -> list[Row]:
    """Return a row for each that took part in a case.

    The ratio is the median of those within a round; that of the medians where a time is a difference that noise may
    make negative; and none where that of ours is.
    """
    ours = seconds.get(OURS)
    return [
        Row(
            part=part,
            case=case,
            who=who,
            seconds=statistics.median(values),
            spread=spread(values),
            ratio=None if ours is None else ratio_of(values, ours),
            result=(results or {}).get(who, ""),
        )
        for who, values in seconds.items()
    ]


def ratio_of(values: Sequence[float], ours: Sequence[float]) -> float | None:
    """Return how many times as long something takes as ours does."""
    if min(ours) > 0:
        return statistics.median(a / b for a, b in zip(values, ours, strict=True))
    middle = statistics.median(ours)
    return statistics.median(values) / middle if middle > 0 else None


LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
found = [time.perf_counter() - start, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)]
open(sys.argv[1], "w").write(json.dumps(found))
"""
"""A process that starts another: the peak memory of a child begins with its parent's, and this one has next to none."""


def process(command: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Return the wall seconds, the peak MB and the output of a command; raises CalledProcessError if it fails."""
    told = folder / "told.json"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    launch = [sys.executable, "-S", "-E", "-c", LAUNCHER, str(told), *command]
    run = subprocess.run(launch, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    seconds, peak, code = json.loads(told.read_text())
    if code:
        raise subprocess.CalledProcessError(code, command[-3:], run.stderr[-300:])
    return seconds, peak, run.stderr


def installed(module: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(module) is not None


def not_installed(part: str, case: str, who: str, package: str) -> Row:
    """Return the row of a peer that is not there."""
    return Row(part=part, case=case, who=who, result=f"not installed: pip install {package}")


def error_text(error: BaseException) -> str:
    """Return the class and the first line of an error that a peer ended with."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
