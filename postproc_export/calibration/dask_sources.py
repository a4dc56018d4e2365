"""Dask arrays and shards as parts that workers can count."""

import copy
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from postproc_export.calibration.arrays import AnyArray, Block, BoxPlace, Place, array_blocks, check_type
from postproc_export.calibration.boxes import grid_of
from postproc_export.calibration.dask_cluster import Reply, Work, reply
from postproc_export.calibration.npy import StreamedArray
from postproc_export.calibration.shards import (
    CsvShard,
    MemoryShard,
    NpyShard,
    NpzShard,
    Pair,
    Shard,
    ShardReader,
    States,
    level_pairs,
)
from postproc_export.calibration.zarr import ZarrShard
from postproc_export.errors import CalibrationError, FileError, UsageError, require
from postproc_export.stats import Level

# --- Dask arrays as parts: one per chunk, read where the chunk is, and its ground truth brought into the same chunks.

_PURPOSE = "calibrating on Dask arrays"


def is_dask(value: object) -> bool:
    """Whether a value is a collection of Dask; told by its type, so that dask is not imported."""
    return any(base.__module__.split(".")[0] in ("dask", "dask_expr") for base in type(value).__mro__)


def has_dask(shard: object) -> bool:
    """Whether a shard is a mapping with something of Dask in it."""
    return isinstance(shard, MemoryShard) and any(is_dask(value) for value in shard.given.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPlace(BoxPlace):
    """Where a chunk is in its array."""

    chunk: tuple[int, ...]  # the number of the chunk along every axis

    def at(self, flat: int, *, truth: bool = False) -> str:
        """Return ``"the mapping: anomaly_map[3, 10, 12], in chunk (0, 1, 0)"``."""
        return f"{Place.at(self, flat, truth=truth)}, in chunk ({', '.join(map(str, self.chunk))})"


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """A chunk of the values of a level and the same chunk of its ground truth."""

    values: AnyArray
    truth: AnyArray | None
    place: ChunkPlace
    number: int

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of the chunk."""
        self._check(self.values, truth=False)
        if self.truth is not None:
            self._check(self.truth, truth=True)
        yield from array_blocks(self.values, self.truth, self.place)

    def signatures(self) -> Sequence[object]:
        """Return nothing: a chunk has no cheap sign of a change."""
        return ()

    def _check(self, array: AnyArray, *, truth: bool) -> None:
        at = f"{self.place.where}: chunk {self.place.chunk} of {self.place.truth_key if truth else self.place.key}"
        check_type(array.dtype, place=at, truth=truth)
        if array.shape != self.place.box:
            raise CalibrationError(
                f"{at} is not what the Dask array promises",
                found=f"shape {array.shape}",
                needed=f"shape {self.place.box}",
                fix="give the function that makes the chunks its chunk sizes (`chunks=` of map_blocks)",
            )


def answer_chunk(*arrays: Any, work: Work, place: Place, number: int, block_info: Mapping[Any, Any]) -> Reply:
    """Return what a chunk answers; a task, called by dask with the chunks and where they are."""
    info = block_info[0]
    location = [(int(start), int(end)) for start, end in info["array-location"]]
    chunk = ChunkPlace(
        place.where,
        place.key,
        place.truth_key,
        tuple(int(length) for length in info["shape"]),
        origin=tuple(start for start, _ in location),
        box=tuple(end - start for start, end in location),
        chunk=tuple(int(axis) for axis in info["chunk-location"]),
    )
    values, truth = (*(np.asarray(array) for array in arrays), None)[:2]
    assert values is not None, "a level has values"
    return reply(ChunkPart(values, truth, chunk, number), work)


class ArraySource:
    """A level of a mapping of Dask arrays; NumPy arrays beside them are cut into the same chunks."""

    def __init__(self, level: Level, shard: MemoryShard, *, number: int) -> None:
        self._number = number
        self._pair = level_pairs(_checked(shard), name=shard.name).get(level)

    def size(self) -> int | None:
        """Return the number of values."""
        return 0 if self._pair is None else self._pair.place.size

    def leaves(self, work: Any) -> list[Any]:
        """Return a task for each chunk, none where the level is not there."""
        return [] if self._pair is None else _chunk_tasks(self._pair, work, number=self._number)

    def learn(self, signatures: Iterator[object]) -> None:
        """Take nothing: chunks have no state."""

    def settle(self) -> None:
        """Do nothing: chunks have no state."""


def _checked(shard: MemoryShard) -> dict[str, Any]:
    array_type = require("dask.array", extra="dask", purpose=_PURPOSE).Array
    for key, value in shard.given.items():
        if is_dask(value) and not isinstance(value, array_type):
            found, fix = type(value).__name__, "array = frame.to_dask_array(lengths=True)"
            raise UsageError(f"{shard.name}: {key} is not an array", found=found, needed="a Dask array", fix=fix)
    named = shard.arrays(verify=True)
    for key, array in named.items():
        at = f"{shard.name}: {key}"
        if isinstance(array, StreamedArray):
            raise UsageError(f"{at} is a path beside arrays", fix="give paths only, or np.load(path, mmap_mode='r')")
        if any(np.isnan(length) for length in array.shape):
            raise CalibrationError(
                f"{at} has chunks of unknown size",
                found=f"shape {array.shape}",
                needed="sizes that are known, since values and ground truth are paired by their position",
                fix="array = array.compute_chunk_sizes()",
            )
    return named


def _chunk_tasks(pair: Pair, work: Any, *, number: int) -> list[Any]:
    da = require("dask.array", extra="dask", purpose=_PURPOSE)
    values = pair.values if is_dask(pair.values) else da.from_array(np.asarray(pair.values))
    arrays = [values] if pair.truth is None else [values, _like(values, pair.truth)]
    answers = da.map_blocks(
        answer_chunk,
        *arrays,
        work=work,
        place=pair.place,
        number=number,
        dtype=object,
        meta=np.empty((0,) * values.ndim, dtype=object),
        name=f"postproc-export-{uuid.uuid4().hex}",
    )
    return list(np.ravel(answers.to_delayed()))


def _like(values: Any, truth: Any) -> Any:
    """Return ground truth in the shape and the chunks of the values; it is the smaller one, so it is what moves.

    Both have the same canonical shape, so they differ by axes of length 1 only.
    """
    da = require("dask.array", extra="dask", purpose=_PURPOSE)
    if not is_dask(truth):
        return da.from_array(np.asarray(truth).reshape(values.shape), chunks=values.chunks)
    if truth.shape != values.shape:
        truth = truth[tuple(0 if length == 1 else slice(None) for length in truth.shape)]
        truth = truth[tuple(None if length == 1 else slice(None) for length in values.shape)]
    return truth.rechunk(values.chunks)


# --- Shard files as parts: groups of them, and boxes of Zarr stores, that the workers of a cluster open themselves.

_Any = TypeVar("_Any", bound=Shard)


class ShardPart:
    """Shards that one task reads one after the other."""

    def __init__(
        self, level: Level, shards: Sequence[Shard], *, number: int, signatures: Sequence[object], verify: bool = True
    ) -> None:
        self.number = number
        self._states = States(signatures)
        self._reader = ShardReader(level, shards, states=self._states, verify=verify)

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of all of them."""
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
    """Shard files that follow each other, in groups of about equal number."""

    def __init__(
        self, level: Level, shards: Sequence[Shard], *, number: int, groups: int, states: States, first: int = 0
    ) -> None:
        self._level, self._number, self._states, self._first = level, number, states, first
        found, count = [absolute(shard) for shard in shards], min(groups, len(shards))
        edges = [len(found) * group // count for group in range(count + 1)]
        self._runs = list(pairwise(edges))
        self.groups = [found[begin:end] for begin, end in self._runs]
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
            for index, (group, (begin, end)) in enumerate(zip(self.groups, self._runs, strict=True))
        ]

    def learn(self, signatures: Iterator[object]) -> None:
        """Take the states of the shards from those of all sources; they were verified."""
        self._verify = False
        shards = (shard for group in self.groups for shard in group)
        for index, shard in enumerate(shards, start=self._first):
            self._states.learn(index, next(signatures), name=shard.name)

    def settle(self) -> None:
        """Do nothing: workers look at each shard before and after they read it."""


class ZarrSource:
    """A Zarr store in runs of the boxes in which it is read."""

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
        """Return a task for each run of boxes."""
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
        """Refuse a store that changed while a pass read it."""
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
