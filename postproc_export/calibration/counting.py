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

    NumPy looks for the set ones one after the other where they are a tenth at most, and counts along else. It is twice
    as fast at a few percent to look for words of eight flags first, and at some more to add set ones behind the others.
    """
    found = int(np.count_nonzero(flags))
    if found <= flags.size >> 4:
        whole = flags.size & ~7
        words = flags[:whole].view(np.uint64)
        used = np.flatnonzero(words != 0) if found <= flags.size >> 10 else places_of(words != 0)
        within = np.flatnonzero(words[used].view(np.bool_))
        return np.concatenate(((used[within >> 3] << 3) | (within & 7), np.flatnonzero(flags[whole:]) + whole))
    if found <= flags.size // 10:
        flags = np.concatenate((flags, np.ones(flags.size >> 3, dtype=np.bool_)))
    return np.flatnonzero(flags)[:found]


COARSE_WIDTH: Final = 16
BUCKETS: Final = 1 << 16
_NEGATIVE_ZERO_BUCKET: Final = 1 << 15  # of the raw bits
_ZERO: Final = key_of(0.0)
FEW: Final = 8  # buckets up to which every key of theirs is counted at once: there is no second pass over these values
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


class Scratch:
    """Memory for the cells of one run of values after the other: fresh memory would cost as much as counting does."""

    def __init__(self) -> None:
        self._held = np.empty(0, dtype=np.intp)

    def indices(self, cells: NDArray[np.integer[Any]]) -> Indices:
        """Return cells as indices, until the next call."""
        if self._held.size < cells.size:
            self._held = np.empty(cells.size, dtype=np.intp)
        held = self._held[: cells.size]
        held[:] = cells
        return held


def add_at(counts: NDArray[Any], cells: Indices) -> None:
    """Add 1 to the counts of cells, however often each is there; few of them take no table as of `np.bincount`."""
    np.add.at(counts, cells, counts.dtype.type(1))  # of another type than the counts it takes fifty times as long


def count_cells(counts: Counts, cells: Keys, truth: Truth, scratch: Scratch) -> None:
    """Add to the counts of cells, shape (2, n), of all values and of the anomalous ones."""
    held = scratch.indices(cells)
    add_at(counts[0], held)
    if truth is not None:
        add_at(counts[1], held[places_of(truth)])


class CoarseHistogram:
    """Counts of both classes in buckets of 2^16 keys; while all values lie in few buckets, of every key of these."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, BUCKETS), dtype=np.int64)  # of normal and of anomalous values
        self._few: range | None = range(0)  # the buckets whose keys are counted instead; None: too many were met
        self._keys = np.zeros((2, 0), dtype=np.int64)  # of all values, and of the anomalous ones
        self._scratch = Scratch()

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
        if few is None:
            self._count_buckets(values, truth)
        else:
            count_cells(self._keys, keys_from(few.start << COARSE_WIDTH, values), truth, self._scratch)

    def _count_buckets(self, values: Floats, truth: Truth) -> None:
        """Count values by the upper half of their bits, -0.0 as 0.0; looks for it only where its bucket was met.

        Both classes at once: that takes less than to pick out the anomalous ones.
        """
        counts, cells = self._counts, self._scratch.indices(values.view(np.uint16)[1::2])
        before = counts[:, _NEGATIVE_ZERO_BUCKET].tolist()
        if truth is not None and truth.any():
            cells.view(np.uint8)[2 :: cells.itemsize] = truth.view(np.uint8)  # 2^16 more, which is the other row
        add_at(counts.reshape(-1), cells)
        if counts[:, _NEGATIVE_ZERO_BUCKET].tolist() != before:
            at = np.flatnonzero(is_negative_zero(values))
            anomalous = 0 if truth is None else int(np.count_nonzero(truth[at]))
            for row, zeros in zip(counts, (at.size - anomalous, anomalous), strict=True):
                row[_NEGATIVE_ZERO_BUCKET] -= zeros
                row[0] += zeros

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
        """Return the counts of all buckets, of normal and of anomalous values, in the order of their raw bits."""
        if not self._few:
            return self._counts
        counts = np.zeros((2, BUCKETS), dtype=np.int64)
        counts[:, _raw_numbers(np.array(self._few))] = self._keys.reshape(2, len(self._few), -1).sum(axis=2)
        counts[0] -= counts[1]
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
        return coarse_pass(low, high).table(*map(_to_ordered, self._bucket_counts()))

    def exact_table(self, *, low: int, high: int) -> Table | None:
        """Return one bin per distinct value; None where the keys were not counted."""
        if not self._few:
            return None
        return _table_from(self._few.start << COARSE_WIDTH, self._keys, low=low, high=high)


def _within(few: range, wide: range) -> slice:
    """Return where the keys of some buckets stand among those of more."""
    return slice(few.start - wide.start << COARSE_WIDTH, few.stop - wide.start << COARSE_WIDTH)


def keys_from(first: int, values: Floats) -> Keys:
    """Return how far the keys of values lie above a first key; of values below it that is more than of any other."""
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
        locator = Locator(self)
        if not self.bits:
            parts = [(np.zeros(0, dtype=np.uint32),) * 2, *(locator.keys(*each) for each in window.values())]
            return table_of_keys(*map(np.concatenate, zip(*parts, strict=True)), low=self.low, high=self.high)
        size = locator.starts.size << self.bits
        counts = np.zeros((2, size + 1), dtype=np.int64)  # the last cell is that of values in none of the bins
        scratch = Scratch()
        for values, truth in window.values():
            cells = locator.cells(values)
            count_cells(counts, np.minimum(cells, np.uint32(size), out=cells), truth, scratch)
        counts[0] -= counts[1]
        counts[:, :size].reshape(2, -1, 1 << self.bits)[:, ~locator.is_chosen] = 0
        return self.table(*counts[:, :size], starts=locator.starts)

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

    Where most of the bins between two of them are chosen, arithmetic finds them; else a table of pages of 2^16 keys
    does, and for narrower bins a second one.
    """

    def __init__(self, divide: Divide) -> None:
        self._width, self._bits = np.uint32(divide.width), np.uint32(divide.bits)
        self._first, last = divide.starts[0], divide.starts[-1]
        span = int((last - self._first) >> self._width) + 1
        self.starts = divide.starts
        self.is_chosen = np.ones(self.starts.size, dtype=np.bool_)  # of the bins whose starts these are
        self._is_dense = span <= 2 * divide.starts.size
        if self._is_dense:
            self.starts = self._first + (np.arange(span, dtype=np.uint32) << self._width)
            self.is_chosen = np.isin(self.starts, divide.starts, assume_unique=True)
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

    def cells(self, values: Floats) -> Keys:
        """Return the cells of values, from the lowest of the first bin on; beyond all cells where there is none."""
        shift = self._width - self._bits
        if self._is_dense:
            return keys_from(int(self._first), values) >> shift
        keys = ordered_keys(merge_zeros(values))
        numbers = self._pages[keys >> np.uint32(16)]
        if self._width < COARSE_WIDTH:
            numbers = self._numbers[numbers, self._within_page(keys)]
        cells: Keys = (numbers << self._bits) | ((keys >> shift) & np.uint32((1 << self._bits) - 1))
        return cells

    def keys(self, values: Floats, truth: Truth) -> tuple[Keys, Keys]:
        """Return the keys of values in chosen bins, which are not divided, and of the anomalous ones among them."""
        numbers = self.cells(values)
        at = places_of(numbers < self.starts.size)
        if not self.is_chosen.all():
            at = at[self.is_chosen[numbers[at]]]
        keys = ordered_keys(merge_zeros(values[at]))
        return keys, keys[:0] if truth is None else keys[truth[at]]


_DENSE: Final = 1 << 21  # keys that are counted where they stand at most, of each class,
_SPREAD: Final = 16  # and for each value: to sort the values takes longer


def table_of_keys(everything: Keys, anomalous: Keys, *, low: int, high: int) -> Table:
    """Return the table of unsorted keys, one bin per distinct key; the anomalous ones are among them."""
    first = everything.min(initial=_NOWHERE)
    span = int(everything.max(initial=0)) - int(first) + 1
    if 0 < span <= min(_SPREAD * everything.size, _DENSE):
        found = np.zeros((2, span), dtype=np.int32)
        for row, keys in zip(found, (everything, anomalous), strict=True):
            add_at(row, (keys - first).astype(np.intp))
        return _table_from(int(first), found, low=low, high=high)
    starts, counts = np.unique(everything, return_counts=True)
    anomalous_counts = np.zeros(starts.size, dtype=np.int64)
    some, some_counts = np.unique(anomalous, return_counts=True)
    anomalous_counts[np.searchsorted(starts, some)] = some_counts
    return exact_table(starts, counts - anomalous_counts, anomalous_counts, low=low, high=high)


def _table_from(first: int, counts: NDArray[np.integer[Any]], *, low: int, high: int) -> Table:
    """Return the table of the keys from a first one on; shape (2, n), of all values and of the anomalous ones."""
    used = np.flatnonzero(counts[0] != 0)
    everything, anomalous = (row[used].astype(np.int64, copy=False) for row in counts)
    return exact_table((used + first).astype(np.uint32), everything - anomalous, anomalous, low=low, high=high)


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
