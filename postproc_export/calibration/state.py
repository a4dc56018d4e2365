"""What a `Calibrator` has seen of one level: counts, the values to be read again, and whether they had ground truth."""

from collections.abc import Iterable, Iterator

import numpy as np

from postproc_export.calibration.counting.arrays import AnyArray, Block
from postproc_export.calibration.counting.cleaning import Clean, to_float32_array
from postproc_export.calibration.counting.tally import Tally
from postproc_export.calibration.spool import Spool


class LevelState:
    """What one level has seen: a tally, the values to be read again, and whether they had ground truth."""

    def __init__(self, spool: Spool | None) -> None:
        self.tally = Tally()
        self.spool = spool
        self.labelled: bool | None = None
        self.is_broken = False

    def absorb(self, cleaned: Iterable[Clean]) -> None:
        """Count checked chunks and keep their values."""
        self.is_broken = True  # until all of it is kept: after a full disk the spool and the counts disagree
        for each in cleaned:
            if self.spool is not None:
                self.spool.append(_storable(each), each.chunk.truth)
            self.tally.add(each)
        self.is_broken = False

    def merge(self, other: "LevelState") -> None:
        """Take over the values and counts of another level."""
        if self.labelled is None:
            self.labelled = other.labelled
        self.is_broken = True
        if self.spool is not None and other.spool is not None:
            for block in other.spool.blocks(labelled=True):
                self.spool.append(block.values, block.truth)
        self.tally.merge(other.tally)
        self.is_broken = False

    def read(self) -> Iterator[Block]:
        """Yield every value again."""
        assert self.spool is not None, "a level without a spool is not read again"
        return self.spool.blocks(labelled=bool(self.labelled))


def _storable(cleaned: Clean) -> AnyArray:
    """Return the values to keep: as they came where float64 holds them, so that merged values can be noticed."""
    if not cleaned.is_wide:
        return cleaned.chunk.values
    wide: AnyArray = cleaned.original.astype(np.float64)
    return wide if np.array_equal(to_float32_array(wide), cleaned.chunk.values) else cleaned.chunk.values
