"""What the first pass over a level leaves: the coarse histogram, the range, and the values while they are few."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from postproc_export.calibration.counting.cleaning import Clean
from postproc_export.calibration.counting.histogram import CoarseHistogram, sorted_table
from postproc_export.calibration.counting.locator import Chunk
from postproc_export.calibration.counting.table import Table

SMALL: Final = 1 << 20  # up to so many values are kept and sorted: no second pass
_PARTS: Final = 1024


def joined(chunks: list[Chunk]) -> Chunk:
    """Return one chunk of all values; what has no ground truth counts as normal."""
    truths = [np.zeros(chunk.values.size, np.bool_) if chunk.truth is None else chunk.truth for chunk in chunks]
    return Chunk(np.concatenate([chunk.values for chunk in chunks]), np.concatenate(truths))


@dataclass(frozen=True, slots=True)
class Counted:
    """What the first pass over all values of a level counted, wherever they were counted.

    Parameters
    ----------
    table
        At least one value; one bin per distinct value where `is_exact`, else bins 2^16 keys wide.
    is_exact
        Whether the values were few enough to be sorted: `SMALL` at most.
    is_wide
        Whether some came in a type that holds more than float32 does.
    dropped
        Values left out because they were not finite.
    """

    table: Table
    is_exact: bool
    is_wide: bool
    dropped: int

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

        Notes
        -----
        There must be at least one value.
        """
        is_exact = self._kept is not None
        table = self._histogram.table() if self._kept is None else sorted_table(self._kept)
        return Counted(table, is_exact=is_exact, is_wide=self.is_wide, dropped=self.dropped)
