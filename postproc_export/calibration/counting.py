"""Counting passes: raw blocks cleaned, counted coarsely first, then chosen bins counted again more finely."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.arrays import AnyArray, Block, Place
from postproc_export.calibration.table import (
    BUCKETS,
    NEGATIVE_ZERO_BUCKET,
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
    raw_buckets,
    raw_numbers,
    to_ordered_buckets,
    value_of,
)
from postproc_export.errors import CalibrationError

# --- Which of the values of a chunk lie in chosen bins of a table.

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A flat run of values of one level: float32, rounded, finite unless the pass drops others, any zero."""

    values: Floats  # float32, shape (n,), contiguous
    # bool, shape (n,), True is anomalous; None where no ground truth was given (all count as normal)
    truth: Flags | None


_ZERO: Final = key_of(0.0)


def pick(values: Floats, flags: Flags) -> Floats:
    """Return the flagged values: by their numbers where they are few, which is twice as fast, else by the flags."""
    return values[np.flatnonzero(flags) if np.count_nonzero(flags) < flags.size >> 3 else flags]


class Locator:
    """Finds the chosen bin of a key; the bins are equally wide, 16 or 8 bits.

    Bins that follow each other in the table have nothing but empty ones between them, so arithmetic finds them; else a
    table of two levels does.
    """

    def __init__(self, table: Table, chosen: Indices) -> None:
        starts, self._width = table.starts[chosen], int(table.widths[chosen[0]])
        assert (table.widths[chosen] == self._width).all(), "the chosen bins are equally wide"
        self._first, last = int(starts[0]), int(starts[-1])
        end = last + (1 << self._width) - 1
        self._low = value_of(self._first)
        self._high = value_of(
            end - 1 if end == key_of(0.0) - 1 else end
        )  # that key is -0.0, which 0.0 would not exceed
        span = (last - self._first >> self._width) + 1
        self._is_run = chosen.size == chosen[-1] - chosen[0] + 1 and span <= 2 * chosen.size
        self.starts = starts
        if self._is_run:
            self.starts = (self._first + (np.arange(span) << self._width)).astype(np.uint32)
        else:
            self._build_pages(starts)

    def _build_pages(self, starts: Keys) -> None:
        pages, page_of_bin = np.unique((starts >> np.uint32(16)).astype(np.intp), return_inverse=True)
        self._pages = np.zeros(BUCKETS, dtype=np.int32)
        self._pages[pages] = np.arange(1, pages.size + 1)
        self._slots = np.full((pages.size + 1, 1 << (16 - self._width)), -1, dtype=np.int32)
        self._slots[page_of_bin + 1, self._cell_in_page(starts)] = np.arange(starts.size)

    def _cell_in_page(self, keys: Keys) -> Indices:
        return ((keys & np.uint32(0xFFFF)) >> np.uint32(self._width)).astype(np.intp)

    def select(self, chunk: Chunk) -> tuple[Keys, Keys]:
        """Return the keys of the chunk's values in chosen bins: of all values, and of the anomalous ones among them."""
        near = (chunk.values >= self._low) & (chunk.values <= self._high)
        everything = self._inside(pick(chunk.values, near))
        if chunk.truth is None:
            return everything, np.zeros(0, dtype=np.uint32)
        return everything, self._inside(pick(chunk.values, near & chunk.truth))

    def _inside(self, values: Floats) -> Keys:
        keys = ordered_keys(merge_zeros(values))
        return keys if self._is_run else keys[np.flatnonzero(self._slots_of(keys) >= 0)]

    def _slots_of(self, keys: Keys) -> NDArray[np.int32]:
        slots: NDArray[np.int32] = self._slots[self._pages[keys >> np.uint32(16)], self._cell_in_page(keys)]
        return slots

    @property
    def is_run(self) -> bool:
        """Whether `clipped_cells` can tell: the bins follow each other."""
        return self._is_run

    def clipped_cells(self, values: Floats, *, bits: int) -> Keys:
        """Return the cell of each value, selected or not, of a run of bins; the cell after the last one for others."""
        if self._first > _ZERO:  # the bits of positive values are in order themselves; negative ones lie above all runs
            keys: Keys = values.view(np.uint32) - np.uint32(self._first - _ZERO)
        else:
            keys = ordered_keys(merge_zeros(values))
            keys -= np.uint32(self._first)  # what lies below wraps around to far above
        keys >>= np.uint32(self._width - bits)
        return np.minimum(keys, np.uint32(self.starts.size << bits), out=keys)

    def cells(self, keys: Keys, *, bits: int) -> NDArray[np.integer[Any]]:
        """Return the cell of each selected key, each bin of `starts` divided into 2^bits."""
        shift = np.uint32(self._width - bits)
        if self._is_run:
            return (keys - np.uint32(self._first)) >> shift
        return (self._slots_of(keys).astype(np.intp) << bits) | ((keys >> shift) & np.uint32((1 << bits) - 1))


# --- From raw blocks to chunks that can be counted: rounded to float32, checked, or refused with where and how many.

Nonfinite = Literal["error", "drop"]


@dataclass(slots=True)
class Clean:
    """A chunk with its range, the values before rounding, and how many were left out of both.

    `is_wide` says that rounding may have merged different values.
    """

    chunk: Chunk
    low: float
    high: float
    dropped: int
    original: AnyArray

    @property
    def is_wide(self) -> bool:
        """Whether the type holds more than float32 does."""
        return is_wide(self.original.dtype)


@dataclass(slots=True)
class Fault:
    """One kind of illegal element in one array: how many, the first one and where."""

    place: Place
    sentence: str
    needed: str
    fix: str | None
    truth: bool
    count: int = 0
    first: int = 0
    shown: object = field(default=None)

    @property
    def position(self) -> tuple[int, bool]:
        """Where the first one stands in its array; ground truth goes before the value beside it."""
        return self.place.rank(self.first), not self.truth

    def note(self, block: Block, bad: NDArray[np.intp]) -> None:
        """Count the illegal elements of a block, wherever it stands among those noted before."""
        elements = block.truth if self.truth and block.truth is not None else block.values
        ranks = block.place.ranks(block.start + bad)
        at = int(np.argmin(ranks))
        if not self.count or int(ranks[at]) < self.position[0]:
            self.place, self.first, self.shown = block.place, block.start + int(bad[at]), _shown(elements, bad[at])
        self.count += bad.size

    def merge(self, other: "Fault") -> None:
        """Add the illegal elements of another part of the same array."""
        if other.position < self.position:
            self.place, self.first, self.shown = other.place, other.first, other.shown
        self.count += other.count

    def error(self) -> CalibrationError:
        """Return the error that says how many there are, and which is the first."""
        total = "" if self.place.size is None else f" of {self.place.size}"
        at = self.place.at(self.first, truth=self.truth)
        found = f"{self.count}{total} values, the first is {self.shown} at {at}"
        return CalibrationError(f"{self.place.where}: {self.sentence}", found=found, needed=self.needed, fix=self.fix)


Faults = dict[str, Fault]


def _shown(elements: AnyArray, at: Any) -> object:
    return f"byte {elements.view(np.uint8)[at]}" if elements.dtype.kind == "b" else elements[at].item()


def first_fault(faults: Faults) -> Fault:
    """Return the fault with the first illegal element of an array, in whatever order it was read."""
    return min(faults.values(), key=lambda fault: fault.position)


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


def clean(blocks: Iterable[Block], *, nonfinite: Nonfinite) -> Iterator[Clean]:
    """Check and round the blocks of a first pass."""
    faults: Faults = {}
    yield from examine(blocks, faults, nonfinite=nonfinite)
    if faults:
        raise first_fault(faults).error()


def examine(blocks: Iterable[Block], faults: Faults, *, nonfinite: Nonfinite) -> Iterator[Clean]:
    """Check and round blocks as `clean` does, but leave what is illegal in `faults` for the caller to judge."""
    at: Place | None = None
    for block in blocks:
        if faults and block.place.array is not at:
            break
        at = block.place.array
        cleaned = _clean(block, nonfinite, faults)
        if cleaned is not None and not faults:
            yield cleaned


def _clean(block: Block, nonfinite: Nonfinite, faults: Faults) -> Clean | None:
    values = to_float32_array(block.values)
    if not values.size:
        return None
    truth = None if block.truth is None else as_flags(block.truth)
    if block.truth is not None and truth is None:
        _truth_fault(block, faults).note(block, np.flatnonzero(_is_illegal(block.truth)))
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return Clean(Chunk(values, truth), low, high, 0, block.values)
    finite = np.isfinite(values)
    if nonfinite == "error":
        _value_fault(block, faults).note(block, np.flatnonzero(~finite))
        return None
    kept, dropped = values[finite], int(values.size - finite.sum())
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
    chunk = Chunk(kept, None if truth is None else truth[finite])
    return Clean(chunk, low, high, dropped, block.values[finite])


def _is_illegal(truth: AnyArray) -> NDArray[np.bool_]:
    """Return which elements are neither 0 nor 1; booleans by their bytes, since every other byte compares as 1."""
    raw = truth.view(np.uint8) if truth.dtype.kind == "b" else truth
    return np.asarray((raw != 0) & (raw != 1))


def _truth_fault(block: Block, faults: Faults) -> Fault:
    place = block.place
    sentence = f"{place.truth_key} is not 0/1"
    return faults.setdefault(
        "truth", Fault(place, sentence, "0 (normal) or 1 (anomalous)", "compare it with 0 first", True)
    )


def _value_fault(block: Block, faults: Faults) -> Fault:
    place = block.place
    sentence = f"{place.key} has values that are not finite as float32"
    fix = 'correct the model, or leave such values out with nonfinite="drop" (`--nonfinite drop`)'
    return faults.setdefault("values", Fault(place, sentence, "finite values", fix, False))


def counted_chunks(blocks: Iterable[Block]) -> Iterator[Chunk]:
    """Round the blocks of a later pass: values were checked in the first one, and no bin includes what it dropped."""
    for block in blocks:
        truth = None if block.truth is None else as_flags(block.truth)
        if block.truth is not None and truth is None:
            raise CalibrationError(
                f"{block.place.where} changed between two passes over it", found="ground truth not 0/1"
            )
        yield Chunk(to_float32_array(block.values), truth)


# --- Counting passes: the coarse table of the first, and finer tables or sorted values of chosen bins in later ones.

COARSE_WIDTH: Final = 16
FEW: Final = 8  # edges between buckets up to which comparing is faster than counting in a table
_WAITING: Final = 1 << 17
_PARTS: Final = 256
_DENSE: Final = 0.2  # share of all values from which on a run of bins is not picked out first
_FLUSH: Final = 1 << 20  # cells are gathered up to this many before they are counted at once


class CoarseHistogram:
    """Counts of both classes over the upper 16 bits of the ordered values, and the range seen."""

    def __init__(self) -> None:
        self._all = np.zeros(BUCKETS, dtype=np.int64)
        self._anomalous = np.zeros(BUCKETS, dtype=np.int64)
        self._waiting: list[Floats] = []  # anomalous values, few in most chunks, that are counted together
        self._held = 0
        self.low: float = np.inf
        self.high: float = -np.inf

    def add(self, chunk: Chunk, *, low: float, high: float) -> None:
        """Count one chunk whose lowest and highest value are known."""
        edges = _inner_edges(low, high)
        if edges is None:
            self._all += _bucket_counts(chunk.values)
        else:
            self._all[edges.buckets] += edges.counts(chunk.values)
        if chunk.truth is not None:
            anomalous = pick(chunk.values, chunk.truth)
            self._waiting.append(anomalous)
            self._held += anomalous.size
            if self._held >= _WAITING or len(self._waiting) >= _PARTS:
                self._flush()
        self.low = min(self.low, low + 0.0)
        self.high = max(self.high, high + 0.0)

    def _flush(self) -> None:
        if self._held:
            self._anomalous += _bucket_counts(np.concatenate(self._waiting))
        self._waiting, self._held = [], 0

    def merge(self, other: "CoarseHistogram") -> None:
        """Add the counts of another histogram."""
        other._flush()
        self._all += other._all
        self._anomalous += other._anomalous
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    def table(self) -> Table:
        """Return the counts as a table of bins 2^16 keys wide."""
        self._flush()
        everything = to_ordered_buckets(self._all)
        used = np.flatnonzero(everything)
        anomalous = to_ordered_buckets(self._anomalous)[used]
        return Table(
            starts=(used << COARSE_WIDTH).astype(np.uint32),
            widths=np.full(used.size, COARSE_WIDTH, dtype=np.uint8),
            normal=everything[used] - anomalous,
            anomalous=anomalous,
            low=key_of(self.low),
            high=key_of(self.high),
        )


@dataclass(frozen=True, slots=True)
class _Edges:
    """Buckets that follow each other, and the lowest value of each but the first."""

    buckets: Indices
    lowest: Floats

    def counts(self, values: Floats) -> Counts:
        """Count values that all lie in these buckets: one comparison with each edge costs less than a table."""
        at_least = np.array([values.size, *(np.count_nonzero(values >= edge) for edge in self.lowest), 0], np.int64)
        counts: Counts = at_least[:-1] - at_least[1:]
        return counts


def _inner_edges(low: float, high: float) -> _Edges | None:
    """Return the buckets between two values, None where they are many."""
    first, last = key_of(low) >> COARSE_WIDTH, key_of(high) >> COARSE_WIDTH
    if last - first > FEW:
        return None
    ordered = np.arange(first, last + 1)
    return _Edges(raw_numbers(ordered), float_values((ordered[1:] << COARSE_WIDTH).astype(np.uint32)))


def _bucket_counts(values: Floats) -> Counts:
    """Count values by the upper half of their bits, -0.0 as 0.0; looks for it only where its bucket was met."""
    counts = np.bincount(raw_buckets(values), minlength=BUCKETS)
    if counts[NEGATIVE_ZERO_BUCKET]:
        zeros = np.count_nonzero(is_negative_zero(values))
        counts[NEGATIVE_ZERO_BUCKET] -= zeros
        counts[0] += zeros
    return counts


class _Cells:
    """A large table of counts that is fed small runs of cell numbers."""

    def __init__(self, size: int) -> None:
        self._counts = np.zeros(size, dtype=np.int64)
        self._limit = min(max(size, _WAITING), _FLUSH)
        self._waiting: list[NDArray[np.integer[Any]]] = []
        self._held = 0

    def add(self, cells: NDArray[np.integer[Any]]) -> None:
        self._waiting.append(cells)
        self._held += cells.size
        if self._held >= self._limit:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            found = np.bincount(np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0])
            self._counts[: found.size] += found
        self._waiting, self._held = [], 0

    def counts(self) -> Counts:
        """Return the table when all cell numbers are in."""
        self._flush()
        return self._counts


def split_bins(chunks: Iterable[Chunk], table: Table, chosen: Indices, *, bits: int) -> Table:
    """Count the chosen bins of a table anew, each divided into 2^bits; one pass."""
    locator, width = Locator(table, chosen), int(table.widths[chosen[0]])
    held = int(table.normal[chosen].sum() + table.anomalous[chosen].sum())
    is_dense = locator.is_run and held > (table.n_normal + table.n_anomalous) * _DENSE
    size = locator.starts.size << bits
    cells, anomalous_cells = (_Cells(size + 1) for _ in range(2))
    for chunk in chunks:
        if is_dense:  # counting the others, too, costs less than leaving them out
            cells.add(locator.clipped_cells(chunk.values, bits=bits))
            if chunk.truth is not None:
                anomalous_cells.add(locator.clipped_cells(pick(chunk.values, chunk.truth), bits=bits))
            continue
        keys, anomalous_keys = locator.select(chunk)
        cells.add(locator.cells(keys, bits=bits))
        anomalous_cells.add(locator.cells(anomalous_keys, bits=bits))
    everything, anomalous = cells.counts()[:size], anomalous_cells.counts()[:size]
    used = np.flatnonzero(everything)
    within = (used & ((1 << bits) - 1)).astype(np.uint32) << np.uint32(width - bits)
    return Table(
        starts=locator.starts[used >> bits] + within,
        widths=np.full(used.size, width - bits, dtype=np.uint8),
        normal=everything[used] - anomalous[used],
        anomalous=anomalous[used],
        low=table.low,
        high=table.high,
    )


def sorted_table(chunks: Iterable[Chunk]) -> Table:
    """Return the exact table of few values, one bin per distinct value; there must be at least one value."""
    everything, anomalous = [], [np.zeros(0, dtype=np.uint32)]
    for chunk in chunks:
        keys = ordered_keys(merge_zeros(chunk.values))
        everything.append(keys)
        if chunk.truth is not None:
            anomalous.append(keys[chunk.truth])
    keys = np.concatenate(everything)
    return table_of_keys(keys, np.concatenate(anomalous), low=int(keys.min()), high=int(keys.max()))


def collect_bins(chunks: Iterable[Chunk], table: Table, chosen: Indices) -> Table:
    """Gather and sort the values of the chosen bins, which must be few; one pass, one bin per distinct value."""
    locator, empty = Locator(table, chosen), np.zeros(0, dtype=np.uint32)
    parts = [(empty, empty), *(locator.select(chunk) for chunk in chunks)]
    everything, anomalous = (np.concatenate(keys) for keys in zip(*parts, strict=True))
    return table_of_keys(everything, anomalous, low=table.low, high=table.high)


def table_of_keys(everything: Keys, anomalous: Keys, *, low: int, high: int) -> Table:
    """Return the table of unsorted keys, one bin per distinct key; the anomalous ones are among them."""
    starts, counts = np.unique(everything, return_counts=True)
    anomalous_counts = np.zeros(starts.size, dtype=np.int64)
    found, found_counts = np.unique(anomalous, return_counts=True)
    anomalous_counts[np.searchsorted(starts, found)] = found_counts
    return Table(
        starts=starts,
        widths=np.zeros(starts.size, dtype=np.uint8),
        normal=counts - anomalous_counts,
        anomalous=anomalous_counts,
        low=low,
        high=high,
    )
