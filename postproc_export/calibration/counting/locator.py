"""Which of the values of a chunk lie in chosen bins of a table."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.ordered import (
    BUCKETS,
    Flags,
    Floats,
    Keys,
    key_of,
    merge_zeros,
    ordered_keys,
    value_of,
)
from postproc_export.calibration.counting.table import Table

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A flat run of values of one level: float32, rounded, finite unless the pass drops others, any zero.

    Parameters
    ----------
    values
        float32, shape (n,), contiguous.
    truth
        bool, shape (n,), True is anomalous; None where no ground truth was given (all count as normal).
    """

    values: Floats
    truth: Flags | None


_ZERO: Final = key_of(0.0)


def pick(values: Floats, flags: Flags) -> Floats:
    """Return the flagged values: by their numbers where they are few, which is twice as fast, else by the flags."""
    return values[np.flatnonzero(flags) if np.count_nonzero(flags) < flags.size >> 3 else flags]


class Locator:
    """Finds the chosen bin of a key; the bins are equally wide, 16 or 8 bits.

    Parameters
    ----------
    table, chosen
        The table and the ascending indices of its bins.

    Notes
    -----
    Bins that follow each other in the table have nothing but empty ones between them, so arithmetic finds
    them; else a table of two levels does.
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
