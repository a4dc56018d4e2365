"""The tables of `calibrate`: numbers that read back, and what can be reached."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from postproc_export.cli.calibrate import statistics_view
from postproc_export.float32 import next_up, to_float32
from postproc_export.stats import CalibrationStats, LevelStats


def shown(**details: Any) -> list[list[str]]:
    """Return the rows of the tables, as words, of statistics whose neighbouring values are one ulp apart."""
    low = to_float32(16_777_214.0)
    level = LevelStats(threshold=next_up(low), min=low, max=next_up(next_up(next_up(low))), details=details)
    screen = StringIO()
    Console(file=screen, width=150, emoji=False, markup=False).print(statistics_view(CalibrationStats(image=level)))
    return [line.replace("│", " ").replace("┃", " ").split() for line in screen.getvalue().splitlines()]


def test_different_values_look_different() -> None:
    """Threshold, min and max that are one ulp apart have different digits; whole numbers have no fraction."""
    rows = shown()
    assert ["threshold", "16777215"] in rows
    assert ["min", "16777214"] in rows
    assert ["max", "16777218"] in rows


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1000.0001, 1e-30, 3.4e38, -2.5, 123456.79])
def test_what_is_printed_reads_back(value: float) -> None:
    """Typed as a threshold, it is the same float32."""
    value = to_float32(value)
    rows = shown(
        policies=[{"policy": "f1", "threshold": value}], threshold_interval={"low": value, "high": next_up(value)}
    )
    (row,) = [row for row in rows if row[:1] == ["f1"]]
    assert to_float32(float(row[1])) == value
    (interval,) = [row for row in rows if row[:2] == ["95", "%"]]
    assert [to_float32(float(word)) for word in (interval[-3], interval[-1])] == [value, next_up(value)]


def test_what_cannot_be_reached_says_what_can() -> None:
    """The precision is rounded down, so that it can be asked for; without the record the bare fact is left."""
    best = {"precision": 0.99739, "threshold": 12.5}
    rows = shown(
        policies=[
            {"policy": "precision=1", "threshold": None, "reachable": best},
            {"policy": "precision=0.999", "threshold": None},
        ]
    )
    said = ["not", "reachable", "(precision", "0.9973", "at", "12.5)"]
    assert ["precision=1", *said, "-", "-", "-", "-"] in rows
    assert ["precision=0.999", "not", "reachable", "-", "-", "-", "-"] in rows


@pytest.mark.parametrize("columns", [60, 80])
def test_no_number_is_cut_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine digits, a policy of 14 characters and four rates stand whole on 60 columns; lines are no wider."""
    monkeypatch.setenv("COLUMNS", str(columns))
    rates = {"f1": 0.9756, "precision": 1.0, "recall": 0.85, "fpr": 0.0}
    row = {"policy": "quantile=0.995", "threshold": to_float32(-8.922578), **rates}
    level = LevelStats(threshold=1.5, min=0.0, max=2.0, details={"policies": [row]})
    screen = StringIO()
    Console(file=screen, width=columns).print(statistics_view(CalibrationStats(image=level)))
    assert ["quantile=0.995", "-8.922578", "0.9756", "1.0000", "0.8500", "0.0000"] in [
        line.split() for line in screen.getvalue().splitlines()
    ]
    assert max(map(len, screen.getvalue().splitlines())) <= columns
