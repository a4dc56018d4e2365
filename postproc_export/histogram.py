"""Distributions of a level's raw values by class, from the curve in its statistics, and how they are printed."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import asinh, ceil, floor, isfinite, log, log10, sinh
from typing import Final, Self

from postproc_export.curve import SAMPLES, Curve, missing_curve
from postproc_export.float32 import Half, next_up, shortest, to_float32
from postproc_export.stats import Level, LevelStats

_PARTS: Final = 20  # of a class: its centre leaves out the first and the last
_REACH: Final = 2  # widths of the centre, on either side of it: what lies further out is a tail
_BROAD: Final = 6  # widths of the narrower centre: bins of one width would show that class in one or two
_NEAR: Final = 0.4  # of a bin: an edge gives way to a mark that is so near
_STEPS: Final = 900  # a curve that is thinned passes over a smaller part of a class, but for values that are equal
_UNEVEN: Final = 100  # times the smallest count: bars of one scale would show that one as nothing


@dataclass(frozen=True, slots=True)
class Bin:
    """Values from `low` on and below `high`, in the last bin up to it: float32, raw units."""

    low: float
    high: float
    normal: int
    anomalous: int
    is_tail: bool  # whether it holds what lies far out, up to the lowest or the highest value


@dataclass(frozen=True, slots=True)
class Histogram:
    """Every sample of a level in ascending bins without a gap.

    Parameters
    ----------
    bins
        About as many as were asked for, and a tail at an end where values lie far out.
    error
        Samples of a class by which a count may be off: 0 where the curve is complete, else because it is thinned.
    is_even
        Whether the bins between the tails have one width; else they widen away from the class that is close together.
    """

    bins: tuple[Bin, ...]
    error: int
    is_even: bool

    @classmethod
    def of(
        cls, stats: LevelStats, *, count: int = 12, marks: Sequence[float] = (), half: Half | None = None
    ) -> Self | None:
        """Return the histogram of a level; None where its statistics hold no curve.

        Parameters
        ----------
        stats
            Statistics of the level.
        count
            About how many bins, at least 2.
        marks
            Raw values, such as the boundary, that are edges of bins; those beyond all values are left out.
        half
            The narrow type of the host, as `Curve.at` takes it.
        """
        curve = Curve.of(stats)
        if curve is None:
            return None
        lowest, highest = curve.thresholds[0], curve.end
        inside = {to_float32(mark) for mark in marks if lowest < mark <= highest}
        edges, is_even = _edges(curve, count, inside)
        cuts = sorted({edge for edge in edges if lowest < edge < highest} | inside)
        above = [(curve.normal, curve.anomalous, 0), *(_above(curve, cut, half) for cut in cuts), (0, 0, 0)]
        rows = [*zip(pairwise((lowest, *cuts, highest)), pairwise(above), strict=True)]
        bins = tuple(
            Bin(low, high, here[0] - there[0], here[1] - there[1], high <= edges[0] or edges[-1] <= low < highest)
            for (low, high), (here, there) in rows
        )
        return cls(bins, max(here[2] + there[2] for _, (here, there) in rows), is_even)

    def lines(self, level: Level, marks: Mapping[str, float], *, width: int = 74) -> Iterator[str]:
        """Yield the histogram as text: a row per bin, and a line at each mark, by name and raw value.

        The marks are edges of the bins, or lie beyond all values. No line is wider than `width` characters, but for
        counts and values of very many digits.
        """
        counts = [number for each in self.bins for number in (each.normal, each.anomalous)]
        most, least = max(counts), min((number for number in counts if number > 0), default=1)
        is_log = most > _UNEVEN * least
        notes = ["bars are logarithmic"] if is_log else []
        notes += [] if self.is_even else ["rows have different widths"]
        notes += [f"the curve is thinned: counts are right within {self.error:,}"] if self.error else []
        totals = f"{sum(counts[::2]):,} normal and {sum(counts[1::2]):,} anomalous {SAMPLES[level]}"
        yield f"{level} level: {totals} by raw value"
        yield from (f"  {note}" for note in notes)
        labels = [f"{'tail ' if each.is_tail else ''}{_text(each.low)} to {_text(each.high)}" for each in self.bins]
        wide, digits = max(map(len, ("from, to", *labels))), len(f"{most:,}")
        room = max(digits, len("anomalous"), (width - wide - 2 * digits - 6) // 2 + digits)
        yield f"{'from, to':>{wide}}  {'normal':<{room}}  anomalous"
        left = {value: [name for name, at in marks.items() if at == value] for value in sorted(marks.values())}
        for each, label in zip(self.bins, labels, strict=True):
            yield from _marked(left, each.low, width)
            normal, anomalous = (
                f"{number:>{digits},} {_bar(number, most, room - digits - 1, is_log)}"
                for number in (each.normal, each.anomalous)
            )
            yield f"{label:>{wide}}  {normal:<{room}}  {anomalous}".rstrip()
        yield from _marked(left, float("inf"), width)


def histogram_lines(
    level: Level, stats: LevelStats, *, boundary: float | None, half: Half | None = None
) -> Iterator[str]:
    """Yield the histogram of a level as text, with its threshold and a boundary; nothing without a curve."""
    found = {"threshold": stats.threshold, "boundary": boundary}
    marks = {name: value for name, value in found.items() if value is not None}
    histogram = Histogram.of(stats, marks=[*marks.values()], half=half)
    if histogram is not None:
        yield from histogram.lines(level, marks)
    elif "curve" in stats.details:
        yield f"{level} level: {missing_curve(stats)}"


def _marked(left: dict[float, list[str]], low: float, width: int) -> Iterator[str]:
    """Yield the marks at or below a value, each once, as lines across all columns."""
    for value in [each for each in left if each <= low]:
        yield f"-- {' and '.join(left.pop(value))} {_text(value)} ".ljust(width, "-")


def _bar(number: int, most: int, room: int, is_log: bool) -> str:
    """Return a bar of at least one character for what is not nothing."""
    share = log(1 + max(number, 0)) / log(1 + most) if is_log else Fraction(max(number, 0), max(most, 1))
    return "#" * ceil(share * room)


def _text(value: float) -> str:
    """Return the shortest decimal that reads back to the same float32."""
    return repr(shortest(value)).removesuffix(".0") if isfinite(value) else str(value)


def _above(curve: Curve, cut: float, half: Half | None) -> tuple[int, int, int]:
    """Return the normal and the anomalous samples from a value on, and by how many these may be off.

    Between two thresholds of a thinned curve samples are taken to lie evenly.
    """
    found = curve.at(cut, half)
    if found.tp[0] == found.tp[1] and found.fp[0] == found.fp[1]:
        return found.fp[0], found.tp[0], 0
    place = bisect_left(curve.thresholds, cut)
    low, high = curve.thresholds[place - 1], [*curve.thresholds, curve.end][place]
    share = (Fraction(high) - Fraction(cut)) / (Fraction(high) - Fraction(low))
    normal, anomalous = (least + round((most - least) * share) for least, most in (found.fp, found.tp))
    error = max(abs(guess - end) for guess, ends in ((normal, found.fp), (anomalous, found.tp)) for end in ends)
    return normal, anomalous, error


def _edges(curve: Curve, count: int, marks: set[float]) -> tuple[list[float], bool]:
    """Return ascending edges of about so many bins over the central values, and whether these have one width.

    Edges beside a mark give way to it.
    """
    low, high, middle, width = _range(curve)
    if low == high:
        return [low, next_up(low)], True
    is_even = not width or high - low <= _BROAD * width
    if is_even:
        step = _step((high - low) / count)
        edges = [step * place for place in range(floor(low / step), floor(high / step) + 2)]
    else:
        edges = _widening(low, high, count, middle, width)
    near = {
        edge
        for below, edge, above in zip(edges, edges[1:], edges[2:], strict=False)
        if any(_NEAR * (below - edge) < mark - edge < _NEAR * (above - edge) for mark in marks)
    }
    return [_listed(curve, to_float32(edge)) for edge in edges if edge not in near], is_even


def _listed(curve: Curve, edge: float) -> float:
    """Return an edge, or the next threshold where so many samples lie around it that most have one value."""
    found, place = curve.at(edge), bisect_left(curve.thresholds, edge)
    doubts = ((found.tp, curve.anomalous), (found.fp, curve.normal))
    is_clear = all(most - least <= total // _STEPS + 1 for (least, most), total in doubts)
    return edge if is_clear or place == len(curve.thresholds) else curve.thresholds[place]


def _step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20 and so on, and of their decimal parts, that is no less."""
    power = 10.0 ** floor(log10(least))
    return min(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _widening(low: float, high: float, count: int, middle: float, width: float) -> list[float]:
    """Return edges that are a distance apart near to the middle, and a factor far from it, as short decimals."""
    first, last = (asinh((end - middle) / width) for end in (low, high))
    exact = [middle + width * sinh(first + (last - first) * place / count) for place in range(count + 1)]
    gaps = [above - below for below, above in pairwise(exact)]
    units = [10.0 ** floor(log10(min(pair))) for pair in zip([gaps[0], *gaps], [*gaps, gaps[-1]], strict=True)]
    rounded = [round(edge / unit) * unit for edge, unit in zip(exact, units, strict=True)]
    return [floor(low / units[0]) * units[0], *rounded[1:-1], ceil(high / units[-1]) * units[-1]]


def _range(curve: Curve) -> tuple[float, float, float, float]:
    """Return from where to where values lie that are no tail; middle and width of the narrower centre that has one.

    The width is 0 where the centre of either class is one value.
    """
    ends, centres = list[tuple[float, float]](), list[tuple[float, float]]()
    for row, total in ((curve.fp, curve.normal), (curve.tp, curve.anomalous)):
        if total > 0:
            part = total // _PARTS
            first, low, high, last = (_reaching(curve, row, each) for each in (total, total - part, part + 1, 1))
            reach = _REACH * (high - low)
            ends.append((max(first, low - reach), min(last, high + reach)))
            centres += [(high - low, (low + high) / 2)] if low < high else []
    lows, highs = zip(*ends or [(curve.thresholds[0], curve.thresholds[-1])], strict=True)
    width, middle = min(centres, default=(0.0, 0.0))
    return min(lows), max(highs), middle, width


def _reaching(curve: Curve, row: Sequence[int], wanted: int) -> float:
    """Return the highest threshold that so many samples reach."""
    return curve.thresholds[max(bisect_left(row, True, hi=len(row) - 1, key=lambda found: found < wanted) - 1, 0)]
