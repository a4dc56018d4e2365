"""Values of two classes, ranked in constant memory: the areas under their curves, and quantiles, between sure limits.

All values are kept while they are few. Of more the different values are kept, with how often each was met. Of more than
fit, neighbours are merged into ranges that hold a small share of each class. A range that could outgrow that share is
closed, and what comes later is kept beside it. What is within a range may have any order, and that is all that is not
known: once it is taken at its worst and once at its best, and the truth lies between the two.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting import exact_table
from postproc_export.calibration.statistics import auroc
from postproc_export.calibration.table import (
    Counts,
    Flags,
    Floats,
    Keys,
    Table,
    float_values,
    merge_zeros,
    ordered_keys,
)

Weights = NDArray[np.float64]
Limits = dict[str, float]
"""A figure: `value`, and `low` and `high`, between which it lies for certain; all three are one where it is exact."""

FPR_LIMIT: Final = 0.3
_NAN: Final = np.float32(np.nan)  # its key is above that of inf, so it is the most anomalous value
_KEPT: Final = 1 << 21
_WAITING: Final = 1 << 22
_KEY_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of ordered keys, each 2^width of them, with what lies in each; either disjoint or within each other."""

    starts: Keys  # uint32, shape (n,): the lowest key of each, ascending
    widths: NDArray[np.uint8]  # at 0 it is one value
    normal: Counts  # int64
    anomalous: Counts
    weights: Weights  # float64: of the anomalous ones together

    @classmethod
    def joined(cls, *parts: Self) -> Self:
        """Return the ranges of all parts, in ascending order, a wider one before those in it."""
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__]
        order = np.argsort((columns[0].astype(np.uint64) << 8) + (_KEY_BITS - columns[1]), kind="stable")
        return cls(*(column[order] for column in columns))

    @classmethod
    def of(cls, normal: Keys, anomalous: Keys, weights: Weights) -> Self:
        """Return one range for each different key; `weights` are those of the anomalous ones."""
        places = _distinct(normal, anomalous)
        found = [np.searchsorted(places, keys) for keys in (normal, anomalous)]
        counts = [np.bincount(each, minlength=places.size) for each in found]
        together = _sums(found[1], weights, places.size)
        return cls(places, np.zeros(places.size, np.uint8), counts[0], counts[1], together)

    def __len__(self) -> int:
        return self.starts.size

    def take(self, chosen: NDArray[Any]) -> Self:
        """Return some of the ranges."""
        return type(self)(*(getattr(self, name)[chosen] for name in self.__slots__))

    @property
    def ends(self) -> Keys:
        """The highest key of each."""
        return self.starts | ((np.uint64(1) << self.widths.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)


class Ranking:
    """Counts of two classes by their ordered values; what is met may come in any order.

    Up to 2^21 different values all figures are exact. Of more, each class is known within 2^-19 of its size or a few
    times that, and the limits of a figure say how far it may be off. Memory stays below about 300 MB.
    """

    def __init__(self, *, kept: int = _KEPT, waiting: int = _WAITING) -> None:
        none = np.zeros(0, np.uint32)
        self._open = self._closed = Ranges.of(none, none, np.zeros(0))
        self._kept, self._limit = kept, 4 / kept
        self._limit_of_waiting = waiting
        self.n_normal = self.n_anomalous = self.n_regions = 0
        self._clear()

    def _clear(self) -> None:
        self._waiting: list[tuple[Keys, NDArray[np.uint64]]] = []
        self._held = 0
        self._sizes: list[Counts] = []
        self._regions = 0

    def add(self, values: Floats, truth: Flags | None = None, regions: NDArray[np.integer[Any]] | None = None) -> None:
        """Count values, which may be infinite or NaN: a NaN counts as the highest value there is.

        Parameters
        ----------
        values
            float32, shape (n,), any unit, higher is more anomalous.
        truth
            bool, shape (n,), True is anomalous; None: all are normal.
        regions
            Integers, shape (number of True in `truth`,), from 0 and without a gap: to which region each anomalous
            value belongs, in the order of `values`. None: to none.
        """
        nan = np.isnan(values)
        keys = ordered_keys(merge_zeros(np.where(nan, _NAN, values) if nan.any() else np.ascontiguousarray(values)))
        if truth is None:
            truth = np.zeros(keys.size, np.bool_)
        anomalous = keys[truth].astype(np.uint64) << np.uint64(_KEY_BITS)
        if regions is None or not regions.size:
            anomalous |= np.uint64(0xFFFF_FFFF)
        else:
            sizes = np.bincount(regions)
            anomalous |= (regions + self._regions).astype(np.uint64)
            self._sizes.append(sizes)
            self._regions += sizes.size
            self.n_regions += sizes.size
        self.n_anomalous += anomalous.size
        self.n_normal += keys.size - anomalous.size
        self._waiting.append((keys[~truth], anomalous))
        self._held += keys.size
        if self._held >= self._limit_of_waiting:
            self._flush()

    def _flush(self) -> None:
        """Count what waits: in the ranges where it lies, else as values of its own."""
        if not self._held:
            return
        normal, packed = (np.sort(np.concatenate(keys)) for keys in zip(*self._waiting, strict=True))
        weights = np.append(1.0 / np.concatenate([np.ones(0), *self._sizes]), 0.0)
        weight = weights[np.minimum(packed & np.uint64(0xFFFF_FFFF), np.uint64(weights.size - 1)).astype(np.intp)]
        anomalous = (packed >> np.uint64(_KEY_BITS)).astype(np.uint32)
        self._clear()
        ranges = self._open
        slices = [_Slices.of(ranges, keys) for keys in (normal, anomalous)]
        grown = Ranges(
            ranges.starts,
            ranges.widths,
            ranges.normal + slices[0].counts,
            ranges.anomalous + slices[1].counts,
            ranges.weights + slices[1].sums(weight),
        )
        is_met = slices[0].counts + slices[1].counts > 0
        is_kept = ~is_met | (ranges.widths == 0) | (self._shares(grown) <= 2 * self._limit)
        fresh = [each.outside(is_kept) for each in slices]
        self._closed = Ranges.joined(self._closed, ranges.take(~is_kept))
        self._open = Ranges.joined(
            grown.take(is_kept), Ranges.of(normal[fresh[0]], anomalous[fresh[1]], weight[fresh[1]])
        )
        while len(self._open) + len(self._closed) > self._kept:
            self._merge()

    def _shares(self, ranges: Ranges) -> NDArray[np.float64]:
        """Return the share of what was met that lies in each range, summed over the classes and the regions."""
        shares: NDArray[np.float64] = ranges.normal / max(self.n_normal, 1) + ranges.anomalous / max(
            self.n_anomalous, 1
        )
        return shares + ranges.weights / max(self.n_regions, 1)

    def _merge(self) -> None:
        """Merge neighbours into ranges of at most the share that is allowed; allow more where that is not enough."""
        ranges = Ranges.joined(self._open, self._closed)
        merged = Ranges.joined(*_merged(ranges, np.zeros(len(ranges), np.bool_), self._shares, self._limit))
        is_around = np.append(merged.starts[1:] <= merged.ends[:-1], False)  # others lie within it
        self._open, self._closed = merged.take(~is_around), merged.take(is_around)
        if len(merged) > self._kept * 3 // 4:
            self._limit *= 2

    def table(self, *, best: bool) -> tuple[Table, Weights]:
        """Return single values with counts and weights: exact ones, or each range at its best or at its worst.

        At its best all normal values of a range are its lowest one, and the anomalous ones its highest.
        """
        self._flush()
        ranges = Ranges.joined(self._open, self._closed)
        ends = [ranges.starts, ranges.ends] if best else [ranges.ends, ranges.starts]
        keys = _distinct(np.sort(ends[0]), np.sort(ends[1]))
        places = [np.searchsorted(keys, each) for each in ends]
        counts = [np.zeros(keys.size, np.int64) for _ in ends]
        for found, place, each in zip(counts, places, (ranges.normal, ranges.anomalous), strict=True):
            np.add.at(found, place, each)
        weights = _sums(places[1], ranges.weights, keys.size)
        used = np.flatnonzero((counts[0] > 0) | (counts[1] > 0))
        low, high = (int(keys[used[end]]) if used.size else 0 for end in (0, -1))
        return exact_table(keys[used], counts[0][used], counts[1][used], low=low, high=high), weights[used]

    def areas(self) -> dict[str, Limits | None]:
        """Return `auroc`, `average_precision` and, up to a false-positive rate of 0.3, `aupro`.

        None where a class, or for `aupro` a region, is missing: then the figure is not defined.
        """
        found: dict[str, list[float | None]] = {"auroc": [], "aupro": []}
        for best in (False, True):
            table, weights = self.table(best=best)
            area = auroc(table)
            found["auroc"].append(None if area is None else area["value"])
            found["aupro"].append(aupro(table.normal, weights) if self.n_regions else None)
        found["average_precision"] = list(_average_precision(Ranges.joined(self._open, self._closed)))
        return {name: limits(*found[name]) for name in ("auroc", "average_precision", "aupro")}

    def quantile(self, share: float) -> float | None:
        """Return the value that a share of all values does not exceed (inverted CDF); None without a value.

        Of a range it is the lowest one.
        """
        table, _ = self.table(best=True)
        if not len(table):
            return None
        at_most = np.cumsum(table.normal + table.anomalous)
        return float(float_values(table.starts)[np.searchsorted(at_most, share * at_most[-1])])


def limits(low: float | None, high: float | None) -> Limits | None:
    """Return a figure that lies between two values."""
    return None if low is None or high is None else {"value": (low + high) / 2, "low": low, "high": high}


def _average_precision(ranges: Ranges) -> tuple[float, float] | tuple[None, None]:
    """Return between what the average precision lies: the mean over anomalous values of the precision at each.

    True and false positives there are counted once where they are possible and once where they are certain. Those of
    one range may have any order; one after the other, behind all that is normal, their precisions sum to at least
    p - F ln(1 + p / (T + F)).
    """
    if not ranges.normal.any() or not ranges.anomalous.any():
        return None, None
    of = ranges.take(ranges.anomalous > 0)
    gained, is_wide = of.anomalous.astype(np.float64), of.widths > 0
    by_end = np.argsort(ranges.ends, kind="stable")

    def from_on(counts: Counts, keys: Keys, *, possible: bool) -> NDArray[np.float64]:
        """Return how many values may be, or are, at or above keys; above the ranges that end there, if wide."""
        order = by_end if possible else slice(None)
        above = np.append(np.cumsum(counts[order][::-1])[::-1], 0)
        column = (ranges.ends if possible else ranges.starts)[order]
        if possible:
            return above[np.searchsorted(column, keys)].astype(np.float64)
        places = [np.searchsorted(column, keys, side=side) for side in ("left", "right")]
        return above[np.where(is_wide, places[1], places[0])].astype(np.float64)

    tp, fp = (from_on(counts, of.starts, possible=True) for counts in (ranges.anomalous, ranges.normal))
    tp_certain, fp_certain = (from_on(counts, of.ends, possible=False) for counts in (ranges.anomalous, ranges.normal))
    with np.errstate(divide="ignore", invalid="ignore"):
        one_by_one = np.where(fp > 0, gained - fp * np.log1p(gained / (tp_certain + fp)), gained)
        lowest = np.where(is_wide, one_by_one, gained * tp_certain / (tp_certain + fp))
    highest, total = gained * tp / (tp + fp_certain), gained.sum()
    return math.fsum(lowest) / total, math.fsum(highest) / total


def aupro(normal: Counts, weights: Weights, *, limit: float = FPR_LIMIT) -> float | None:
    """Return the area under the per-region overlap over the false-positive rate, up to a limit, divided by it.

    Parameters
    ----------
    normal
        int64, shape (n,): how often each of the different values, ascending, is that of a normal pixel.
    weights
        float64, shape (n,): the sum of 1 / region size over the anomalous pixels with that value.
    limit
        The false-positive rate up to which it is taken, above 0 and at most 1.

    Returns
    -------
    float | None
        In [0, 1]; None without a normal pixel or a region.
    """
    if not normal.any() or not weights.any():
        return None
    rate, overlap = (np.concatenate(([0.0], np.cumsum(column[::-1]) / column.sum())) for column in (normal, weights))
    inside = int(np.searchsorted(rate, limit, side="right"))
    at_limit = np.interp(limit, rate[inside - 1 : inside + 1], overlap[inside - 1 : inside + 1])
    x, y = np.append(rate[:inside], limit), np.append(overlap[:inside], at_limit)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / limit)


@dataclass(frozen=True, slots=True)
class _Slices:
    """Where the ascending values that lie in disjoint ranges stand: a slice for each range."""

    first: NDArray[np.intp]
    counts: NDArray[np.intp]
    size: int

    @classmethod
    def of(cls, ranges: Ranges, keys: Keys) -> Self:
        first = _places(ranges.starts, keys, is_left=True)
        return cls(first, _places(ranges.ends, keys, is_left=False) - first, keys.size)

    def inside(self, chosen: Flags) -> Flags:
        """Return which values lie in one of the chosen ranges."""
        used = np.flatnonzero(chosen & (self.counts > 0))
        steps = np.zeros(self.size + 1, np.int8)
        steps[self.first[used]] += 1
        steps[(self.first + self.counts)[used]] -= 1
        flags: Flags = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)
        return flags

    def outside(self, chosen: Flags) -> Flags:
        """Return which values lie in none of the chosen ranges."""
        return ~self.inside(chosen)

    def sums(self, weights: Weights) -> Weights:
        """Return the sum of the values' weights in each range."""
        numbers = np.repeat(np.arange(self.counts.size), self.counts)
        every = np.ones(self.counts.size, np.bool_)
        return _sums(numbers, weights[self.inside(every)], self.counts.size)


def _places(wanted: Keys, keys: Keys, *, is_left: bool) -> NDArray[np.intp]:
    """Return `np.searchsorted` of ascending keys: merging two long runs takes a tenth of the time."""
    order = np.argsort(np.concatenate((wanted, keys) if is_left else (keys, wanted)), kind="stable")
    is_wanted = order < wanted.size if is_left else order >= keys.size
    return np.flatnonzero(is_wanted) - np.arange(wanted.size)


def _sums(numbers: NDArray[np.intp], weights: Weights, size: int) -> Weights:
    """Return the sum of the weights of each number from 0 to `size`, which is excluded."""
    return np.bincount(numbers, weights=weights, minlength=size).astype(np.float64, copy=False)


def _distinct(*parts: Keys) -> Keys:
    """Return the different ones of ascending keys, ascending."""
    keys = np.sort(np.concatenate(parts), kind="stable")
    return keys[np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: keys.size])]


def _merged(
    ranges: Ranges, heavy: Flags, shares: Callable[[Ranges], Weights], limit: float, low: int = 1, high: int = _KEY_BITS
) -> Iterator[Ranges]:
    """Merge what lies in one range of 2^low to 2^high keys, the widest that holds no more than a share.

    Such ranges begin at multiples of their width. A heavy one stands for some that are done and hold more than a share
    together. Halving the widths that are left takes few looks at each range.
    """
    if low > high or heavy.all():
        yield ranges.take(~heavy)
        return
    width = (low + high) // 2
    is_narrow = ranges.widths <= width
    wide, ranges, heavy = ranges.take(~is_narrow), ranges.take(is_narrow), heavy[is_narrow]
    if not len(ranges):
        yield from _merged(wide, np.zeros(len(wide), np.bool_), shares, limit, width + 1, high)
        return
    parents = ranges.starts >> np.uint32(width) if width < _KEY_BITS else np.zeros_like(ranges.starts)
    first = np.flatnonzero(np.append(True, parents[1:] != parents[:-1]))
    sums = [np.add.reduceat(each, first) for each in (ranges.normal, ranges.anomalous, ranges.weights)]
    starts = ranges.starts[first]
    bits = np.frexp((starts ^ np.maximum.reduceat(ranges.ends, first)).astype(np.float64))[1]  # in which they differ
    starts &= ~((np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    together = Ranges(starts, bits.astype(np.uint8), *sums)
    is_heavy = np.logical_or.reduceat(heavy, first) | (shares(together) > limit)
    inside = np.repeat(is_heavy, np.diff(np.append(first, len(ranges))))
    yield from _merged(ranges.take(inside), heavy[inside], shares, limit, low, width - 1)
    for column in (together.widths, together.normal, together.anomalous, together.weights):
        column[is_heavy] = 0
    if len(wide):
        marks = np.append(is_heavy, np.zeros(len(wide), np.bool_))
        order = np.argsort(np.append(together.starts, wide.starts), kind="stable")
        columns = [np.append(getattr(together, name), getattr(wide, name))[order] for name in Ranges.__slots__]
        together, is_heavy = Ranges(*columns), marks[order]
    yield from _merged(together, is_heavy, shares, limit, width + 1, high)
