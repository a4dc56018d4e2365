"""What a report knows of a level: its settings with every figure that the page shows, as JSON and as text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from postproc_export.curve import Curve, Limits, Setting, settings
from postproc_export.float32 import json_number, shortest
from postproc_export.report.axis import ValueAxis
from postproc_export.stats import Level, LevelStats
from postproc_export.update import State

RATES: Final = ("recall", "precision", "f1", "fpr")


@dataclass(frozen=True, slots=True)
class LevelView:
    """One level of what is reported: what decides, and what that finds at every setting."""

    level: Level
    stats: LevelStats
    state: State
    curve: Curve | None  # None where the statistics hold none
    settings: list[Setting]

    @classmethod
    def of(cls, level: Level, state: State) -> Self | None:
        """Return a level that decides; None where there is no threshold, or labels are switched off."""
        stats = state.stats.level(level)
        if stats is None or state.boundary(level) is None:
            return None
        options, half = state.options, state.narrow.get(level)
        return cls(level, stats, state, Curve.of(stats), settings(stats, comparison=options.comparison, half=half))

    @property
    def sensitivity(self) -> float:
        """The sensitivity that is attached, or the default."""
        return shortest(self.state.options.sensitivity(self.level))

    @property
    def axis(self) -> ValueAxis | None:
        """The axis of raw values; None without a curve."""
        return None if self.curve is None else ValueAxis.of(self.stats, self.curve)

    def to_json(self) -> dict[str, Any]:
        """Return what report.js shows: numbers that decide, and a list for each figure with an entry a setting."""
        axis, counts = self.axis, [each.counts for each in self.settings]
        shares = [each.shares for each in counts]
        return {
            **{name: json_number(getattr(self.stats, name)) for name in ("threshold", "min", "max")},
            "comparison": self.state.options.comparison,
            "half": self.state.narrow.get(self.level),
            "sensitivity": self.sensitivity,
            "normal": None if self.curve is None else self.curve.normal,
            "anomalous": None if self.curve is None else self.curve.anomalous,
            "axis": None if axis is None else axis.to_json(),
            "least": [json_number(each.least) for each in self.settings],
            "decimal": [each.decimal for each in self.settings],
            "tp": [each.tp[0] for each in counts],
            "tpMost": [each.tp[1] for each in counts],
            "fp": [each.fp[0] for each in counts],
            "fpMost": [each.fp[1] for each in counts],
            "texts": {name: [percent(each[name]) for each in shares] for name in RATES},
        }


def percent(limits: Limits | None) -> str:
    """Return a rate for people, with two decimals at least: what is not 0 or 1 does not look so."""
    if limits is None:
        return "-"
    texts = list(dict.fromkeys(_percent(*each) for each in limits))
    return f"{' to '.join(texts)} %"


def _percent(part: int, whole: int) -> str:
    """Return per cent rounded to the nearest, half to even."""
    for digits in range(2, 14):
        unit = 10**digits
        scaled, rest = divmod(100 * unit * part, whole)
        scaled += 2 * rest > whole or (2 * rest == whole and scaled % 2 == 1)
        if part in (0, whole) or 0 < scaled < 100 * unit:
            break
    return f"{scaled // unit}.{scaled % unit:0{digits}}"


Facts: TypeAlias = Iterator[tuple[str, str]]


def facts(view: LevelView) -> Facts:
    """Yield what the statistics of a level say, with a label each."""
    stats, details = view.stats, view.stats.details
    decides = {"ge": "raw value >= boundary", "gt": "as Anomalib's code does: normalised value > 1 - sensitivity"}
    yield "threshold", str(json_number(stats.threshold))
    yield "min and max", f"{json_number(stats.min)} to {json_number(stats.max)}{_kind_of_range(details)}"
    yield "rule", decides[view.state.options.comparison]
    if half := view.state.narrow.get(view.level):
        yield "host", f"{half}: the boundary is the constant that decides alike on a value and on its rounding"
    if stats.policy is not None:
        yield "policy", stats.policy
    if stats.rule not in (None, stats.policy):
        yield "decided by", str(stats.rule)
    counts = (stats.n_normal, stats.n_anomalous)
    if None not in counts:
        yield "samples", f"{counts[0]:,} normal and {counts[1]:,} anomalous"
    if stats.n_dropped:
        yield "left out", f"{stats.n_dropped:,} values that are not finite"
    for name, label in (("auroc", "AUROC"), ("average_precision", "average precision")):
        if (text := _area(details.get(name))) is not None:
            yield label, text
    interval = details.get("threshold_interval")
    if isinstance(interval, Mapping) and interval.get("low") is not None:
        of = f"{interval.get('resamples')} resamples of the images"
        yield "95 % interval of the threshold", f"{interval['low']} to {interval['high']}, by {of}"
    if view.curve is None:
        yield "curve", "none in these statistics: what a setting finds is not known"
    elif not view.curve.is_complete:
        yield (
            "curve",
            f"{len(view.curve.thresholds):,} thresholds; between two of them the fewest and the most are shown",
        )


def _kind_of_range(details: Mapping[str, Any]) -> str:
    if details.get("range_is_relative"):
        return " (read back from the file: their difference alone is known)"
    return f" ({text})" if isinstance(text := details.get("range"), str) else ""


def _area(found: object) -> str | None:
    if not isinstance(found, Mapping) or not isinstance(found.get("low"), float | int):
        return None
    low, high = found["low"], found.get("high", found["low"])
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
