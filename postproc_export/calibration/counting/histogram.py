"""Counting passes: the coarse table of the first, and finer tables or sorted values of chosen bins in later ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.locator import Chunk, Indices, Locator, pick
from postproc_export.calibration.counting.ordered import (
    BUCKETS,
    NEGATIVE_ZERO_BUCKET,
    Counts,
    Floats,
    Keys,
    float_values,
    is_negative_zero,
    key_of,
    merge_zeros,
    ordered_keys,
    raw_buckets,
    raw_numbers,
    to_ordered_buckets,
)
from postproc_export.calibration.counting.table import Table

COARSE_WIDTH: Final = 16
_FEW: Final = 8  # edges between buckets up to which comparing is faster than counting in a table
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
    if last - first > _FEW:
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
    """Count the chosen bins of a table anew, each divided into 2^bits; one pass.

    Parameters
    ----------
    chunks
        The values of the level, all of them.
    table, chosen
        The table and the indices of its bins to divide; ascending, equally wide.
    bits
        8, or 16 for bins of that width.

    Returns
    -------
    Table
        The non-empty finer bins only.
    """
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
