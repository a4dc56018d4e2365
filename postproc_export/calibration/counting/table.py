"""The table of a calibration: exact counts of both classes in disjoint ranges of ordered float32 values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.ordered import Counts, Flags, Floats, Keys, float_values


@dataclass(frozen=True, kw_only=True)
class Table:
    """Counts per bin; the bins are disjoint, ascending, and every value seen lies in one of them.

    Parameters
    ----------
    starts
        uint32, shape (n,), ascending: the lowest ordered key of each bin.
    widths
        uint8, shape (n,): a bin covers 2^width keys; at 0 it is one float32 value.
    normal, anomalous
        int64, shape (n,): values of each class in the bin, at least one together.
    low, high
        Ordered keys of the lowest and the highest value seen.
    """

    starts: Keys
    widths: NDArray[np.uint8]
    normal: Counts
    anomalous: Counts
    low: int
    high: int

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def tp(self) -> Counts:
        """Anomalous values at or above each bin's lowest value: the true positives of a threshold there."""
        return _from_the_top(self.anomalous)

    @cached_property
    def fp(self) -> Counts:
        """Normal values at or above each bin's lowest value: the false positives of a threshold there."""
        return _from_the_top(self.normal)

    @property
    def tp_above(self) -> Counts:
        """Anomalous values above the whole bin."""
        above: Counts = self.tp - self.anomalous
        return above

    @property
    def fp_above(self) -> Counts:
        """Normal values above the whole bin."""
        above: Counts = self.fp - self.normal
        return above

    @property
    def is_open(self) -> Flags:
        """Bins that may hold more than one value."""
        return self.widths > 0

    @cached_property
    def n_normal(self) -> int:
        """All normal values."""
        return int(self.normal.sum())

    @cached_property
    def n_anomalous(self) -> int:
        """All anomalous values."""
        return int(self.anomalous.sum())

    @property
    def ends(self) -> NDArray[np.uint64]:
        """The first key after each bin, uint64 since the last may be 2^32."""
        return self.starts.astype(np.uint64) + (np.uint64(1) << self.widths.astype(np.uint64))

    def values(self) -> Floats:
        """Return the float32 value of each bin's lowest key, not below the lowest value seen."""
        return float_values(np.maximum(self.starts, np.uint32(self.low)))

    def replace(self, chosen: NDArray[np.intp], finer: Self) -> "Table":
        """Return a table in which the chosen bins give way to the finer bins that they were split into."""
        kept = np.ones(len(self), dtype=np.bool_)
        kept[chosen] = False
        starts = np.concatenate((self.starts[kept], finer.starts))
        order = np.argsort(starts, kind="stable")
        return Table(
            starts=starts[order],
            widths=np.concatenate((self.widths[kept], finer.widths))[order],
            normal=np.concatenate((self.normal[kept], finer.normal))[order],
            anomalous=np.concatenate((self.anomalous[kept], finer.anomalous))[order],
            low=self.low,
            high=self.high,
        )


def _from_the_top(counts: Counts) -> Counts:
    total: Counts = np.cumsum(counts[::-1])[::-1]
    return total
