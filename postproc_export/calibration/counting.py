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
    float_values,
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


def pick(values: Floats, flags: Flags) -> Floats:
    """Return the flagged values: by their numbers where they are few, which is twice as fast, else by the flags."""
    return values[np.flatnonzero(flags) if np.count_nonzero(flags) < flags.size >> 3 else flags]


COARSE_WIDTH: Final = 16
BUCKETS: Final = 1 << 16
_NEGATIVE_ZERO_BUCKET: Final = 1 << 15  # of the raw bits
FEW: Final = 8  # edges between buckets up to which comparing is faster than counting in a table
_WAITING: Final = 1 << 17
_PARTS: Final = 256
_DENSE: Final = 0.2  # share of all values from which on a run of bins is not picked out first
_FLUSH: Final = 1 << 20  # cells are gathered up to this many before they are counted at once


def _to_ordered(raw_counts: NDArray[Any]) -> NDArray[Any]:
    """Reorder a table over raw upper halves so that it ascends with the value; shape (65536,)."""
    half = BUCKETS // 2
    return np.concatenate((raw_counts[half:][::-1], raw_counts[:half]))


def _raw_numbers(ordered: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where buckets stand in a table over raw upper halves, from their numbers in the order of the values."""
    half = BUCKETS // 2
    return np.where(ordered < half, BUCKETS - 1 - ordered, ordered - half)


class _Gathered:
    """A large table of counts that is fed small arrays, gathered until counting them is worth it."""

    def __init__(self, size: int, count: Callable[[NDArray[Any]], Counts] = np.bincount) -> None:
        self._counts = np.zeros(size, dtype=np.int64)
        self._count = count
        self._limit = min(max(size, _WAITING), _FLUSH)
        self._waiting: list[NDArray[Any]] = []
        self._held = 0

    def add(self, numbers: NDArray[Any]) -> None:
        self._waiting.append(numbers)
        self._held += numbers.size
        if self._held >= self._limit or len(self._waiting) >= _PARTS:
            self.counts()

    def counts(self) -> Counts:
        """Return the table of all that was added."""
        if self._held:
            found = self._count(np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0])
            self._counts[: found.size] += found
        self._waiting, self._held = [], 0
        return self._counts


class CoarseHistogram:
    """Counts of both classes in buckets of 2^16 keys."""

    def __init__(self) -> None:
        self._all = np.zeros(BUCKETS, dtype=np.int64)
        self._anomalous = _Gathered(BUCKETS, _bucket_counts)  # few in most chunks, so they are counted together

    def __getstate__(self) -> tuple[Indices, Counts]:
        """Return the buckets that were met, which is all that travels between processes."""
        counts = np.stack([self._all, self._anomalous.counts()])
        used = np.flatnonzero(counts.any(axis=0))
        return used.astype(np.uint16), counts[:, used]

    def __setstate__(self, state: tuple[Indices, Counts]) -> None:
        self.__init__()  # type: ignore[misc]
        used, counts = state
        self._all[used], self._anomalous.counts()[used] = counts

    def add(self, values: Floats, truth: Truth, *, low: float, high: float) -> None:
        """Count finite values whose lowest and highest are known."""
        first, last = key_of(low) >> COARSE_WIDTH, key_of(high) >> COARSE_WIDTH
        if last - first > FEW:
            self._all += _bucket_counts(values)
        else:  # one comparison with the lowest value of each bucket but the first costs less than a table
            ordered = np.arange(first, last + 1)
            edges = float_values((ordered[1:] << COARSE_WIDTH).astype(np.uint32))
            at_least = np.array([values.size, *(np.count_nonzero(values >= edge) for edge in edges), 0], np.int64)
            self._all[_raw_numbers(ordered)] += at_least[:-1] - at_least[1:]
        if truth is not None:
            self._anomalous.add(pick(values, truth))

    def merge(self, other: "CoarseHistogram") -> None:
        """Add the counts of another histogram."""
        self._all += other._all
        anomalous = self._anomalous.counts()
        anomalous += other._anomalous.counts()

    def table(self, *, low: int, high: int) -> Table:
        """Return the counts as a table of bins 2^16 keys wide, with the keys of the lowest and highest value."""
        everything, anomalous = _to_ordered(self._all), _to_ordered(self._anomalous.counts())
        return coarse_pass(low, high).table(everything - anomalous, anomalous)


def _bucket_counts(values: Floats) -> Counts:
    """Count values by the upper half of their bits, -0.0 as 0.0; looks for it only where its bucket was met."""
    upper = values.view(np.uint16)[1::2]  # 16 bits of each raw pattern: a strided view, not a copy
    counts = np.bincount(upper, minlength=BUCKETS)
    if counts[_NEGATIVE_ZERO_BUCKET]:
        zeros = np.count_nonzero(is_negative_zero(values))
        counts[_NEGATIVE_ZERO_BUCKET] -= zeros
        counts[0] += zeros
    return counts


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
    holds_most: bool = False  # so that counting the other values, too, costs less than leaving them out

    @classmethod
    def of(cls, table: Table, chosen: Indices, *, bits: int) -> "Divide":
        """Return the pass over chosen bins of a table, ascending and equally wide."""
        width = int(table.widths[chosen[0]])
        assert (table.widths[chosen] == width).all(), "the chosen bins are equally wide"
        held = int(table.normal[chosen].sum() + table.anomalous[chosen].sum())
        return cls(
            starts=table.starts[chosen],
            width=width,
            bits=bits,
            low=table.low,
            high=table.high,
            is_run=chosen.size == chosen[-1] - chosen[0] + 1,
            holds_most=held > (table.n_normal + table.n_anomalous) * _DENSE,
        )

    def run(self, part: Part) -> Table:
        """Return the finer bins of a part; the non-empty ones only."""
        locator, none = Locator(self), np.zeros(0, dtype=np.uint32)
        if not self.bits:
            parts = [(none, none), *(locator.select(*each) for each in part.rounded())]
            everything, anomalous = (np.concatenate(keys) for keys in zip(*parts, strict=True))
            return table_of_keys(everything, anomalous, low=self.low, high=self.high)
        size = locator.starts.size << self.bits
        cells, anomalous_cells = (_Gathered(size + 1) for _ in range(2))
        for values, truth in part.rounded():
            if locator.is_run and self.holds_most:
                cells.add(locator.clipped_cells(values))
                anomalous_cells.add(locator.clipped_cells(values[:0] if truth is None else pick(values, truth)))
                continue
            keys, anomalous_keys = locator.select(values, truth)
            cells.add(locator.cells(keys))
            anomalous_cells.add(locator.cells(anomalous_keys))
        normal, anomalous = cells.counts()[:size], anomalous_cells.counts()[:size]
        normal -= anomalous
        return self.table(normal, anomalous, starts=locator.starts)

    def add(self, answers: Sequence[Table]) -> Table:
        """Return the finer bins of parts together: collected values are few, cells are added where they stand."""
        if not self.bits:
            return sum_tables(answers, low=self.low, high=self.high)
        counts = self.dense(answers[0])
        for answer in answers[1:]:
            counts += self.dense(answer)
        return self.table(*counts)

    def dense(self, finer: Table) -> Counts:
        """Return int64 counts of shape (2, n 2^bits), normal and anomalous, of a table with these cells as bins."""
        bins = np.searchsorted(self.starts, finer.starts, side="right") - 1
        within = (finer.starts - self.starts[bins]) >> np.uint32(self.width - self.bits)
        cells = (bins << self.bits) | within.astype(np.intp)
        counts = np.zeros((2, self.starts.size << self.bits), dtype=np.int64)
        counts[0, cells], counts[1, cells] = finer.normal, finer.anomalous
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


Values = Callable[[Divide | Extremes], Any]
"""All values of one level, wherever they are, counted again as often as asked: returns the answer of a pass."""


_ZERO: Final = key_of(0.0)


class Locator:
    """Finds the chosen bin of a value, and its cell there; the bins are 16 or 8 bits wide.

    Bins that follow each other in the table have nothing but empty ones between them, so arithmetic finds them; else a
    table of two levels does.
    """

    def __init__(self, divide: Divide) -> None:
        self._width, self._bits = divide.width, divide.bits
        self._first, last = int(divide.starts[0]), int(divide.starts[-1])
        end = last + (1 << self._width) - 1
        self._low = value_of(self._first)
        self._high = value_of(end - 1 if end == _ZERO - 1 else end)  # that key is -0.0, which 0.0 would not exceed
        span = (last - self._first >> self._width) + 1
        self.is_run = divide.is_run and span <= 2 * divide.starts.size  # whether `clipped_cells` can tell
        self.starts = divide.starts
        if self.is_run:
            self.starts = (self._first + (np.arange(span) << self._width)).astype(np.uint32)
            return
        pages, page_of_bin = np.unique((self.starts >> np.uint32(16)).astype(np.intp), return_inverse=True)
        self._pages = np.zeros(BUCKETS, dtype=np.int32)
        self._pages[pages] = np.arange(1, pages.size + 1)
        self._slots = np.full((pages.size + 1, 1 << (16 - self._width)), -1, dtype=np.int32)
        self._slots[page_of_bin + 1, self._cell_in_page(self.starts)] = np.arange(self.starts.size)

    def _cell_in_page(self, keys: Keys) -> Indices:
        return ((keys & np.uint32(0xFFFF)) >> np.uint32(self._width)).astype(np.intp)

    def select(self, values: Floats, truth: Truth) -> tuple[Keys, Keys]:
        """Return the keys of the values in chosen bins: of all of them, and of the anomalous ones among them."""
        near = (values >= self._low) & (values <= self._high)
        everything = self._inside(pick(values, near))
        if truth is None:
            return everything, np.zeros(0, dtype=np.uint32)
        return everything, self._inside(pick(values, near & truth))

    def _inside(self, values: Floats) -> Keys:
        keys = ordered_keys(merge_zeros(values))
        return keys if self.is_run else keys[np.flatnonzero(self._slots_of(keys) >= 0)]

    def _slots_of(self, keys: Keys) -> NDArray[np.int32]:
        slots: NDArray[np.int32] = self._slots[self._pages[keys >> np.uint32(16)], self._cell_in_page(keys)]
        return slots

    def clipped_cells(self, values: Floats) -> Keys:
        """Return the cell of each value, selected or not, of a run of bins; the cell after the last one for others."""
        if self._first > _ZERO:  # the bits of positive values are in order themselves; negative ones lie above all runs
            keys: Keys = values.view(np.uint32) - np.uint32(self._first - _ZERO)
        else:
            keys = ordered_keys(merge_zeros(values))
            keys -= np.uint32(self._first)  # what lies below wraps around to far above
        keys >>= np.uint32(self._width - self._bits)
        return np.minimum(keys, np.uint32(self.starts.size << self._bits), out=keys)

    def cells(self, keys: Keys) -> NDArray[np.integer[Any]]:
        """Return the cell of each selected key."""
        shift = np.uint32(self._width - self._bits)
        if self.is_run:
            return (keys - np.uint32(self._first)) >> shift
        return (self._slots_of(keys).astype(np.intp) << self._bits) | (
            (keys >> shift) & np.uint32((1 << self._bits) - 1)
        )


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
