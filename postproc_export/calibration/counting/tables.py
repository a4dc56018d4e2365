"""Adding the tables of parts exactly: as they are, or as dense arrays of one shape that an all-reduce can add."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.histogram import COARSE_WIDTH
from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.ordered import Counts, Keys
from postproc_export.calibration.counting.table import Table


def sum_tables(parts: Sequence[Table], *, low: int, high: int) -> Table:
    """Return the sum of tables of which any two bins are the same or disjoint.

    Parameters
    ----------
    parts
        Tables over disjoint data; any of them may be empty, so may all.
    low, high
        Ordered keys of the lowest and the highest value of the whole.
    """
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
class Grid:
    """Bins of one width, each divided into 2^bits cells: where tables of that kind have equal dense forms.

    Parameters
    ----------
    starts
        uint32, shape (n,), ascending: the lowest ordered key of each bin.
    width, bits
        A bin covers 2^width keys and 2^bits cells.
    """

    starts: Keys
    width: int
    bits: int

    @classmethod
    def of(cls, table: Table, chosen: Indices, *, bits: int) -> "Grid":
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


COARSE_GRID: Final = Grid(np.zeros(1, dtype=np.uint32), 32, 32 - COARSE_WIDTH)
"""The one bin of all keys, in the cells of the first pass."""
