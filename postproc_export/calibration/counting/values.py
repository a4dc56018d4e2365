"""Where the values of a level are, seen from the engine: whoever counts chosen bins again can be calibrated on."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.counting.cleaning import counted_chunks, is_wide, to_float32_array
from postproc_export.calibration.counting.histogram import collect_bins, split_bins
from postproc_export.calibration.counting.locator import Indices
from postproc_export.calibration.counting.table import Table

Blocks = Callable[[], Iterator[Block]]


class Values(Protocol):
    """All values of one level, wherever they are, counted again as often as asked.

    Notes
    -----
    The answers depend on the values alone, not on where they are or in which order: `tables.sum_tables` and
    `tables.Grid` add the tables of parts exactly, and every route then gives the same bits.
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
    """Values that this process reads, block by block.

    Parameters
    ----------
    read
        Starts a pass over all blocks of the level.
    """

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
