"""Values of two classes, ranked in constant memory: the areas under their curves, and quantiles, between sure limits.

All values are kept while they are few. Of more the different values are kept, with how often each was met. Of more than
fit, neighbours are merged into ranges that hold a small share of each class. A range that could outgrow that share is
closed, and what comes later is kept beside it. What is within a range may have any order, and that is all that is not
known: once it is taken at its worst and once at its best, and the truth lies between the two.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting import exact_table
from postproc_export.calibration.statistics import auroc
from postproc_export.calibration.table import Counts, Flags, Floats, Keys, float_values, merge_zeros, ordered_keys

Weights = NDArray[np.float64]
Limits = dict[str, float]
"""A figure: `value`, and `low` and `high`, between which it lies for certain; all three are one where it is exact."""

FPR_LIMIT: Final = 0.3
_NAN: Final = np.float32(np.nan)  # its key is above that of inf, so it is the most anomalous value
_KEPT: Final = 1 << 21
_WAITING: Final = 1 << 23
_FULL: Final = 0.8  # how much of what is kept may be left after merging
_AT_ONCE: Final = 1 << 21
_KEY_BITS: Final = 32
_NO_REGION: Final = np.uint64(2**_KEY_BITS - 1)
_Keys: TypeAlias = tuple[Keys, NDArray[np.uint64]]  # of normal values, and of anomalous ones with their region below


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
        """Return one range for each different key of ascending ones; `weights` are those of the anomalous ones."""
        keys = np.concatenate((normal, anomalous))
        order = np.argsort(keys, kind="stable")  # two ascending runs, which this merges
        keys, is_anomalous = keys[order], order >= normal.size
        first = _firsts(keys)
        sizes = np.diff(np.append(first, keys.size))
        if not first.size:
            return cls(keys, np.zeros(0, np.uint8), sizes, sizes, np.zeros(0))
        weight = np.zeros(keys.size)
        weight[is_anomalous] = weights
        found = np.add.reduceat(is_anomalous, first, dtype=np.int64)
        return cls(keys[first], np.zeros(first.size, np.uint8), sizes - found, found, np.add.reduceat(weight, first))

    def __len__(self) -> int:
        return self.starts.size

    def take(self, chosen: NDArray[Any] | slice) -> Self:
        """Return some of the ranges."""
        return type(self)(*(getattr(self, name)[chosen] for name in self.__slots__))

    @property
    def ends(self) -> Keys:
        """The highest key of each."""
        return self.starts | ((np.uint64(1) << self.widths.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)


class Ranking:
    """Counts of two classes by their ordered values; what is met may come in any order.

    Up to 2^23 values, or 2^21 different ones, all figures are exact. Of more, a range holds some millionths of each
    class, and the limits of a figure say how far it may be off. What is kept does not grow: 800 MB at most.
    """

    def __init__(self, *, kept: int = _KEPT, waiting: int = _WAITING) -> None:
        none = np.zeros(0, np.uint32)
        self._open = self._closed = Ranges.of(none, none, np.zeros(0))
        self._kept, self._limit = kept, 4 / kept
        self._limit_of_waiting = waiting
        self.n_normal = self.n_anomalous = self.n_regions = 0
        self._clear()

    def _clear(self) -> None:
        self._waiting: list[_Keys] = []
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
        normal, anomalous = keys, np.zeros(0, np.uint64)
        if truth is not None and truth.any():
            normal, anomalous = keys[~truth], keys[truth].astype(np.uint64) << np.uint64(_KEY_BITS)
        if regions is None or not regions.size:
            anomalous |= _NO_REGION
        else:
            sizes = np.bincount(regions)
            anomalous |= (regions + self._regions).astype(np.uint64)
            self._sizes.append(sizes)
            self._regions += sizes.size
            self.n_regions += sizes.size
        self.n_anomalous += anomalous.size
        self.n_normal += normal.size
        self._waiting.append((normal, anomalous))
        self._held += keys.size
        if self._held > self._limit_of_waiting:
            self._flush()

    def _ordered(self, waiting: Sequence[_Keys]) -> tuple[Keys, Keys, Weights]:
        """Return the keys of both classes, ascending, and the weights of the anomalous ones."""
        normal, packed = (np.sort(np.concatenate(keys)) for keys in zip(*waiting, strict=True))
        weights = np.append(1.0 / np.concatenate([np.ones(0), *self._sizes]), 0.0)
        region = np.minimum(packed & _NO_REGION, np.uint64(weights.size - 1)).astype(np.intp)
        return normal, (packed >> np.uint64(_KEY_BITS)).astype(np.uint32), weights[region]

    def _flush(self) -> None:
        """Count what waits."""
        while self._waiting:
            some, held = list[_Keys](), 0
            while self._waiting and held < _AT_ONCE:
                some.append(self._waiting.pop())
                held += sum(keys.size for keys in some[-1])
            self._count(*self._ordered(some))
            while len(self._open) + len(self._closed) > self._kept:
                self._merge()
        self._clear()

    def _count(self, normal: Keys, anomalous: Keys, weight: Weights) -> None:
        """Count ascending keys in the ranges where they lie, else as values of their own."""
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

    def _shares(self, ranges: Ranges) -> NDArray[np.float64]:
        """Return the share of what was met that lies in each range, summed over the classes and the regions."""
        shares: NDArray[np.float64] = ranges.normal / max(self.n_normal, 1) + ranges.anomalous / max(
            self.n_anomalous, 1
        )
        return shares + ranges.weights / max(self.n_regions, 1)

    def _merge(self) -> None:
        """Merge neighbours into ranges of at most the share that is allowed; allow more where too many are left."""
        ranges = Ranges.joined(self._open, self._closed)
        self._open = self._closed = ranges.take(slice(0))  # what is merged is not held twice
        merged = _merged(ranges, self._shares(ranges), self._limit)
        is_around = np.append(merged.starts[1:] <= merged.ends[:-1], False)  # others lie within it
        self._open, self._closed = merged.take(~is_around), merged.take(is_around)
        self._limit *= min(max(len(merged) / (_FULL * self._kept), 0.5), 2.0)

    def ranges(self) -> Ranges:
        """Return what was met; values that still wait, and were not merged, as single ones: see `_around`."""
        if self._waiting and not len(self._open):
            return _around(*self._ordered(self._waiting))
        self._flush()
        return Ranges.joined(self._open, self._closed)

    def areas(self) -> dict[str, Limits | None]:
        """Return `auroc`, `average_precision` and, up to a false-positive rate of 0.3, `aupro`.

        None where a class, or for `aupro` a region, is missing: then the figure is not defined.
        """
        ranges = self.ranges()
        found = [_areas(ranges, best=best) for best in ((False, True) if ranges.widths.any() else (True,))]
        ends = {name: (found[0][name], found[-1][name]) for name in found[0]}
        precision = _average_precision(ranges)
        both = {"auroc": ends["auroc"], "average_precision": precision, "aupro": ends["aupro"]}
        return {name: limits(*each) for name, each in both.items()}

    def quantile(self, share: float) -> float | None:
        """Return the value that a share of all values does not exceed (inverted CDF); None without a value.

        Of a range it is the lowest one.
        """
        self._flush()
        ranges = Ranges.joined(self._open, self._closed)
        if not len(ranges):
            return None
        at_most = np.cumsum(ranges.normal + ranges.anomalous)
        rank = math.ceil(share * int(at_most[-1]) - 1e-9)
        return float(float_values(ranges.starts)[np.searchsorted(at_most, rank)])


def _around(normal: Keys, anomalous: Keys, weights: Weights) -> Ranges:
    """Return single values of ascending keys, with the normal ones between two anomalous ones as one: the highest.

    Where they stand between these changes no area, and they are not counted one by one.
    """
    own = Ranges.of(normal[:0], anomalous, weights)
    first, end = (np.searchsorted(normal, own.starts, side=side) for side in ("left", "right"))
    begins, ends = np.append(0, end), np.append(first, normal.size)
    used = np.flatnonzero(ends > begins)
    zeros = np.zeros(used.size, np.int64)
    between = Ranges(normal[ends[used] - 1], zeros.astype(np.uint8), (ends - begins)[used], zeros, zeros.astype(float))
    return Ranges.joined(Ranges(own.starts, own.widths, end - first, own.anomalous, own.weights), between)


def _areas(ranges: Ranges, *, best: bool) -> dict[str, float | None]:
    """Return the areas of values that are single, or of each range at its best or at its worst.

    At its best all normal values of a range are its lowest one, and the anomalous ones its highest.
    """
    ends = [ranges.starts, ranges.ends] if best else [ranges.ends, ranges.starts]
    keys = np.sort(np.concatenate(ends))
    keys = keys[_firsts(keys)]
    places = [np.searchsorted(keys, each) for each in ends]
    counts = [np.zeros(keys.size, np.int64) for _ in ends]
    for found, place, each in zip(counts, places, (ranges.normal, ranges.anomalous), strict=True):
        np.add.at(found, place, each)
    low, high = (int(keys[end]) if keys.size else 0 for end in (0, -1))
    area = auroc(exact_table(keys, *counts, low=low, high=high))
    overlap = aupro(counts[0], _sums(places[1], ranges.weights, keys.size))
    return {"auroc": None if area is None else area["value"], "aupro": overlap}


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
    highest, total = gained * tp / (tp + fp_certain), float(gained.sum())
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


def _firsts(keys: NDArray[Any]) -> NDArray[np.intp]:
    """Return where each of the different ones among ascending keys begins."""
    return np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: keys.size])


def _merged(ranges: Ranges, shares: Weights, limit: float) -> Ranges:
    """Merge what lies in one range of 2, 4, 8 ... keys, the widest that holds no more than a share.

    Such ranges begin at multiples of their width. What is alone in one stays as it is.
    """
    total = np.append(0.0, np.cumsum(shares))
    place = np.arange(len(ranges), dtype=np.int32)
    runs = _Runs(ranges.starts, ranges.ends, place, place, np.zeros(len(ranges), np.bool_))
    first = np.sort(np.concatenate(list(_divided(runs, total, limit, 1, _KEY_BITS))))
    starts = ranges.starts[first]
    bits = np.frexp((starts ^ np.maximum.reduceat(ranges.ends, first)).astype(np.float64))[1]  # in which keys differ
    starts &= ~((np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    sums = [np.add.reduceat(each, first) for each in (ranges.normal, ranges.anomalous, ranges.weights)]
    return Ranges(starts, bits.astype(np.uint8), *sums)


class _Runs(NamedTuple):
    """Runs of neighbouring ranges; a heavy one stands for some that are done and hold too much together."""

    starts: Keys
    ends: Keys
    first: NDArray[np.int32]  # the numbers of the first and the last range
    last: NDArray[np.int32]
    heavy: Flags

    def take(self, chosen: NDArray[Any]) -> "_Runs":
        return _Runs(*(column[chosen] for column in self))


def _divided(runs: _Runs, total: Weights, limit: float, low: int, high: int) -> Iterator[NDArray[np.int32]]:
    """Yield where the runs begin that may be merged in ranges of 2^low to 2^high keys.

    Halving the widths that are left takes few looks at each range.
    """
    if low > high or runs.heavy.all():
        yield runs.first[~runs.heavy]
        return
    width = (low + high) // 2
    is_narrow = (runs.starts ^ runs.ends) <= np.uint32((1 << width) - 1)
    wide = None if is_narrow.all() else runs.take(~is_narrow)
    narrow = runs if wide is None else runs.take(is_narrow)
    parents = narrow.starts >> np.uint32(width) if width < _KEY_BITS else np.zeros_like(narrow.starts)
    lead = _firsts(parents)
    if not lead.size:
        yield from _divided(runs, total, limit, width + 1, high)
        return
    sizes = np.diff(np.append(lead, parents.size))
    first, last = narrow.first[lead], narrow.last[lead + sizes - 1]
    heavy = np.logical_or.reduceat(narrow.heavy, lead) | (total[last + 1] - total[first] > limit)
    yield from _divided(narrow.take(np.repeat(heavy, sizes)), total, limit, low, width - 1)
    wider = _Runs(narrow.starts[lead], np.maximum.reduceat(narrow.ends, lead), first, last, heavy)
    if wide is not None:
        order = np.argsort(np.append(wider.first, wide.first), kind="stable")
        wider = _Runs(*(np.append(one, other)[order] for one, other in zip(wider, wide, strict=True)))
    yield from _divided(wider, total, limit, width + 1, high)
