"""How many raw values lie how near to a boundary: a histogram that streams and merges."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BUCKETS: Final = 1 << 15


@dataclass(slots=True)
class Margin:
    """Distances of raw values from a boundary.

    Notes
    -----
    A bucket holds the distances that share the upper 16 bits of their float32, so its ends are less than 1 % apart.
    Distances that are not finite are left out.
    """

    _counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BUCKETS, np.int64))

    def add(self, distances: NDArray[np.float64]) -> None:
        """Count distances, zero and above, of any shape."""
        with np.errstate(over="ignore"):
            known = distances[np.isfinite(distances)].astype(np.float32)
        self._counts += np.bincount(_bucket(known[np.isfinite(known)]), minlength=_BUCKETS)

    def within(self, distance: float) -> tuple[float, int]:
        """Return a distance, this one or up to 1 % more (0 stays 0), and how many values lie at most so far away."""
        if not distance:
            return 0.0, 0
        bucket = int(_bucket(np.array([distance], np.float32))[0])
        upper = np.array(((bucket + 1) << 16) - 1, np.uint32).view(np.float32)
        return float(upper), int(self._counts[: bucket + 1].sum())


def _bucket(distances: NDArray[np.float32]) -> NDArray[np.int64]:
    return (np.ascontiguousarray(distances).view(np.uint32) >> 16).astype(np.int64)
