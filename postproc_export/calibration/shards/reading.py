"""Reading one level of shards pass after pass, noticing what changes between two of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postproc_export.calibration.counting.arrays import Block, Place
from postproc_export.calibration.counting.checks import check_labelled
from postproc_export.calibration.shards.kinds import Shard
from postproc_export.errors import CalibrationError, PostprocError
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
        Values read in this pass, and values of a whole pass; None in the first one where the headers do not tell.
    shard
        The file that is read.
    """

    level: Level
    number: int
    values: int
    total: int | None
    shard: str


class States:
    """What each shard was like when it was first met, for all passes over all levels.

    Parameters
    ----------
    known
        The states by the position of the shard; empty where none was met yet.
    """

    def __init__(self, known: Sequence[object] = ()) -> None:
        self._known: dict[int, object] = dict(enumerate(known))

    def check(self, index: int, shard: Shard, *, reading: bool = False) -> None:
        """Refuse a shard that is not what it was; `reading` says that it is being read, not only about to be.

        Raises
        ------
        CalibrationError
            If it changed.
        FileError
            If it is gone.
        """
        now = shard.signature()
        if self._known.setdefault(index, now) != now:
            raise changed(shard.name, reading=reading)

    def learn(self, index: int, state: object, *, name: str) -> None:
        """Take the state of a shard that others have read.

        Raises
        ------
        CalibrationError
            If another one is known.
        """
        if self._known.setdefault(index, state) != state:
            raise changed(name)

    def of(self, first: int, end: int) -> tuple[object, ...]:
        """Return the states of a run of shards; empty where they are not known."""
        return tuple(self._known[index] for index in range(first, end)) if first in self._known else ()

    def all(self) -> list[object]:
        """Return the states that are known, in the order of the shards."""
        return [self._known[index] for index in sorted(self._known)]


class ShardReader:
    """One level of some shards.

    Parameters
    ----------
    level, shards
        What is read, in this order.
    states
        What is known of the shards, by this reader and by those of other levels.
    verify
        Whether the next pass is the first one over the level.

    Attributes
    ----------
    labelled
        Whether the level has ground truth; None as long as no block of it was met.
    """

    def __init__(self, level: Level, shards: Sequence[Shard], *, states: States, verify: bool = True) -> None:
        self._level, self._shards, self._states = level, shards, states
        self._verify = verify
        self._earlier: Place | None = None
        self.labelled: bool | None = None

    def read(self) -> Iterator[Block]:
        """Yield all blocks of the level; the first pass verifies checksums too.

        Raises
        ------
        CalibrationError
            If a shard is damaged, changed since it was first met, or has ground truth where others have none.
        """
        verify, self._verify = self._verify, False
        for index, shard in enumerate(self._shards):
            self._states.check(index, shard)
            try:
                for block in shard.blocks(self._level, verify=verify):
                    self._check_labelled(block)
                    yield block
            except PostprocError:
                self._states.check(index, shard, reading=True)  # a shard that is written to reads as a damaged one
                raise
            self._states.check(index, shard, reading=True)

    def _check_labelled(self, block: Block) -> None:
        labelled = block.truth is not None
        check_labelled(self.labelled, labelled, place=block.place, earlier=self._earlier)
        if self.labelled is None:
            self.labelled, self._earlier = labelled, block.place


def changed(name: str, *, reading: bool = False) -> CalibrationError:
    """Return the error for a shard that is not what it was in the first pass."""
    fix = "calibrate again when nothing writes to it any more"
    when = "while it was read" if reading else "between two passes over it"
    return CalibrationError(f"{name} changed {when}", fix=fix)
