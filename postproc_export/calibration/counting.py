"""Counting passes: buckets of all values first, then chosen bins counted again more finely, and sums of parts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.arrays import AnyArray, Block
from postproc_export.calibration.table import (
    Counts,
    Flags,
    Floats,
    Keys,
    Table,
    is_negative_zero,
    key_of,
    merge_zeros,
    ordered_keys,
    value_of,
)
from postproc_export.errors import CalibrationError

Indices = NDArray[np.intp]
Truth = Flags | None  # bool, True is anomalous; None where no ground truth was given, and all count as normal


def to_float32_array(values: AnyArray) -> Floats:
    """Round to float32, to nearest even; what overflows becomes infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def is_wide(dtype: np.dtype[Any]) -> bool:
    """Whether float32 cannot hold every value of a type."""
    return not np.can_cast(dtype, np.float32, casting="safe") and str(dtype) != "bfloat16"


def as_flags(truth: AnyArray) -> Flags | None:
    """Return 0/1 ground truth as booleans, or None where an element is neither."""
    if truth.dtype.kind in "bu" and truth.dtype.itemsize == 1:
        raw = np.ascontiguousarray(truth).view(np.uint8)
        return raw.view(np.bool_) if raw.size == 0 or raw.max() <= 1 else None
    flags = truth == 1
    return flags if bool(np.all(flags | (truth == 0))) else None


@dataclass(slots=True)
class Part:
    """Some of the values of a level: all of them in one process; on Dask a chunk, a run of boxes or some files."""

    blocks: Iterable[Block]
    number: int = 0  # of its array or its group of files: what is wrong with the lowest one is reported
    states: dict[int, object] = field(default_factory=dict)  # of its files, by the position of the shard

    def rounded(self) -> Iterator[tuple[Floats, Truth]]:
        """Yield the values of a later pass: the first one checked them, and no bin includes what it dropped."""
        for block in self.blocks:
            truth = None if block.truth is None else as_flags(block.truth)
            if block.truth is not None and truth is None:
                what = f"{block.place.where} changed between two passes over it"
                raise CalibrationError(what, found="ground truth not 0/1")
            yield to_float32_array(block.values), truth


def places_of(flags: Flags) -> Indices:
    """Return where flags are set, as `np.flatnonzero` does.

    NumPy looks for the set ones one after the other where they are a tenth at most, and counts along else: at a few
    percent that is twice as fast, so set ones are added behind the others.
    """
    found = int(np.count_nonzero(flags))
    if flags.size >> 5 < found <= flags.size // 10:
        flags = np.concatenate((flags, np.ones(flags.size >> 3, dtype=np.bool_)))
    return np.flatnonzero(flags)[:found]


COARSE_WIDTH: Final = 16
BUCKETS: Final = 1 << 16
_NEGATIVE_ZERO_BUCKET: Final = 1 << 15  # of the raw bits
_ZERO: Final = key_of(0.0)
FEW: Final = 8  # buckets up to which every key of theirs is counted at once: there is no second pass over these values
_ONE: Final = np.int64(1)  # of the type of the counts, or NumPy adds fifty times as slowly
_HARDLY_ANY: Final = 64  # a part of all values
KEPT: Final = 1 << 21  # values of a window that are kept for the next pass


def _to_ordered(raw_counts: NDArray[Any]) -> NDArray[Any]:
    """Reorder a table over raw upper halves so that it ascends with the value; shape (65536,)."""
    half = BUCKETS // 2
    return np.concatenate((raw_counts[half:][::-1], raw_counts[:half]))


def _raw_numbers(ordered: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where buckets stand in a table over raw upper halves, from their numbers in the order of the values."""
    half = BUCKETS // 2
    return np.where(ordered < half, BUCKETS - 1 - ordered, ordered - half)


def count_cells(counts: Counts, cells: NDArray[np.integer[Any]]) -> None:
    """Add to the counts of cells; few of them take no table of all as `np.bincount` makes."""
    np.add.at(counts, cells.astype(np.intp, copy=False), _ONE)


def _count_buckets(counts: Counts, values: Floats) -> None:
    """Count values by the upper half of their bits, -0.0 as 0.0; looks for it only where its bucket was met."""
    before = int(counts[_NEGATIVE_ZERO_BUCKET])
    count_cells(counts, values.view(np.uint16)[1::2])
    if counts[_NEGATIVE_ZERO_BUCKET] != before:
        zeros = np.count_nonzero(is_negative_zero(values))
        counts[_NEGATIVE_ZERO_BUCKET] -= zeros
        counts[0] += zeros


class CoarseHistogram:
    """Counts of both classes in buckets of 2^16 keys; while all values lie in few buckets, of every key of these."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, BUCKETS), dtype=np.int64)  # of all values, and of the anomalous ones
        self._few: range | None = range(0)  # the buckets whose keys are counted instead; None: too many were met
        self._keys = np.zeros((2, 0), dtype=np.int64)

    def __getstate__(self) -> tuple[Indices, Counts]:
        """Return the buckets that were met, which is all that travels between processes."""
        counts = self._bucket_counts()
        used = np.flatnonzero(counts.any(axis=0))
        return used.astype(np.uint16), counts[:, used]

    def __setstate__(self, state: tuple[Indices, Counts]) -> None:
        self.__init__()  # type: ignore[misc]
        self._few, (used, counts) = None, state
        self._counts[:, used] = counts

    def add(self, values: Floats, truth: Truth, *, low: float, high: float) -> None:
        """Count finite values whose lowest and highest are known."""
        few = self._widened(range(key_of(low) >> COARSE_WIDTH, (key_of(high) >> COARSE_WIDTH) + 1))
        anomalous = values[:0] if truth is None else values[places_of(truth)]
        for row, each in enumerate((values, anomalous)):
            if few is None:
                _count_buckets(self._counts[row], each)
            else:
                count_cells(self._keys[row], keys_from(few.start << COARSE_WIDTH, each))

    def _widened(self, met: range) -> range | None:
        """Make room for the keys of buckets that follow each other; return all that there is room for."""
        few = self._few
        if few is None or not met or (few and few.start <= met.start and met.stop <= few.stop):
            return few
        wide = range(min(few.start, met.start), max(few.stop, met.stop)) if few else met
        if len(wide) > FEW:
            self._counts, self._few, self._keys = self._bucket_counts(), None, self._keys[:, :0]
            return None
        keys = np.zeros((2, len(wide) << COARSE_WIDTH), dtype=np.int64)
        if few:
            keys[:, _within(few, wide)] = self._keys
        self._few, self._keys = wide, keys
        return wide

    def _bucket_counts(self) -> Counts:
        """Return the counts of all buckets in the order of their raw bits, shape (2, 65536)."""
        if not self._few:
            return self._counts
        counts = np.zeros((2, BUCKETS), dtype=np.int64)
        counts[:, _raw_numbers(np.array(self._few))] = self._keys.reshape(2, len(self._few), -1).sum(axis=2)
        return counts

    def merge(self, other: "CoarseHistogram") -> None:
        """Add the counts of another histogram."""
        few = self._widened(range(BUCKETS) if other._few is None else other._few)
        if few is None:
            self._counts += other._bucket_counts()
        elif other._few:
            self._keys[:, _within(other._few, few)] += other._keys

    def table(self, *, low: int, high: int) -> Table:
        """Return the counts as a table of bins 2^16 keys wide, with the keys of the lowest and highest value."""
        everything, anomalous = map(_to_ordered, self._bucket_counts())
        return coarse_pass(low, high).table(everything - anomalous, anomalous)

    def exact_table(self, *, low: int, high: int) -> Table | None:
        """Return one bin per distinct value; None where the keys were not counted."""
        if not self._few:
            return None
        everything, anomalous = self._keys
        used = np.flatnonzero(everything)
        starts = (used + (self._few.start << COARSE_WIDTH)).astype(np.uint32)
        return exact_table(starts, (everything - anomalous)[used], anomalous[used], low=low, high=high)


def _within(few: range, wide: range) -> slice:
    """Return where the keys of some buckets stand among those of more."""
    return slice(few.start - wide.start << COARSE_WIDTH, few.stop - wide.start << COARSE_WIDTH)


def keys_from(first: int, values: Floats) -> Keys:
    """Return how far the keys of values lie above a first key, below which there is none."""
    if first > _ZERO:  # the bits of positive values are in order themselves
        return values.view(np.uint32) - np.uint32(first - _ZERO)
    keys = ordered_keys(merge_zeros(values))
    keys -= np.uint32(first)
    return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Divide:
    """A pass that divides bins of one width into 2^bits cells each; with 0 bits it collects their distinct values.

    It goes to every worker, so it holds no more of the table than 4 bytes for each chosen bin. The answers depend on
    the values alone, not on where they are or in which order, and those of parts add up exactly.
    """

    starts: Keys  # uint32, shape (n,), ascending: the lowest ordered key of each bin
    width: int  # a bin covers 2^width keys
    bits: int  # 8, or 16 for bins of that width, or 0
    low: int  # the ordered keys of the lowest and the highest value of the whole
    high: int
    is_run: bool = False  # no other bin of the table lies between two of these
    is_top: bool = False  # hardly any value lies above them, so one comparison picks out those that may lie in them

    @classmethod
    def of(cls, table: Table, chosen: Indices, *, bits: int) -> "Divide":
        """Return the pass over chosen bins of a table, ascending and equally wide."""
        width = int(table.widths[chosen[0]])
        assert (table.widths[chosen] == width).all(), "the chosen bins are equally wide"
        above = table.tp_above[chosen[-1]] + table.fp_above[chosen[-1]]
        return cls(
            starts=table.starts[chosen],
            width=width,
            bits=bits,
            low=table.low,
            high=table.high,
            is_run=chosen.size == chosen[-1] - chosen[0] + 1,
            is_top=int(above) * _HARDLY_ANY <= table.n_normal + table.n_anomalous,
        )

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value that may lie in a chosen bin."""
        if self.is_top:
            return value_of(int(self.starts[0])), np.inf
        end = int(self.starts[-1]) + (1 << self.width) - 1
        return value_of(int(self.starts[0])), value_of(end - 1 if end == _ZERO - 1 else end)  # 0.0 is not above -0.0

    def run(self, part: Part) -> Table:
        """Return the finer bins of a part; the non-empty ones only."""
        return self.count(Window(*self.ends, part.rounded()))

    def count(self, window: "Window") -> Table:
        """Return the finer bins of a window that holds the chosen ones."""
        locator, none = Locator(self), np.zeros(0, dtype=np.uint32)
        found = (locator.find(*each) for each in window.values())
        if not self.bits:
            parts = [(none, none), *((keys, keys[anomalous]) for keys, _, anomalous in found)]
            everything, anomalous = (np.concatenate(keys) for keys in zip(*parts, strict=True))
            return table_of_keys(everything, anomalous, low=self.low, high=self.high)
        counts = np.zeros((2, locator.starts.size << self.bits), dtype=np.int64)
        shift, mask = np.uint32(self.width - self.bits), np.uint32((1 << self.bits) - 1)
        for keys, numbers, anomalous in found:
            cells = (numbers << np.uint32(self.bits)) | ((keys >> shift) & mask)
            count_cells(counts[0], cells)
            count_cells(counts[1], cells[anomalous])
        everything, anomalous = counts
        return self.table(everything - anomalous, anomalous, starts=locator.starts)

    def among(self, exact: Table) -> Table:
        """Return the finer bins of values that a table holds, each as a bin of its own."""
        bins = np.searchsorted(self.starts, exact.starts, side="right") - 1
        inside = np.flatnonzero((bins >= 0) & (exact.starts - self.starts[bins] < 1 << self.width))
        counts = (column[inside] for column in (exact.normal, exact.anomalous))
        found = exact_table(exact.starts[inside], *counts, low=self.low, high=self.high)
        return self.table(*self.dense(found)) if self.bits else found

    def add(self, answers: Sequence[Table]) -> Table:
        """Return the finer bins of parts together: collected values are few, cells are added where they stand."""
        if not self.bits:
            return sum_tables(answers, low=self.low, high=self.high)
        counts = self.dense(answers[0])
        for answer in answers[1:]:
            counts += self.dense(answer)
        return self.table(*counts)

    def dense(self, finer: Table) -> Counts:
        """Return int64 counts of shape (2, n 2^bits), normal and anomalous, of a table with bins in these cells."""
        bins = np.searchsorted(self.starts, finer.starts, side="right") - 1
        within = (finer.starts - self.starts[bins]) >> np.uint32(self.width - self.bits)
        cells = (bins << self.bits) | within.astype(np.intp)
        counts = np.zeros((2, self.starts.size << self.bits), dtype=np.int64)
        for column, found in zip(counts, (finer.normal, finer.anomalous), strict=True):
            np.add.at(column, cells, found)
        return counts

    def table(self, normal: Counts, anomalous: Counts, *, starts: Keys | None = None) -> Table:
        """Return the table of the cells that are not empty: the inverse of `dense`, or of other bins that start so."""
        used = np.flatnonzero((normal != 0) | (anomalous != 0))
        within = (used & ((1 << self.bits) - 1)).astype(np.uint32) << np.uint32(self.width - self.bits)
        return Table(
            starts=(self.starts if starts is None else starts)[used >> self.bits] + within,
            widths=np.full(used.size, self.width - self.bits, dtype=np.uint8),
            normal=normal[used],
            anomalous=anomalous[used],
            low=self.low,
            high=self.high,
        )


def coarse_pass(low: int, high: int) -> Divide:
    """Return the one bin of all keys divided into the cells of the first pass."""
    return Divide(starts=np.zeros(1, dtype=np.uint32), width=32, bits=32 - COARSE_WIDTH, low=low, high=high)


@dataclass(frozen=True, slots=True)
class Extremes:
    """A pass that finds the lowest and highest value of a wide type that rounds to a threshold; (inf, -inf): none."""

    threshold: np.float32

    def run(self, part: Part) -> tuple[float, float]:
        """Return the extremes of a part."""
        low, high = float("inf"), float("-inf")
        for block in part.blocks:
            if is_wide(block.values.dtype):
                merged = block.values[to_float32_array(block.values) == self.threshold]
                if merged.size:
                    low, high = min(low, merged.min().item()), max(high, merged.max().item())
        return low, high

    def add(self, answers: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Return the extremes of parts together."""
        return min(low for low, _ in answers), max(high for _, high in answers)


class Window:
    """All values between two, and maybe others; kept once they were picked out, where they are few."""

    def __init__(self, low: float, high: float, source: Iterable[tuple[Floats, Truth]]) -> None:
        self._low, self._high, self._source = low, high, source
        self._kept: list[tuple[Floats, Truth]] | None = None

    def holds(self, low: float, high: float) -> bool:
        """Whether all values between two others are kept."""
        return self._kept is not None and self._low <= low and high <= self._high

    def values(self) -> Iterator[tuple[Floats, Truth]]:
        """Yield the values, float32, and their ground truth."""
        if self._kept is not None:
            yield from self._kept
            return
        kept, size = list[tuple[Floats, Truth]](), 0
        for values, truth in self._source:
            is_near = values >= self._low
            if self._high < np.inf:
                is_near &= values <= self._high
            if 2 * np.count_nonzero(is_near) > values.size:  # a pass leaves out what lies in none of its bins anyway
                picked = values, truth
            else:
                at = places_of(is_near)
                picked = values[at], None if truth is None else truth[at]
            yield picked
            size += picked[0].size
            if size <= KEPT:
                kept.append(picked)
            else:
                kept.clear()
        self._kept = kept if size <= KEPT else None


class Passes:
    """The later passes over the values of a level in this process."""

    def __init__(self, read: Callable[[], Part]) -> None:
        self._read = read
        self._window: Window | None = None

    def __call__(self, work: Divide | Extremes) -> Any:
        """Return the answer of a pass: from what the one before picked out, where that holds all it looks for."""
        if isinstance(work, Extremes):
            return work.run(self._read())
        if self._window is None or not self._window.holds(*work.ends):
            self._window = Window(*work.ends, self._read().rounded())
        return work.count(self._window)


Values = Callable[[Divide | Extremes], Any]
"""All values of one level, wherever they are, counted again as often as asked: returns the answer of a pass."""


_NOWHERE: Final = np.uint32(0xFFFF_FFFF)


class Locator:
    """Finds the chosen bin of a value; the bins are 16 or 8 bits wide.

    Bins that follow each other in the table have nothing but empty ones between them, so arithmetic finds them; else a
    table of pages of 2^16 keys does, and for narrower bins a second one.
    """

    def __init__(self, divide: Divide) -> None:
        self._width = np.uint32(divide.width)
        self._first, last = divide.starts[0], divide.starts[-1]
        span = int((last - self._first) >> self._width) + 1
        self._is_run = divide.is_run and span <= 2 * divide.starts.size
        self.starts = divide.starts
        if self._is_run:
            self.starts = self._first + (np.arange(span, dtype=np.uint32) << self._width)
            return
        pages, page_of_bin = np.unique(self.starts >> np.uint32(16), return_inverse=True)
        self._pages = np.full(BUCKETS, pages.size, dtype=np.uint32)
        self._pages[pages] = np.arange(pages.size)
        if divide.width == COARSE_WIDTH:  # a page is a bin
            return
        self._numbers = np.full((pages.size + 1, 1 << (16 - divide.width)), _NOWHERE)
        self._numbers[page_of_bin, self._within_page(self.starts)] = np.arange(self.starts.size)

    def _within_page(self, keys: Keys) -> Keys:
        within: Keys = (keys & np.uint32(0xFFFF)) >> self._width
        return within

    def _numbers_of(self, keys: Keys) -> Keys:
        """Return the numbers of the bins of keys; of others something beyond all numbers."""
        if self._is_run:
            numbers: Keys = (keys - self._first) >> self._width
        else:
            numbers = self._pages[keys >> np.uint32(16)]
            if self._width < COARSE_WIDTH:
                numbers = self._numbers[numbers, self._within_page(keys)]
        return numbers

    def find(self, values: Floats, truth: Truth) -> tuple[Keys, Keys, Indices]:
        """Return the keys of values in chosen bins, the numbers of these bins, and where the keys are anomalous."""
        keys = ordered_keys(merge_zeros(values))
        numbers = self._numbers_of(keys)
        inside = np.flatnonzero(numbers < self.starts.size)
        if inside.size < keys.size:
            keys, numbers, truth = keys[inside], numbers[inside], None if truth is None else truth[inside]
        return keys, numbers, np.zeros(0, np.intp) if truth is None else np.flatnonzero(truth)


def table_of_keys(everything: Keys, anomalous: Keys, *, low: int, high: int) -> Table:
    """Return the table of unsorted keys, one bin per distinct key; the anomalous ones are among them."""
    starts, counts = np.unique(everything, return_counts=True)
    anomalous_counts = np.zeros(starts.size, dtype=np.int64)
    found, found_counts = np.unique(anomalous, return_counts=True)
    anomalous_counts[np.searchsorted(starts, found)] = found_counts
    return exact_table(starts, counts - anomalous_counts, anomalous_counts, low=low, high=high)


def exact_table(starts: Keys, normal: Counts, anomalous: Counts, *, low: int, high: int) -> Table:
    """Return the table of single values."""
    widths = np.zeros(starts.size, dtype=np.uint8)
    return Table(starts=starts, widths=widths, normal=normal, anomalous=anomalous, low=low, high=high)


def sum_tables(parts: Sequence[Table], *, low: int, high: int) -> Table:
    """Return the sum of tables, at least one, of which any two bins are the same or disjoint; any may be empty."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("starts", "widths", "normal", "anomalous")
    }
    starts, first, sums = np.unique(joined["starts"], return_index=True, return_inverse=True)
    normal, anomalous = (np.zeros(starts.size, dtype=np.int64) for _ in range(2))
    np.add.at(normal, sums, joined["normal"])
    np.add.at(anomalous, sums, joined["anomalous"])
    return Table(starts=starts, widths=joined["widths"][first], normal=normal, anomalous=anomalous, low=low, high=high)
