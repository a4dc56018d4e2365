"""A run of rows of an array, so that parts of one array can be read apart."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from postproc_export.calibration.counting.arrays import ArrayLike, stored_rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `first` to `end` (exclusive) along the first axis of an array, read when they are sliced."""

    array: ArrayLike
    first: int
    end: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""
        return (self.end - self.first, *self.array.shape[1:])

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        return self.array.dtype

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Rows that are stored together; whoever makes parts starts them where such rows start."""
        return (stored_rows(self.array),)

    @property
    def start(self) -> int:
        """The flat index of the first element in the whole array."""
        return self.first * int(np.prod(self.array.shape[1:], dtype=np.int64))

    def __getitem__(self, index: Any, /) -> Any:
        """Return a part that `numpy.asarray` takes."""
        at, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(at, slice):
            start, stop, _ = at.indices(self.end - self.first)
            return self.array[(slice(start + self.first, stop + self.first), *rest)]
        return self.array[(at + self.first, *rest)]


def row_ranges(array: ArrayLike, *, parts: int) -> list[tuple[int, int]]:
    """Return at most so many runs of rows that make up an array, each starting where a chunk starts."""
    length, step = array.shape[0], stored_rows(array)
    stored = -(-length // step)
    edges = [min(stored * part // parts * step, length) for part in range(parts + 1)]
    return [(first, end) for first, end in pairwise(edges) if first < end]
