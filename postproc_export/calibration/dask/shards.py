"""Shard files as parts: groups of them, and boxes of Zarr stores, that the workers of a cluster open themselves."""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.counting.boxes import grid_of
from postproc_export.calibration.dask.parts import Reply, Work, reply
from postproc_export.calibration.shards.csv_shard import CsvShard
from postproc_export.calibration.shards.kinds import NpyShard, NpzShard, Shard
from postproc_export.calibration.shards.reading import ShardReader, States
from postproc_export.calibration.shards.zarr_store import ZarrShard
from postproc_export.errors import FileError, require
from postproc_export.stats import Level

_Any = TypeVar("_Any", bound=Shard)


class ShardPart:
    """Shards that one task reads one after the other.

    Parameters
    ----------
    level, shards
        What is read.
    number
        The number of the group.
    signatures
        The state of the shards when they were first met; empty where they were not.
    verify
        Whether this is the first pass over the level.
    """

    def __init__(
        self, level: Level, shards: Sequence[Shard], *, number: int, signatures: Sequence[object], verify: bool = True
    ) -> None:
        self.number = number
        self._states = States(signatures)
        self._reader = ShardReader(level, shards, states=self._states, verify=verify)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of all of them.

        Raises
        ------
        CalibrationError
            If a shard is damaged or changed.
        FileError
            If it is not there where this worker is.
        """
        try:
            yield from self._reader.read()
        except FileError as error:
            fix = "put the shards where every worker finds them under the same path"
            raise FileError(f"a Dask worker: {error.what}", found=error.found, needed=error.needed, fix=fix) from None

    def signatures(self) -> Sequence[object]:
        """Return the state of every shard as it was opened."""
        return self._states.all()


def answer_shards(part: ShardPart, work: Work) -> Reply:
    """Return what some shards answer; a task."""
    return reply(part, work)


class ShardSource:
    """Shard files that follow each other, in groups of about equal number.

    Parameters
    ----------
    level, shards
        What is read.
    number
        The number of the first group.
    groups
        How many there are at most.
    states, first
        What is known of all shards of the source, and the position of the first of these.
    """

    def __init__(
        self, level: Level, shards: Sequence[Shard], *, number: int, groups: int, states: States, first: int = 0
    ) -> None:
        self._level, self._number, self._states, self._first = level, number, states, first
        found, count = [absolute(shard) for shard in shards], min(groups, len(shards))
        edges = [len(found) * group // count for group in range(count + 1)]
        self._runs = list(pairwise(edges))
        self._groups = [found[begin:end] for begin, end in self._runs]
        self._verify = True

    def size(self) -> int | None:
        """Return None: what is in the shards is known when they are read."""
        return None

    def leaves(self, work: Any) -> list[Any]:
        """Return a task for each group."""
        return [
            _task(
                ShardPart(
                    self._level,
                    group,
                    number=self._number + index,
                    signatures=self._states.of(self._first + begin, self._first + end),
                    verify=self._verify,
                ),
                work,
            )
            for index, (group, (begin, end)) in enumerate(zip(self._groups, self._runs, strict=True))
        ]

    def learn(self, signatures: Iterator[object]) -> None:
        """Take the states of the shards from those of all sources; they were verified."""
        self._verify = False
        shards = (shard for group in self._groups for shard in group)
        for index, shard in enumerate(shards, start=self._first):
            self._states.learn(index, next(signatures), name=shard.name)

    def settle(self) -> None:
        """Do nothing: workers look at each shard before and after they read it."""


class ZarrSource:
    """A Zarr store in runs of the boxes in which it is read.

    Parameters
    ----------
    level, shard
        What is read.
    number
        The number that all its parts bear.
    parts
        How many there are at most.
    states, index
        What is known of all shards of the source, and the position of this one.
    """

    def __init__(
        self, level: Level, shard: ZarrShard, *, number: int, parts: int, states: States, index: int = 0
    ) -> None:
        self._level, self._shard, self._number, self._states, self._index = level, shard, number, states, index
        states.check(index, shard)
        pair = shard.pair(level, verify=True)
        self._size = 0 if pair is None or pair.place.size is None else pair.place.size
        self._runs: list[tuple[int, int]] = []
        if pair is not None:
            shard.check(pair)
            boxes = len(grid_of(pair.values, pair.truth))
            count = max(1, min(parts, boxes))
            self._runs = list(pairwise(boxes * part // count for part in range(count + 1)))

    def size(self) -> int | None:
        """Return the number of values of the level."""
        return self._size

    def leaves(self, work: Any) -> list[Any]:
        """Return a task for each run of boxes.

        Raises
        ------
        CalibrationError
            If the store changed since it was first met.
        """
        self._states.check(self._index, self._shard)
        parts = [absolute(self._shard) for _ in self._runs]
        for part, run in zip(parts, self._runs, strict=True):
            part.run = run
        return [_task(ShardPart(self._level, [part], number=self._number, signatures=()), work) for part in parts]

    def learn(self, signatures: Iterator[object]) -> None:
        """Skip what the parts said: the state of the store is looked up twice per pass, not twice per part."""
        for _ in self._runs:
            next(signatures)

    def settle(self) -> None:
        """Refuse a store that changed while a pass read it.

        Raises
        ------
        CalibrationError
            If it did.
        """
        self._states.check(self._index, self._shard, reading=True)


def _task(part: ShardPart, work: Any) -> Any:
    dask = require("dask", extra="dask", purpose="reading shards on a cluster")
    return dask.delayed(answer_shards, pure=False)(dask.delayed(part, pure=False, traverse=False), work)


def absolute(shard: _Any) -> _Any:
    """Return the shard by its absolute path, and under the name it has here."""
    moved = copy.copy(shard)
    if isinstance(moved, NpyShard):
        moved.paths = {key: path.absolute() for key, path in moved.paths.items()}
    elif isinstance(moved, NpzShard | CsvShard | ZarrShard):
        moved.path = moved.path.absolute()
    return moved
