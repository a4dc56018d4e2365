"""The result of `calibrate` as tables."""

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from postproc_export.float32 import shortest, to_float32
from postproc_export.stats import LEVELS, CalibrationStats, LevelStats

_RATES: Final = ("f1", "precision", "recall", "fpr")


def statistics_view(stats: CalibrationStats) -> RenderableType:
    """Return a table with one column per calibrated level, and one of the policies that were compared."""
    levels = {level: found for level in LEVELS if (found := stats.level(level)) is not None}
    table = Table("", *levels, title="calibration, in raw units", title_justify="left")
    columns = [_cells(found) for found in levels.values()]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns))
    compared = [_policies_view(level, found.details["policies"]) for level, found in levels.items() if _compared(found)]
    return Group(table, *compared)


def _compared(level: LevelStats) -> bool:
    return bool(level.details.get("policies"))


def _cells(level: LevelStats) -> dict[str, str]:
    rates = level.details.get("at_threshold") or {}
    counts = {name: getattr(level, f"n_{name}") for name in ("normal", "anomalous", "dropped")}
    return {
        "threshold": "none" if level.threshold is None else _number(level.threshold),
        "95 % interval of it": _range(level.details.get("threshold_interval")),
        "min": _number(level.min),
        "max": _number(level.max),
        "policy": level.policy or "-",
        "decided by": level.rule or "-",
        **{name: "-" if count is None else f"{count:,}" for name, count in counts.items()},
        **{_label(name): _rate(rates.get(name)) for name in _RATES},
        "AUROC": _interval(level.details.get("auroc")),
        "average precision": _interval(level.details.get("average_precision")),
    }


def _policies_view(level: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        "policy", "threshold", *map(_label, _RATES), title=f"other policies, {level} level", title_justify="left"
    )
    for row in rows:
        threshold = _unreachable(row) if row.get("threshold") is None else _number(row["threshold"])
        table.add_row(str(row["policy"]), threshold, *(_rate(row.get(name)) for name in _RATES))
    return table


def _number(value: float) -> str:
    """Return the shortest decimal that reads back to the same float32: typed in, it is the same threshold."""
    return repr(shortest(to_float32(value))).removesuffix(".0")


def _unreachable(row: Mapping[str, Any]) -> str:
    best = row.get("reachable") or {}
    if best.get("precision") is None or best.get("threshold") is None:
        return "not reachable"
    # Rounded down: a precision of 1.0000 that is none cannot be asked for.
    return f"not reachable (precision {floor(best['precision'] * 1e4) / 1e4:.4f} at {_number(best['threshold'])})"


def _label(rate: str) -> str:
    return rate.upper() if rate in ("f1", "fpr") else rate


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _range(interval: Mapping[str, Any] | None) -> str:
    if not interval or interval.get("low") is None:
        return "-"
    return f"{_number(interval['low'])} to {_number(interval['high'])}"


def _interval(interval: Mapping[str, float] | None) -> str:
    if not interval:
        return "-"
    low, high = interval["low"], interval["high"]
    return f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"{low:.4f} to {high:.4f}"
