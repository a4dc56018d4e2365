"""The curve in statistics: what a boundary calls anomalous, and which sensitivity reaches a rate."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, isfinite
from typing import Any, Final, Self, TypeAlias

import numpy as np

from postproc_export.errors import MetadataError, UsageError
from postproc_export.float32 import Half, narrowed, next_up, rank_of, ranked, rounded_to, shortest, to_float32
from postproc_export.options import TailOptions
from postproc_export.policies import Policy
from postproc_export.stats import (
    DEFAULT_SENSITIVITY,
    CalibrationStats,
    Comparison,
    Level,
    LevelStats,
    decision_boundary,
    least_sensitivity,
)

SAMPLES: Final = {"image": "images", "pixel": "pixels"}
_COMPLETE: Final = 1_999
"""The curve of so many samples leaves none out; that of more is thinned."""


Share: TypeAlias = tuple[int, int]
"""A part and its whole."""
Limits: TypeAlias = tuple[Share, Share]
"""The lowest and the highest that a rate can be."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Validation samples at or above a boundary."""

    tp: tuple[int, int]  # fewest and most: one number twice, but between two thresholds of a thinned curve
    fp: tuple[int, int]
    anomalous: int  # all there are
    normal: int

    @property
    def called(self) -> str:
        """How many samples are called anomalous."""
        return _range((self.tp[0] + self.fp[0], self.tp[1] + self.fp[1]))

    @property
    def shares(self) -> dict[str, Limits | None]:
        """Recall, precision, F1 and false-positive rate, the lowest and highest that each can be; None over nothing."""
        (tp, most_tp), (fp, most_fp), anomalous, normal = self.tp, self.fp, self.anomalous, self.normal
        found = {
            "recall": ((tp, anomalous), (most_tp, anomalous)),
            "precision": ((tp, tp + most_fp), (most_tp, most_tp + fp)),
            "f1": ((2 * tp, tp + most_fp + anomalous), (2 * most_tp, most_tp + fp + anomalous)),
            "fpr": ((fp, normal), (most_fp, normal)),
        }
        return {name: (low if low[1] else (0, 1), high) if high[1] else None for name, (low, high) in found.items()}

    @property
    def rates(self) -> dict[str, tuple[float, float] | None]:
        """Recall, precision and false-positive rate, each the lowest and highest that it can be; None over nothing."""
        shares = self.shares
        return {
            name: None if (each := shares[name]) is None else (each[0][0] / each[0][1], each[1][0] / each[1][1])
            for name in ("recall", "precision", "fpr")
        }

    @property
    def matrix(self) -> dict[str, str]:
        """The confusion matrix: found, missed, false alarms and passed, each a number or two limits."""
        (low, high), (few, many) = self.tp, self.fp
        missed, passed = (self.anomalous - high, self.anomalous - low), (self.normal - many, self.normal - few)
        cells = {"found": self.tp, "missed": missed, "false alarms": self.fp, "passed": passed}
        return {name: _range(numbers) for name, numbers in cells.items()}

    def describe(self) -> str:
        """Return how many of each kind are called anomalous."""
        return f"{_range(self.tp)} of {self.anomalous} anomalous and {_range(self.fp)} of {self.normal} normal ones"

    def sentence(self, level: Level, was: str = "") -> str:
        """Return how many samples of a level are called anomalous, and of each kind."""
        total = f"{self.normal + self.anomalous} validation {SAMPLES[level]}"
        return f"of the {total} {self.called} are called anomalous{was}: {self.describe()}"

    def columns(self) -> list[str]:
        """Return recall, precision, false-positive rate and false alarms, as a table shows them."""
        return [*("-" if found is None else _rate(*found) for found in self.rates.values()), _range(self.fp)]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; None where only limits are known, which stand beside it."""
        tp, fp = (found[0] if found[0] == found[1] else None for found in (self.tp, self.fp))
        limits = {} if tp is not None and fp is not None else {"tp_limits": list(self.tp), "fp_limits": list(self.fp)}
        return {"tp": tp, "fp": fp, "n_anomalous": self.anomalous, "n_normal": self.normal, **limits}

    def share(self, kind: str) -> tuple[int, int]:
        """Return the worst that a rate can be as part and whole: the lowest recall or precision, the highest rate."""
        if kind == "fpr":
            return self.fp[1], self.normal
        return self.tp[0], self.anomalous if kind == "recall" else self.tp[0] + self.fp[1]

    def keeps(self, target: Policy) -> bool:
        """Whether a rate is reached, or kept to, for certain; by integers."""
        part, whole = self.share(target.kind)
        asked, reached = target.parameter.numerator * whole, target.parameter.denominator * part
        return whole > 0 and (reached <= asked if target.kind == "fpr" else reached >= asked)


Cell: TypeAlias = tuple[float | None, float | None, Counts]
"""Boundaries above the first value, up to the second one, at which these counts hold; None: no end."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Thresholds of one level with the samples at or above each: all that are different, or some of them."""

    thresholds: list[float]  # float32, ascending
    tp: list[int]  # at or above each threshold, and behind the last one 0
    fp: list[int]
    anomalous: int
    normal: int
    highest: float  # the highest value seen; inf where it is not known
    is_complete: bool  # whether every value seen is a threshold

    @classmethod
    def of(cls, stats: LevelStats) -> Self | None:
        """Return the curve of a level; None where the statistics hold none, or nothing that is quite one.

        Decimals of a file are read as float32, like the values that were counted.
        """
        document, normal, anomalous = stats.details.get("curve"), stats.n_normal, stats.n_anomalous
        if not isinstance(document, Mapping) or normal is None or anomalous is None:
            return None
        rows: list[Any] = [document.get(name) for name in ("tp", "fp")]
        if not all(isinstance(row, list) and {*map(type, row)} == {int} for row in rows):
            return None
        thresholds, (tp, fp) = _float32s(document.get("threshold")), rows
        if not len(thresholds) == len(tp) == len(fp) or sorted(thresholds) != thresholds:
            return None
        if any(whole < most or not _falls(row) for row, most, whole in ((tp, tp[0], anomalous), (fp, fp[0], normal))):
            return None
        seen = stats.details.get("extremes")
        highest = _float32s([seen.get("max")]) if isinstance(seen, Mapping) else [stats.max]
        is_complete = normal + anomalous <= _COMPLETE and stats.details.get("exact") is not False
        last = max(*highest, thresholds[-1]) if highest else float("inf")
        return cls(thresholds, [*tp, 0], [*fp, 0], anomalous, normal, last, is_complete)

    @property
    def end(self) -> float:
        """The highest value seen; where the statistics do not tell it, the highest threshold."""
        return self.highest if isfinite(self.highest) else self.thresholds[-1]

    def at(self, boundary: float, half: Half | None = None) -> Counts:
        """Count the samples from a boundary on, raw units, which is read as float32 like a threshold.

        A narrow type of the host has no value between the boundary and what that rounds to.
        """
        wanted = to_float32(boundary)
        if wanted > self.highest:
            return self._counts(-1, -1)
        place = bisect_left(self.thresholds, wanted)
        same = {wanted, wanted if half is None else rounded_to(wanted, half)}
        is_listed = place < len(self.thresholds) and self.thresholds[place] in same
        return self._counts(place, place if is_listed or self.is_complete or place == 0 else place - 1)

    def cell(self, number: int) -> Cell:
        """Return what boundaries can be told apart, numbered from the highest on, as many as thresholds and one more.

        Of a thinned curve those between two thresholds.
        """
        place = len(self.thresholds) - number
        if not number:
            return self.thresholds[-1], None, self.at(next_up(self.thresholds[-1]))
        below = self.thresholds[place - 1] if place else None
        lower = place if self.is_complete or below is None else place - 1
        return below, self.thresholds[place], self._counts(place, lower)

    def listed_cells(self) -> Iterator[Cell]:
        """Yield every cell; of a thinned curve before it the upper threshold alone, at which the counts are known."""
        for number in range(len(self.thresholds) + 1):
            below, value, counts = self.cell(number)
            if below is not None and value is not None and not self.is_complete:
                place = len(self.thresholds) - number
                yield -next_up(-value), value, self._counts(place, place)
            yield below, value, counts

    def _counts(self, place: int, lower: int) -> Counts:
        """Return the counts from a threshold on; where they are not known, also from the one below on."""
        tp, fp = (self.tp[place], self.tp[lower]), (self.fp[place], self.fp[lower])
        return Counts(tp, fp, self.anomalous, self.normal)


def counts_at(stats: LevelStats, boundary: float | None, half: Half | None = None) -> Counts | None:
    """Count the validation samples of a level from a boundary on; None where the statistics hold no curve."""
    curve = Curve.of(stats)
    return None if curve is None or boundary is None else curve.at(boundary, half)


def _falls(counts: list[int]) -> bool:
    """Whether counts never rise, nor fall below 0."""
    return counts[-1] >= 0 and counts == sorted(counts, reverse=True)


def missing_curve(stats: LevelStats | None) -> str:
    """Return why a level has no curve: it never had, or what stands there is none."""
    if stats is None or stats.details.get("curve") is None:
        return "the statistics have no curve"
    return "the statistics have a damaged curve"


def _float32s(row: object) -> list[float]:
    """Return a list of numbers as float32; an empty one for anything else, or a number that is not finite."""
    if not isinstance(row, list) or not {*map(type, row)} <= {int, float}:
        return []
    try:
        exact = np.array(row, np.float64)
    except OverflowError:
        return []
    with np.errstate(over="ignore", under="ignore"):
        numbers: list[float] = (exact.astype(np.float32) + 0.0).tolist()
    return numbers if all(map(isfinite, numbers)) else []


Interval: TypeAlias = tuple[float, float]
"""The lowest and the highest of some sensitivities, float32."""


def _interval(level: LevelStats, cell: Cell, comparison: Comparison) -> Interval | None:
    """Return the sensitivities at which the boundary lies in a cell; None where it jumps over it.

    With rule ge at most the last one before 1, where every score is anomalous.
    """
    below, value, _ = cell
    low = 0.0 if value is None else least_sensitivity(level, value, comparison=comparison)
    end = None if below is None else least_sensitivity(level, below, comparison=comparison)
    high = 1.0 if end is None and comparison == "gt" else ranked(rank_of(1.0 if end is None else end) - 1)
    return None if low is None or low > high else (low, high)


@dataclass(frozen=True, slots=True)
class Setting:
    """Sensitivities of one level at which the same is called anomalous."""

    least: float  # float32: the first of them; they end where the next setting begins
    decimal: float  # the one of them with the fewest digits
    counts: Counts


def settings(stats: LevelStats, *, comparison: Comparison = "ge", half: Half | None = None) -> list[Setting]:
    """Return every setting of a level with a threshold, by rising sensitivity from 0 on; none without a curve.

    `half` is the narrow type of the host, whose constants decide; see `Curve.at`.
    """
    curve = None if stats.threshold is None else Curve.of(stats)
    if curve is None:
        return []
    starts = {0.0, 1.0}  # where the boundary comes down to a value that is told apart, and where it leaves it
    for value in (*curve.thresholds, curve.highest):
        decides = value if half is None else rounded_to(value, half)
        below = -next_up(-(decides if half is None else narrowed(decides, half)))
        ends = (decides, below if half is None else rounded_to(below, half))
        found = (least_sensitivity(stats, each, comparison=comparison) for each in ends if isfinite(each))
        starts.update(each for each in found if each is not None)
    rows: list[tuple[float, Counts]] = []
    for start in sorted(starts):
        with suppress(MetadataError):  # a boundary that is subnormal is none that a file can have
            boundary = decision_boundary(stats, sensitivity=start, comparison=comparison, dtype=half or "float32")
            counts = curve.at(boundary, half)
            if not rows or rows[-1][1] != counts:
                rows.append((start, counts))
    lasts = [ranked(rank_of(start) - 1) for start, _ in rows[1:]] + [1.0]
    return [
        Setting(start, _decimal((start, last), near=(start + last) / 2), counts)
        for (start, counts), last in zip(rows, lasts, strict=True)
    ]


_FEW_DIGITS: Final = 4


def _decimal(interval: Interval, *, near: float) -> float:
    """Return the decimal with the fewest digits, two at least, whose float32 lies in an interval, near to a place.

    It is neither 0 nor 1 where another one has few digits.
    """
    low, high = map(Fraction, interval)
    for digits in range(2, 10):  # nine tell every float32 from its neighbours, but for those next to 0
        unit = 10**digits
        first, last = ceil(low * unit), floor(high * unit)
        if digits <= _FEW_DIGITS:
            first, last = max(first, 1), min(last, unit - 1)
        if first <= last:
            return float(Fraction(min(max(round(near * unit), first), last), unit))
    return shortest(interval[0])


def _reach(
    cell_of: Callable[[int], Cell], count: int, level: LevelStats, target: Policy, comparison: Comparison
) -> tuple[Interval | None, Counts | None]:
    """Return the sensitivities that reach a target for certain, and the counts that come nearest to it and miss.

    The least sensitive for `recall`, the most sensitive for `precision` and `fpr`: as the policies choose thresholds.
    """
    numbers = range(count) if target.kind == "recall" else range(count)[::-1]
    # Only a precision may be reached, missed and reached again.
    start = 0
    if target.kind != "precision":
        start = bisect_left(numbers, True, key=lambda number: cell_of(number)[2].keeps(target))
    missed = cell_of(numbers[start - 1])[2] if start else None
    for cell in map(cell_of, numbers[start:]):
        if not cell[2].keeps(target):
            missed = cell[2]
        elif (found := _interval(level, cell, comparison)) is not None:
            return found, missed
    return None, missed


def choose_sensitivities(
    targets: Mapping[Level, Policy], stats: CalibrationStats, options: TailOptions
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options of the sensitivities that reach `recall=R`, `precision=P` or `fpr=F`, and a note on each.

    The note says what the validation samples of the level are called at it. Raises UsageError if a level gets no
    labels, the statistics hold no curve of it, or no sensitivity reaches the target: with what is reached.
    """
    stats = stats.with_matched_thresholds() if options.match_thresholds else stats
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    for level, target in targets.items():
        if not (options.enable_thresholding and options.includes(level)):
            raise UsageError(
                f"--{level}-sensitivity-for would have no effect",
                found=f"the {level} level gets no labels",
                fix="leave it out, or what leaves the labels out",
            )
        sensitivity, note = _chosen(stats.level(level), level, target, options.comparison)
        chosen[f"{level}_sensitivity"] = sensitivity
        notes.append(f"{level} level: sensitivity {sensitivity} for {target.text}: {note}")
    return chosen, tuple(notes)


def _chosen(stats: LevelStats | None, level: Level, target: Policy, comparison: Comparison) -> tuple[float, str]:
    """Return the sensitivity for a target, and what the samples are called at it; of a thinned curve how near it is."""
    curve = None if stats is None or not stats.is_calibrated else Curve.of(stats)
    if stats is None or curve is None:
        raise UsageError(
            f"no sensitivity can be chosen for {target.text}: {missing_curve(stats)} of the {level} level",
            needed="statistics that were calibrated with ground truth of that level",
            fix="give them with --stats, as `postproc-export calibrate` writes them",
        )
    cells = [*curve.listed_cells()]
    interval, missed = _reach(cells.__getitem__, len(cells), stats, target, comparison)
    if interval is None:
        raise _unreachable(curve, stats, level, target, comparison)
    sensitivity = _decimal(interval, near=sum(interval) / 2)
    found = curve.at(decision_boundary(stats, sensitivity=sensitivity, comparison=comparison))
    if missed is None or curve.is_complete or _is_the_best(stats, target, found):
        return sensitivity, found.sentence(level)
    part, whole = missed.share(target.kind)
    nearer = f"{target.kind} {part / whole:.6g}" if whole else "no sample at all"
    return sensitivity, f"{found.sentence(level)} (the curve is thinned: its next point, which misses, has {nearer})"


def _is_the_best(stats: LevelStats, target: Policy, found: Counts) -> bool:
    """Whether a calibration that was asked for the target, too, came to the same counts: there is no better one."""
    own, rows = stats.details.get("at_threshold"), stats.details.get("policies")
    told = [*rows] if isinstance(rows, list) else []
    told += [{"policy": stats.policy, **own}] if isinstance(own, dict) else []
    best = {"policy": target.text, "tp": found.tp[1], "fp": found.fp[1]}
    return found.tp[0] == found.tp[1] and any(isinstance(row, dict) and best.items() <= row.items() for row in told)


def _unreachable(curve: Curve, stats: LevelStats, level: Level, target: Policy, comparison: Comparison) -> UsageError:
    """Return the error that says what the sensitivities reach in place of a target."""
    what, kind = f"no sensitivity reaches {target.text} at the {level} level", target.kind
    missing = "normal" if kind == "fpr" else "anomalous"
    if not getattr(curve, missing):
        return UsageError(what, found=f"no {missing} one among the validation {SAMPLES[level]}")
    better = 1 if kind == "fpr" else -1
    cells = [cell for cell in curve.listed_cells() if cell[2].share(kind)[1]]
    cells.sort(key=lambda cell: better * Fraction(*cell[2].share(kind)))
    reached = ((cell, found) for cell in cells if (found := _interval(stats, cell, comparison)) is not None)
    move = f"calibrate with --{level}-policy {target.text}, which moves the threshold there"
    best = next(reached, None)
    if best is None:
        return UsageError(what, found="no sample that a sensitivity below 1 calls anomalous", fix=move)
    part, whole = best[0][2].share(kind)
    limit = ceil(part / whole * 1e4) / 1e4 if kind == "fpr" else floor(part / whole * 1e4) / 1e4
    return UsageError(
        what,
        found=f"{kind} {part / whole:.9g} ({part} of {whole}) at best, at sensitivity {_decimal(best[1], near=0.5)}",
        needed="a sensitivity below 1: at 1 every score is anomalous" if comparison == "ge" else "one in [0, 1]",
        fix=f"ask for {kind}={limit:g} or {'more' if kind == 'fpr' else 'less'}, or {move}",
    )


_FEW: Final = 10
_LANDMARKS: Final = tuple(
    map(Policy.parse, ("fpr=0", "fpr=0.001", "fpr=0.01", "fpr=0.1", "recall=0.9", "recall=0.99", "recall=1"))
)


def sensitivity_table(
    stats: LevelStats, *, comparison: Comparison = "ge", half: Half | None = None, also: Sequence[float] = ()
) -> dict[float, Counts]:
    """Return about ten sensitivities that tell most, ascending, and what each calls anomalous; none without a curve.

    Those are 0.5 and those asked for, the highest at which least is found and the lowest at which most is. Between
    them stands every one at which something changes where that are ten at most, else where the rates of `_LANDMARKS`
    are reached.
    """
    curve = None if stats.threshold is None else Curve.of(stats)
    if curve is None:
        return {}

    def interval(number: int) -> Interval | None:
        return _interval(stats, curve.cell(number), comparison)

    cells = range(len(curve.thresholds) + 1)
    least = next(found for found in map(interval, cells) if found is not None)
    most = next(found for found in map(interval, reversed(cells)) if found is not None)
    if len(cells) <= _FEW:
        between = [*map(interval, cells)]
    else:
        between = [_reach(curve.cell, len(cells), stats, target, comparison)[0] for target in _LANDMARKS]
    wanted = [_decimal(least, near=least[1]), _decimal(most, near=most[0])]
    wanted += [1.0] if comparison == "ge" and interval(cells[-1]) is None else []
    wanted += [_decimal(found, near=sum(found) / 2) for found in between if found is not None]
    rows: dict[float, Counts] = {}
    kept = [DEFAULT_SENSITIVITY, *(shortest(to_float32(each)) for each in also)]
    for sensitivity in (*kept, *wanted):
        with suppress(MetadataError):  # a boundary that is subnormal is none that a file can have
            boundary = decision_boundary(stats, sensitivity=sensitivity, comparison=comparison, dtype=half or "float32")
            counts = curve.at(boundary, half)
            if sensitivity in kept or counts not in rows.values():
                rows[sensitivity] = counts
    return dict(sorted(rows.items()))


TITLES: Final = ("sensitivity", "recall", "precision", "FPR", "false alarms")


def table_json(table: Mapping[float, Counts]) -> list[dict[str, Any]]:
    """Return the rows of such a table as JSON objects; None where only limits are known, which stand beside it."""
    return [{"sensitivity": each, **counts.to_json(), **_rates_json(counts)} for each, counts in table.items()]


def _rates_json(counts: Counts) -> dict[str, Any]:
    known = {name: found and (found[0] if found[0] == found[1] else None) for name, found in counts.rates.items()}
    limits = {f"{name}_limits": list(found) for name, found in counts.rates.items() if found and found[0] != found[1]}
    return known | limits


def _rate(low: float, high: float) -> str:
    """Return a rate with the digits that are known, four at most; its limits where these are one or only zeros."""
    texts = [(f"{low:.{digits}f}", f"{high:.{digits}f}") for digits in (4, 3, 2)]
    known = (one for one, other in texts if one == other and (float(one) or (one, other) == texts[0]))
    return next(known, " to ".join(texts[0]))


def _range(found: tuple[int, int]) -> str:
    return str(found[0]) if found[0] == found[1] else f"{found[0]} to {found[1]}"
