"""Calibration on Dask: Dask arrays and shard files as parts that workers count, pass after pass."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, Final

import numpy as np

from postproc_export.calibration import tally
from postproc_export.calibration.arrays import AnyArray, Block, Place, blocks_of, check_type, flat_chunks
from postproc_export.calibration.boxes import grid_of
from postproc_export.calibration.counting import Divide, Extremes, Part
from postproc_export.calibration.dask_cluster import Cluster, Reply, Work, cluster_at, reply
from postproc_export.calibration.shards import (
    MemoryShard,
    NpyShard,
    Progress,
    Shard,
    States,
    StreamedArray,
    changed,
    check_state,
    level_pairs,
    read_shards,
)
from postproc_export.calibration.tally import Count, Counted, Tally
from postproc_export.calibration.zarr import ZarrShard
from postproc_export.errors import CalibrationError, FileError, UsageError, require
from postproc_export.stats import Level


class _Source:
    """Some of the shards, as the tasks of a pass."""

    size: int | None = None  # values of the level; None where only reading tells

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        """Return the tasks of a pass, in order, for a task that gives the work."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Refuse what changed while a pass read it; chunks have no state, and workers look at files themselves."""


_PURPOSE: Final = "calibrating on Dask arrays"


def is_dask(value: object) -> bool:
    """Whether a value is a collection of Dask; told by its type, so that dask is not imported."""
    return any(base.__module__.split(".")[0] in ("dask", "dask_expr") for base in type(value).__mro__)


def has_dask(shard: object) -> bool:
    """Whether a shard is a mapping with something of Dask in it."""
    return isinstance(shard, MemoryShard) and any(is_dask(value) for value in shard.given.values())


class _Arrays(_Source):
    """A level of a mapping of Dask arrays; NumPy arrays beside them are cut into the same chunks.

    Raises a CalibrationError where types or shapes do not fit or the sizes of chunks are not known, a UsageError where
    something in the mapping is not an array.
    """

    def __init__(self, level: Level, shard: MemoryShard, *, number: int) -> None:
        self._number = number
        self._pair = level_pairs(_arrays_of(shard), name=shard.name).get(level)
        self.size = 0 if self._pair is None else self._pair.place.size

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        if self._pair is None:
            return []
        da = require("dask.array", extra="dask", purpose=_PURPOSE)
        values, truth = self._pair.values, self._pair.truth
        values = values if is_dask(values) else da.from_array(np.asarray(values))
        answers = da.map_blocks(
            _answer_chunk,
            *([values] if truth is None else [values, _like(values, truth)]),
            work=work,
            place=self._pair.place,
            number=self._number,
            dtype=object,
            meta=np.empty((0,) * values.ndim, dtype=object),
            name=f"postproc-export-{uuid.uuid4().hex}",
        )
        return list(np.ravel(answers.to_delayed()))


def _arrays_of(shard: MemoryShard) -> dict[str, Any]:
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


def _answer_chunk(*arrays: Any, work: Work, place: Place, number: int, block_info: Mapping[Any, Any]) -> Reply:
    """Return what a chunk answers; a task, called by dask with the chunks and where they are."""
    info = block_info[0]
    location = [(int(start), int(end)) for start, end in info["array-location"]]
    place = replace(
        place,
        shape=tuple(int(length) for length in info["shape"]),
        origin=tuple(start for start, _ in location),
        box=tuple(end - start for start, end in location),
        chunk=tuple(int(axis) for axis in info["chunk-location"]),
    )
    return reply(Part(_chunk_blocks([np.asarray(array) for array in arrays], place), number), work)


def _chunk_blocks(arrays: Sequence[AnyArray], place: Place) -> Iterator[Block]:
    """Yield the blocks of a chunk of the values and of the same one of the ground truth, if there is any."""
    for array, key in zip(arrays, (place.key, place.truth_key), strict=False):
        at = f"{place.where}: chunk {place.chunk} of {key}"
        check_type(array.dtype, place=at, truth=array is not arrays[0])
        if array.shape != place.box:
            raise CalibrationError(
                f"{at} is not what the Dask array promises",
                found=f"shape {array.shape}",
                needed=f"shape {place.box}",
                fix="give the function that makes the chunks its chunk sizes (`chunks=` of map_blocks)",
            )
    yield from blocks_of(flat_chunks(arrays[0]), flat_chunks(arrays[1]) if len(arrays) > 1 else None, place)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Shards that one task reads one after the other."""

    level: Level
    shards: Sequence[Shard]
    states: States  # of those that were met before
    first: int  # the position of the first of them
    number: int  # of the group
    verify: bool

    def answer(self, work: Work) -> Reply:
        """Return what the shards answer, and their states as they were opened."""
        return reply(Part(self._blocks(), self.number, self.states), work)

    def _blocks(self) -> Iterator[Block]:
        try:
            yield from read_shards(self.level, self.shards, self.states, verify=self.verify, first=self.first)
        except FileError as error:
            fix = "put the shards where every worker finds them under the same path"
            raise FileError(f"a Dask worker: {error.what}", found=error.found, needed=error.needed, fix=fix) from None


def _delayed(task: ShardTask, work: Any) -> Any:
    dask = require("dask", extra="dask", purpose="reading shards on a cluster")
    return dask.delayed(ShardTask.answer, pure=False)(dask.delayed(task, pure=False, traverse=False), work)


class _Files(_Source):
    """Shard files that follow each other, in groups of about equal number; `first` is the position of the first."""

    def __init__(
        self, level: Level, shards: Sequence[Shard], *, number: int, groups: int, states: States, first: int
    ) -> None:
        self._level, self._number, self._states, self._first = level, number, states, first
        found, count = [shard.absolute() for shard in shards], min(groups, len(shards))
        self.groups = [found[begin:end] for begin, end in _runs(len(found), count)]

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        tasks, first = [], self._first
        for number, group in enumerate(self.groups, start=self._number):
            known = {at: self._states[at] for at in range(first, first + len(group)) if at in self._states}
            task = ShardTask(self._level, group, known, first, number, verify=is_first)
            tasks.append(_delayed(task, work))
            first += len(group)
        return tasks


def _runs(size: int, count: int) -> list[tuple[int, int]]:
    """Cut so many things into that many runs of about equal length."""
    return list(pairwise(size * run // count for run in range(count + 1)))


class _Store(_Source):
    """A Zarr store in runs of the boxes in which it is read; its state is looked up twice per pass, not per part."""

    def __init__(self, level: Level, shard: ZarrShard, *, number: int, parts: int, states: States, first: int) -> None:
        self._level, self._shard, self._number, self._states, self._first = level, shard, number, states, first
        self._check()
        pair = shard.pair(level, verify=True)
        self.size = 0 if pair is None or pair.place.size is None else pair.place.size
        self._runs: list[tuple[int, int]] = []
        if pair is not None:
            shard.check(pair)
            boxes = len(grid_of(pair))
            self._runs = _runs(boxes, max(1, min(parts, boxes)))

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        self._check()
        tasks = []
        for run in self._runs:
            part = self._shard.absolute()
            part.run = run
            tasks.append(_delayed(ShardTask(self._level, [part], {}, self._first, self._number, verify=is_first), work))
        return tasks

    def check_unchanged(self) -> None:
        self._check(reading=True)

    def _check(self, *, reading: bool = False) -> None:
        check_state(self._states, self._first, self._shard.signature(), self._shard.name, reading=reading)


_CARRIED: Final = 1 << 16  # values that a part of unknown size sends: no more bytes than its histogram takes
_GROUPS: Final = 32  # groups of shards for each thread, so that the last ones do not keep the others waiting


class DaskLevel:
    """One level of the shards, counted where Dask runs."""

    def __init__(
        self,
        level: Level,
        shards: Sequence[Shard],
        cluster: Cluster,
        *,
        states: States,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._level, self._shards, self._cluster, self._states = level, shards, cluster, states
        self._sources = shard_sources(level, shards, groups=_GROUPS * max(1, cluster.threads), states=states)
        self._known = [source.size for source in self._sources if source.size is not None]
        self._progress, self._number = progress, 0
        self._total = sum(self._known) if self._is_known else None

    @property
    def _is_known(self) -> bool:
        return len(self._known) == len(self._sources)

    def first_pass(self, count: Count) -> Counted:
        """Return what the first pass counts; raises what is wrong with the values, or with computing a part."""
        carried = tally.SMALL if self._is_known else _CARRIED
        total: Tally | None = self._pass(replace(count, carried=0 if sum(self._known) > tally.SMALL else carried))
        counted = (total or Tally()).counted()
        for index, state in sorted({} if total is None else total.states.items()):
            if state is not None:
                check_state(self._states, index, state, self._shards[index].name)
        if counted.is_exact or counted.seen > tally.SMALL:
            return counted
        table = counted.table  # few values after all, which is known only now
        finer = self(Divide.of(table, np.arange(len(table)), bits=0))
        if (finer.n_normal, finer.n_anomalous) != (table.n_normal, table.n_anomalous):
            raise changed("the source")
        return replace(counted, table=finer, is_exact=True)

    def __call__(self, work: Divide | Extremes) -> Any:
        """Return the answer of a later pass."""
        return self._pass(work)

    def _pass(self, work: Work) -> Any:
        self._number += 1
        done = parts = 0

        def report(read: int) -> None:
            nonlocal done, parts
            done, parts = done + read, parts + 1
            assert self._progress is not None, "somebody listens"
            self._progress(Progress(self._level, self._number, done, self._total, f"part {parts}"))

        answer = self._cluster.run(self._tasks, work, on_reply=None if self._progress is None else report)
        for source in self._sources:
            source.check_unchanged()
        if self._progress is not None:
            self._total = done
        return answer

    def _tasks(self, work: Any) -> list[Any]:
        return [task for source in self._sources for task in source.tasks(work, is_first=self._number == 1)]


@contextmanager
def dask_levels(
    shards: Sequence[Shard], dask: Any, *, progress: Callable[[Progress], None] | None
) -> Iterator[Callable[[Level], DaskLevel]]:
    """Connect to where Dask runs and yield a function that makes a level of the shards.

    `dask` is the address of a scheduler, a client, or None for what Dask uses by default. Raises a CalibrationError if
    there is no cluster at the address, or what is there is of no use.
    """
    states: States = {}
    with cluster_at(dask) as cluster:
        yield lambda level: DaskLevel(level, shards, cluster, states=states, progress=progress)


def shard_sources(level: Level, shards: Sequence[Shard], *, groups: int, states: States) -> list[_Source]:
    """Return the sources of tasks of a level, in the order of the shards; files in at most so many groups."""
    sources: list[_Source] = []
    number = first = 0
    forms = [_file_form(shard) for shard in shards]
    for is_files, found in groupby(forms, key=lambda shard: not isinstance(shard, ZarrShard | MemoryShard)):
        run = list(found)
        if is_files:
            sources.append(_Files(level, run, number=number, groups=groups, states=states, first=first))
            number += groups
        for index, shard in enumerate(run, start=first):
            if isinstance(shard, ZarrShard):
                sources.append(_Store(level, shard, number=number, parts=groups, states=states, first=index))
                number += 1
            elif isinstance(shard, MemoryShard):
                sources.append(_Arrays(level, shard, number=number))
                number += 1
        first += len(run)
    return sources


def _file_form(shard: Shard) -> Shard:
    """Return a mapping of nothing but paths as what it is: `.npy` files that belong together."""
    if isinstance(shard, MemoryShard) and len(shard.paths) == len(shard.given):
        return NpyShard(shard.paths, name=shard.name)
    return shard
