"""Where raw values stand on the axis of a plot: evenly, by their logarithm, or with long tails drawn together."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, log, log1p, log10
from typing import Any, Final, Literal, Self

from postproc_export.curve import Curve
from postproc_export.stats import LevelStats

Kind = Literal["linear", "log", "tails"]

_TAIL: Final = 0.22
"""How wide each tail is drawn, as a part of the middle."""
_CLEAR: Final = 0.05
"""The middle half of each class takes that part of an even axis, or the axis is another one."""
_TICKS: Final = 6


@dataclass(frozen=True, slots=True)
class ValueAxis:
    """The axis of one level's raw values; report.js has `place` again, to move the boundary."""

    kind: Kind
    lowest: float  # raw units
    highest: float
    low: float  # the middle, which is even
    high: float

    @classmethod
    def of(cls, stats: LevelStats, curve: Curve) -> Self:
        """Return the axis on which the middle half of each class, and what is around the threshold, can be seen."""
        assert stats.threshold is not None, "a level that is drawn has a threshold"
        marks = (stats.threshold, stats.min, stats.max)
        lowest, highest = min(curve.thresholds[0], *marks), max(curve.end, *marks)
        classes = [counts for counts in (curve.fp, curve.tp) if counts[0]]
        spreads = [(quantile(curve, counts, 0.25), quantile(curve, counts, 0.75)) for counts in classes]
        middle = [quantile(curve, counts, share) for counts in classes for share in (0.05, 0.95)]
        low, high = min(*middle, stats.threshold), max(*middle, stats.threshold)
        low, high = max(lowest, low - 0.1 * (high - low)), min(highest, high + 0.1 * (high - low))
        even = cls("linear", lowest, highest, lowest, highest)
        others = [cls("log", lowest, highest, lowest, highest)] if lowest > 0 else []
        others += [cls("tails", lowest, highest, low, high)] if low < high else []

        def clearness(axis: Self) -> float:
            width = axis.place(highest) - axis.place(lowest)
            return min((axis.place(above) - axis.place(below)) / width for below, above in spreads)

        return even if clearness(even) >= _CLEAR else max((even, *others), key=clearness)

    def place(self, value: float) -> float:
        """Return where a raw value stands; beyond an end at that end."""
        value = min(max(value, self.lowest), self.highest)
        if self.kind == "linear":
            return value
        if self.kind == "log":
            return log(value)
        width = self.high - self.low
        if value > self.high:
            return 1 + _TAIL * log1p((value - self.high) / width) / log1p((self.highest - self.high) / width)
        if value < self.low:
            return -_TAIL * log1p((self.low - value) / width) / log1p((self.low - self.lowest) / width)
        return (value - self.low) / width

    @property
    def ends(self) -> tuple[float, float]:
        """The places of the lowest and the highest value."""
        return self.place(self.lowest), self.place(self.highest)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places with their labels: round raw values, in the tails their ends, too."""
        values = [*(_decades(self.lowest, self.highest) if self.kind == "log" else _round(self.low, self.high))]
        if self.kind == "tails":
            beyond = (self.lowest, self.low), (self.highest, self.high)
            values += [end for end, middle in beyond if abs(self.place(end) - self.place(middle)) > _TAIL / 2]
        return [(self.place(value), f"{value:.4g}") for value in sorted(values)]

    def title(self) -> str:
        """Return what the axis shows, and how."""
        how = {
            "linear": "",
            "log": ", logarithmic",
            "tails": f"; even from {self.low:.4g} to {self.high:.4g}, the tails beyond drawn together",
        }
        return f"raw value{how[self.kind]}"

    def to_json(self) -> dict[str, Any]:
        """Return what report.js needs to place a boundary."""
        numbers = {"lowest": self.lowest, "highest": self.highest, "low": self.low, "high": self.high}
        return {"kind": self.kind, "tail": _TAIL, **numbers}


def quantile(curve: Curve, at_or_above: list[int], share: float) -> float:
    """Return the lowest threshold of a curve with at most the rest of a class at or above it, else the highest one."""
    wanted, last = at_or_above[0] * (1 - share), curve.thresholds[-1]
    return next((value for value, count in zip(curve.thresholds, at_or_above, strict=False) if count <= wanted), last)


def _round(low: float, high: float) -> Iterator[float]:
    """Yield about `_TICKS` round numbers between two."""
    unit = 10.0 ** floor(log10((high - low) / _TICKS))
    step = next(factor * unit for factor in (1, 2, 5, 10) if (high - low) / (factor * unit) <= _TICKS)
    yield from (number * step for number in range(ceil(low / step), floor(high / step) + 1))


def _decades(low: float, high: float) -> Iterator[float]:
    """Yield powers of ten between two numbers, of few also what is between them."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    every = 1 + len(decades) // (2 * _TICKS)
    factors = (1, 2, 5) if len(decades) <= _TICKS // 2 + 1 else (1,)
    values = (factor * 10.0**power for power in decades[::every] for factor in factors)
    yield from (value for value in values if low <= value <= high)
