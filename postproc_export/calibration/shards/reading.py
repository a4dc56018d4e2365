"""Reading one level of shards pass after pass, noticing what changes between two of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.counting.checks import check_labelled
from postproc_export.calibration.shards.kinds import Shard
from postproc_export.errors import CalibrationError
from postproc_export.stats import Level


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass over one level is.

    Parameters
    ----------
    level
        The level that is read.
    number
        The pass, from 1. Two or three do nearly always; scores that all reach nearly the same F1 need more.
    values, total
        Values read in this pass, and values of a whole pass; None in the first one, where it is not known yet.
    shard
        The file that is read.
    """

    level: Level
    number: int
    values: int
    total: int | None
    shard: str


class ShardReader:
    """One level of some shards.

    Parameters
    ----------
    level, shards
        What is read, in this order.
    signatures, labelled
        What the first pass over these shards left in the attributes of these names, for a reader that continues.

    Attributes
    ----------
    signatures
        The state of every shard in the first pass.
    labelled
        Whether the level has ground truth; None as long as no block of it was met.
    """

    def __init__(
        self, level: Level, shards: Sequence[Shard], *, signatures: Sequence[object] = (), labelled: bool | None = None
    ) -> None:
        self._level, self._shards = level, shards
        self.signatures, self.labelled = list(signatures), labelled

    def read(self) -> Iterator[Block]:
        """Yield all blocks of the level; the first pass verifies checksums too.

        Raises
        ------
        CalibrationError
            If a shard is damaged, changed since the first pass, or has ground truth where others have none.
        """
        is_first = not self.signatures
        for index, shard in enumerate(self._shards):
            self._check_signature(index, shard, is_first=is_first)
            for block in shard.blocks(self._level, verify=is_first):
                check_labelled(self.labelled, block.truth is not None, place=block.place)
                self.labelled = block.truth is not None
                yield block

    def _check_signature(self, index: int, shard: Shard, *, is_first: bool) -> None:
        now = shard.signature()
        if is_first:
            self.signatures.append(now)
        elif now != self.signatures[index]:
            raise changed(shard.name)


def changed(name: str) -> CalibrationError:
    """Return the error for a shard that is not what it was in the first pass."""
    fix = "calibrate again when nothing writes to it any more"
    return CalibrationError(f"{name} changed between two passes over it", fix=fix)
