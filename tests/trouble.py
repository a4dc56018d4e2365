"""Raw values at which a decision or a score goes wrong first: one table for the unit, parity and property tests."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.float32 import LARGEST, SMALLEST_NORMAL
from postproc_export.stats import LevelStats

SPECIAL: Final[dict[str, float]] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus-inf": float("-inf"),
    "zero": 0.0,
    "minus-zero": -0.0,
    "smallest-subnormal": 2.0**-149,
    "minus-smallest-subnormal": -(2.0**-149),
    "smallest-normal": SMALLEST_NORMAL,
    "minus-smallest-normal": -SMALLEST_NORMAL,
    "largest": LARGEST,
    "minus-largest": -LARGEST,
}


def around(value: float, *, steps: int = 8) -> NDArray[np.float32]:
    """Return a float32 and its neighbours, `steps` to either side, in rising order; both zeros count as one."""
    bits = int(np.float32(abs(value)).view(np.uint32))
    rank = bits if value > 0 else -bits
    top = 0x7F800000  # +inf
    ranks = np.clip(np.arange(rank - steps, rank + steps + 1), -top, top)
    return np.where(ranks < 0, np.float32(-1), np.float32(1)) * np.abs(ranks).astype(np.uint32).view(np.float32)


def trouble(level: LevelStats, *boundaries: float) -> NDArray[np.float32]:
    """Return the special values, and the neighbours of min, max, the threshold and the boundaries."""
    marks = [level.min, level.max, *([] if level.threshold is None else [level.threshold]), *boundaries]
    return np.concatenate([np.float32(list(SPECIAL.values())), *(around(mark) for mark in marks)])
