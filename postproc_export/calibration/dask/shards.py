"""Shard files as parts: groups of them, and rows of Zarr stores, that the workers of a cluster open themselves."""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, TypeVar

from postproc_export.calibration.counting.arrays import Block
from postproc_export.calibration.dask.parts import Reply, Work, reply
from postproc_export.calibration.shards.csv_shard import CsvShard
from postproc_export.calibration.shards.kinds import NpyShard, NpzShard, Shard, ZarrShard, level_pairs, readable
from postproc_export.calibration.shards.reading import ShardReader, changed
from postproc_export.calibration.shards.rows import row_ranges
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
        The state of the shards in the first pass; empty in that pass.
    """

    def __init__(self, level: Level, shards: Sequence[Shard], *, number: int, signatures: Sequence[object]) -> None:
        self.number = number
        self._reader = ShardReader(level, shards, signatures=signatures)

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
        return self._reader.signatures


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
    """

    def __init__(self, level: Level, shards: Sequence[Shard], *, number: int, groups: int) -> None:
        self._level, self._number = level, number
        found, count = [absolute(shard) for shard in shards], min(groups, len(shards))
        edges = [len(found) * group // count for group in range(count + 1)]
        self._groups = [found[first:end] for first, end in pairwise(edges)]
        self._signatures: list[tuple[object, ...]] = [()] * count

    def size(self) -> int | None:
        """Return None: what is in the shards is known when they are read."""
        return None

    def leaves(self, work: Any) -> list[Any]:
        """Return a task for each group."""
        return [
            _task(ShardPart(self._level, group, number=self._number + index, signatures=self._signatures[index]), work)
            for index, group in enumerate(self._groups)
        ]

    def learn(self, signatures: Iterator[object]) -> None:
        """Take the states of the shards from those of all sources."""
        self._signatures = [tuple(islice(signatures, len(group))) for group in self._groups]


class ZarrSource:
    """A Zarr store in runs of rows."""

    def __init__(self, level: Level, shard: ZarrShard, *, number: int, parts: int) -> None:
        self._level, self._shard, self._number = level, shard, number
        self._state = shard.signature()
        with readable(shard.name):
            pair = level_pairs(shard.arrays(verify=True), name=shard.name).get(level)
        self._size = 0 if pair is None or pair.place.size is None else pair.place.size
        self._rows: list[tuple[int, int] | None] = [] if pair is None else [None]
        if (
            pair is not None
            and pair.values.shape
            and (pair.truth is None or pair.truth.shape[:1] == pair.values.shape[:1])
        ):
            self._rows = list(row_ranges(pair.values, parts=parts)) or [None]

    def size(self) -> int | None:
        """Return the number of values of the level."""
        return self._size

    def leaves(self, work: Any) -> list[Any]:
        """Return a task for each run of rows.

        Raises
        ------
        CalibrationError
            If the store changed since the first pass.
        """
        if self._shard.signature() != self._state:
            raise changed(self._shard.name)
        parts = [absolute(self._shard) for _ in self._rows]
        for part, rows in zip(parts, self._rows, strict=True):
            part.rows = rows
        return [_task(ShardPart(self._level, [part], number=self._number, signatures=()), work) for part in parts]

    def learn(self, signatures: Iterator[object]) -> None:
        """Skip what the parts said: the state of the store is looked up once per pass, not once per part."""
        for _ in self._rows:
            next(signatures)


def _task(part: ShardPart, work: Any) -> Any:
    dask = require("dask", extra="dask", purpose="reading shards on a cluster")
    return dask.delayed(answer_shards, pure=False)(dask.delayed(part, pure=False, traverse=False), work)


def absolute(shard: _Any) -> _Any:
    """Return the shard by its absolute path, and under the name it has here."""
    moved = copy.copy(shard)
    if isinstance(moved, NpyShard):
        moved.files = {key: path.absolute() for key, path in moved.files.items()}
    elif isinstance(moved, NpzShard | CsvShard | ZarrShard):
        moved.path = moved.path.absolute()
    return moved
