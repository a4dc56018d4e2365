"""What the first pass over a level leaves, added exactly between parts, and who counts chosen bins again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.arrays import Block
from postproc_export.calibration.counting import (
    COARSE_WIDTH,
    Chunk,
    Clean,
    CoarseHistogram,
    Indices,
    collect_bins,
    counted_chunks,
    is_wide,
    sorted_table,
    split_bins,
    to_float32_array,
)
from postproc_export.calibration.table import Counts, Keys, Table

# --- What the first pass over a level leaves: the coarse histogram, the range, and the values while they are few.

SMALL: Final = 1 << 20  # up to so many values are kept and sorted: no second pass
_PARTS: Final = 1024


def joined(chunks: list[Chunk]) -> Chunk:
    """Return one chunk of all values; what has no ground truth counts as normal."""
    truths = [np.zeros(chunk.values.size, np.bool_) if chunk.truth is None else chunk.truth for chunk in chunks]
    return Chunk(np.concatenate([chunk.values for chunk in chunks]), np.concatenate(truths))


@dataclass(frozen=True, slots=True)
class Counted:
    """What the first pass over all values of a level counted, wherever they were counted."""

    table: Table  # at least one value; one bin per distinct value where `is_exact`, else bins 2^16 keys wide
    is_exact: bool  # whether the values were few enough to be sorted: `SMALL` at most
    is_wide: bool  # whether some came in a type that holds more than float32 does
    dropped: int  # values left out because they were not finite

    @property
    def seen(self) -> int:
        """All values that were counted."""
        return self.table.n_normal + self.table.n_anomalous


class Tally:
    """Exact counts of one level in constant memory; tallies of disjoint data merge exactly."""

    def __init__(self) -> None:
        self._histogram = CoarseHistogram()
        self._kept: list[Chunk] | None = []
        self.seen = 0
        self.dropped = 0
        self.is_wide = False

    def add(self, clean: Clean) -> None:
        """Count one checked chunk."""
        self.dropped += clean.dropped
        self.is_wide |= clean.is_wide
        if clean.chunk.values.size:
            self._histogram.add(clean.chunk, low=clean.low, high=clean.high)
            self._keep([clean.chunk], clean.chunk.values.size)

    def merge(self, other: "Tally") -> None:
        """Add what another tally counted."""
        self._histogram.merge(other._histogram)
        self.dropped += other.dropped
        self.is_wide |= other.is_wide
        self._keep(other._kept, other.seen)

    def _keep(self, chunks: list[Chunk] | None, size: int) -> None:
        self.seen += size
        if self._kept is None or chunks is None or self.seen > SMALL:
            self._kept = None
            return
        for chunk in chunks:  # copies: the caller may reuse its arrays
            self._kept.append(Chunk(chunk.values.copy(), None if chunk.truth is None else chunk.truth.copy()))
        if len(self._kept) > _PARTS:
            self._kept = [joined(self._kept)]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value; (inf, -inf) where there is none."""
        return self._histogram.low, self._histogram.high

    def coarse_table(self) -> Table:
        """Return the counts in bins 2^16 keys wide; there must be at least one value."""
        return self._histogram.table()

    def counted(self) -> Counted:
        """Return the counts: one bin per distinct value where all are here, else bins 2^16 keys wide.

        There must be at least one value.
        """
        is_exact = self._kept is not None
        table = self._histogram.table() if self._kept is None else sorted_table(self._kept)
        return Counted(table, is_exact=is_exact, is_wide=self.is_wide, dropped=self.dropped)


# --- Adding the tables of parts exactly: as they are, or as dense arrays of one shape that an all-reduce can add.


def sum_tables(parts: Sequence[Table], *, low: int, high: int) -> Table:
    """Return the sum of tables of which any two bins are the same or disjoint."""
    starts, first, sums = np.unique(_joined([part.starts for part in parts]), return_index=True, return_inverse=True)
    normal, anomalous = (np.zeros(starts.size, dtype=np.int64) for _ in range(2))
    np.add.at(normal, sums, _joined([part.normal for part in parts]))
    np.add.at(anomalous, sums, _joined([part.anomalous for part in parts]))
    return Table(
        starts=starts.astype(np.uint32),
        widths=_joined([part.widths for part in parts])[first].astype(np.uint8),
        normal=normal,
        anomalous=anomalous,
        low=low,
        high=high,
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)


def empty_table(*, low: int, high: int) -> Table:
    """Return a table without bins: what a part without values counts."""
    none = np.zeros(0, dtype=np.int64)
    widths, starts = none.astype(np.uint8), none.astype(np.uint32)
    return Table(starts=starts, widths=widths, normal=none, anomalous=none, low=low, high=high)


@dataclass(frozen=True, slots=True)
class BinGrid:
    """Bins of one width, each divided into 2^bits cells: where tables of that kind have equal dense forms."""

    starts: Keys  # uint32, shape (n,), ascending: the lowest ordered key of each bin
    width: int  # a bin covers 2^width keys and 2^bits cells
    bits: int

    @classmethod
    def of(cls, table: Table, chosen: Indices, *, bits: int) -> "BinGrid":
        """Return the grid of chosen bins of a table, which are equally wide."""
        return cls(table.starts[chosen], int(table.widths[chosen[0]]), bits)

    def dense(self, finer: Table) -> Counts:
        """Return int64 counts of shape (2, n 2^bits), normal and anomalous, of a table with these cells as bins."""
        bins = np.searchsorted(self.starts, finer.starts, side="right") - 1
        within = (finer.starts - self.starts[bins]) >> np.uint32(self.width - self.bits)
        cells = (bins << self.bits) | within.astype(np.intp)
        counts = np.zeros((2, self.starts.size << self.bits), dtype=np.int64)
        counts[0, cells], counts[1, cells] = finer.normal, finer.anomalous
        return counts

    def table(self, counts: Counts, *, low: int, high: int) -> Table:
        """Return the table of the cells that are not empty: the inverse of `dense`."""
        used = np.flatnonzero(counts.any(axis=0))
        within = (used & ((1 << self.bits) - 1)).astype(np.uint32) << np.uint32(self.width - self.bits)
        return Table(
            starts=self.starts[used >> self.bits] + within,
            widths=np.full(used.size, self.width - self.bits, dtype=np.uint8),
            normal=counts[0, used],
            anomalous=counts[1, used],
            low=low,
            high=high,
        )


COARSE_GRID: Final = BinGrid(np.zeros(1, dtype=np.uint32), 32, 32 - COARSE_WIDTH)
"""The one bin of all keys, in the cells of the first pass."""


# --- Where the values of a level are, seen from the engine: whoever counts chosen bins again can be calibrated on.

Blocks = Callable[[], Iterator[Block]]


class Values(Protocol):
    """All values of one level, wherever they are, counted again as often as asked.

    The answers depend on the values alone, not on where they are or in which order: `sum_tables` and `BinGrid` add the
    tables of parts exactly, and every route then gives the same bits.
    """

    def split(self, table: Table, chosen: Indices, *, bits: int) -> Table:
        """Return the chosen bins (ascending, equally wide), each divided into 2^bits; the non-empty ones only."""
        ...

    def collect(self, table: Table, chosen: Indices) -> Table:
        """Return the chosen bins, which hold few values together, with one bin per distinct value."""
        ...

    def extremes_at(self, threshold: np.float32) -> tuple[float, float]:
        """Return the lowest and highest wide value that rounds to the threshold; (inf, -inf) where there is none."""
        ...


class ReadValues:
    """Values that this process reads, block by block."""

    def __init__(self, read: Blocks) -> None:
        self._read = read

    def split(self, table: Table, chosen: Indices, *, bits: int) -> Table:
        """Return the chosen bins divided; one pass."""
        return split_bins(counted_chunks(self._read()), table, chosen, bits=bits)

    def collect(self, table: Table, chosen: Indices) -> Table:
        """Return the distinct values of the chosen bins; one pass."""
        return collect_bins(counted_chunks(self._read()), table, chosen)

    def extremes_at(self, threshold: np.float32) -> tuple[float, float]:
        """Return the extremes among the values whose type holds more than float32; one pass."""
        low, high = float("inf"), float("-inf")
        for block in self._read():
            if is_wide(block.values.dtype):
                merged = block.values[to_float32_array(block.values) == threshold]
                if merged.size:
                    low, high = min(low, merged.min().item()), max(high, merged.max().item())
        return low, high
