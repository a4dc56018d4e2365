"""Calibration on Dask: the cluster, and Dask arrays and shard files as parts that workers count, pass after pass."""

import asyncio
import uuid
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from operator import attrgetter
from time import monotonic
from typing import Any, Final, TypeVar

import numpy as np

from postproc_export import __version__
from postproc_export.calibration import tally
from postproc_export.calibration.arrays import AnyArray, Block, Place, blocks_of, boxes_of, check_type, flat_chunks
from postproc_export.calibration.convention import Convention
from postproc_export.calibration.counting import Divide, Extremes, Part
from postproc_export.calibration.shards import (
    MemoryShard,
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
from postproc_export.errors import CalibrationError, FileError, PostprocError, UsageError, require
from postproc_export.stats import Level

_PURPOSE: Final = "calibrating with Dask"


WAIT: Final = 30.0  # seconds that a cluster may have no worker, and for an answer of each
_LOOK: Final = 1.0  # seconds between two looks at the workers

_Result = TypeVar("_Result")


def watched(client: Any, start: Callable[[], Awaitable[_Result]]) -> _Result:
    """Return what an awaitable of the client gives, however long it takes while there are workers."""
    result: _Result = client.sync(_watched, client, start)
    return result


async def _watched(client: Any, start: Callable[[], Awaitable[_Result]]) -> _Result:
    waiting, seen = asyncio.ensure_future(start()), monotonic()
    try:
        while not (await asyncio.wait([waiting], timeout=_LOOK))[0]:
            if await client.nthreads():
                seen = monotonic()
            elif monotonic() - seen > WAIT:
                raise _no_worker(client, "has lost its last worker")
        return waiting.result()
    finally:
        waiting.cancel()


async def _run_everywhere(client: Any, function: Callable[[], Any]) -> dict[str, Any]:
    """Return what a function returns or raises at the scheduler and at every worker, by where that is.

    Who does not answer has an OSError (`TimeoutError` is one): `client.run` would wait for the slowest for ever.
    """

    async def at(worker: str) -> Any:
        return (await client.run(function, workers=[worker]))[worker]

    workers = await client.nthreads()
    calls = {"scheduler": client.run_on_scheduler(function), **{f"worker {worker}": at(worker) for worker in workers}}
    answers = await asyncio.gather(*(asyncio.wait_for(call, WAIT) for call in calls.values()), return_exceptions=True)
    return dict(zip(calls, answers, strict=True))


def _no_worker(client: Any, what: str) -> CalibrationError:
    address = str(client.scheduler.address)
    return CalibrationError(
        f"the Dask scheduler at {address} {what}",
        found=f"none within {WAIT:g} s",
        needed="at least one",
        fix=f"dask worker {address}",
    )


# A part is what one task reads: a chunk of an array, some shard files. Answers hold histograms and, of bins that
# survive, few values; so that is all that travels.

Work = Count | Divide | Extremes
"""One pass: what every part is asked; `add` gives the answer of parts from theirs, in order."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of one part, and how many values it read for it."""

    answer: Any
    read: int


def reply(part: Part, work: Work) -> Reply:
    """Return what a part answers."""
    read = 0

    def counted(blocks: Iterable[Block]) -> Iterator[Block]:
        nonlocal read
        for block in blocks:
            yield block
            read += block.values.size

    answer = work.run(replace(part, blocks=counted(part.blocks)))
    return Reply(answer, read)


FAN_IN: Final = 2  # a worker holds what it adds and a few more answers that wait, up to 22 MB each

OnReply = Callable[[int], None]


class Cluster:
    """Where tasks run."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def threads(self) -> int:
        """How many tasks run at once, about."""
        if self._client is None:
            return int(require("dask.system", purpose=_PURPOSE).CPU_COUNT)
        return sum(self._client.nthreads().values())

    def run(self, make: Callable[[Any], list[Any]], work: Work, *, on_reply: OnReply | None) -> Any:
        """Return the sum of the answers of all parts, None where there is no part."""
        dask = require("dask", purpose=_PURPOSE)
        question = dask.delayed(work, pure=False, traverse=False)
        leaves = make(question)
        if not leaves:
            return None
        refusals: list[Exception] = []  # what listening to replies has raised

        def heard(read: int) -> None:
            try:
                if on_reply is not None:
                    on_reply(read)
            except Exception as error:
                refusals.append(error)
                raise

        try:
            return self._compute(_tree(leaves, question), leaves, None if on_reply is None else heard)
        except PostprocError:
            raise
        except (Exception, CancelledError) as error:  # whatever the user's tasks, or the cluster, may raise
            if error in refusals:
                raise
            raise CalibrationError(
                "Dask could not compute the parts of the source",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                fix="see the logs of the workers; the cause is chained to this error",
            ) from error

    def _compute(self, root: Any, leaves: Sequence[Any], on_reply: OnReply | None) -> Any:
        dask = require("dask", purpose=_PURPOSE)
        if self._client is None:

            def after(key: Any, result: Any, *_: Any) -> None:
                if on_reply is not None and isinstance(result, Reply):
                    on_reply(result.read)

            with require("dask.callbacks", purpose=_PURPOSE).Callback(posttask=after):
                return dask.compute(root)[0]
        sizes = [] if on_reply is None else [dask.delayed(attrgetter("read"), pure=False)(leaf) for leaf in leaves]
        futures = self._client.compute([root, *sizes])
        try:
            if on_reply is not None:
                self._report(futures[1:], on_reply)
            return watched(self._client, lambda: self._client.gather(futures[0]))
        finally:
            for future in futures:  # after an error, too: the traceback would keep the tasks running
                future.release()

    def _report(self, counters: Sequence[Any], on_reply: OnReply) -> None:
        """Report every part; the count of one whose worker is lost comes from the next one."""
        distributed = require("distributed", purpose=_PURPOSE)
        completed = distributed.as_completed(counters, with_results=True, loop=self._client.loop)
        for _ in counters:
            _, read = watched(self._client, completed.__anext__)
            if isinstance(read, BaseException):  # the cluster gave the part up, as it does when the scheduler is lost
                raise read
            on_reply(read)


def _tree(answers: list[Any], question: Any) -> Any:
    def add(work: Work, some: Sequence[Any]) -> Any:  # replies of parts, or sums of them
        return work.add([each.answer if isinstance(each, Reply) else each for each in some])

    task = require("dask", purpose=_PURPOSE).delayed(add, pure=False)
    while True:
        answers = [task(question, answers[at : at + FAN_IN]) for at in range(0, len(answers), FAN_IN)]
        if len(answers) == 1:
            return answers[0]


@contextmanager
def cluster_at(dask: Any) -> Iterator[Cluster]:
    """Yield the cluster at an address, of a client, or the one that Dask uses by default."""
    if dask is None:
        owner = getattr(require("dask.base", purpose=_PURPOSE).get_scheduler(), "__self__", None)
        yield _checked(owner if hasattr(owner, "nthreads") else None)  # None: Dask computes in this process by default
    elif isinstance(dask, str):
        with _connected(dask) as client:
            yield _checked(client)
    elif hasattr(dask, "nthreads") and hasattr(dask, "compute"):
        yield _checked(dask)
    else:
        raise UsageError(
            "dask= is not a cluster", found=type(dask).__name__, needed="an address or a distributed.Client"
        )


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    distributed = require("distributed", purpose=f"reading shards on the cluster at {address}")
    try:
        kind = _knock(distributed, address)
        if kind != "Scheduler":
            raise _no_scheduler(address, f"a Dask {kind.lower()}")
        client = distributed.Client(address, set_as_default=False)
    except CalibrationError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _no_scheduler(address, f"{type(error).__name__}: {str(error) or 'no answer'}") from error
    with client:
        yield client


def _knock(distributed: Any, address: str) -> str:
    """Return who answers; a client would wait for ever where something else listens, such as the dashboard."""
    dask, utils = (require(name, purpose=_PURPOSE) for name in ("dask", "dask.utils"))
    timeout = utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))

    async def knock() -> dict[str, Any]:
        security = distributed.Security().get_connection_args("client")
        async with distributed.rpc(address, timeout=timeout, connection_args=security) as remote:
            return dict(await asyncio.wait_for(remote.identity(), timeout + 1))

    with ThreadPoolExecutor(1) as thread:  # this one may run a loop already, as a notebook does
        kind = thread.submit(asyncio.run, knock()).result()["type"]
    return str(kind)


def _no_scheduler(address: str, found: str) -> CalibrationError:
    needed = "the address that `dask scheduler` prints, such as tcp://10.0.0.1:8786"
    return CalibrationError(f"there is no Dask scheduler at {address}", found=found, needed=needed)


def _checked(client: Any) -> Cluster:
    """Return the cluster of a client whose workers are there and have this software; of no client, this process."""
    if client is not None:
        try:
            client.wait_for_workers(1, timeout=WAIT)
        except TimeoutError as error:
            raise _no_worker(client, "has no worker") from error

        def version() -> str:  # travels by value: the package may not be there
            from postproc_export import __version__

            return __version__

        for where, found in client.sync(_run_everywhere, client, version).items():
            if isinstance(found, OSError):
                raise CalibrationError(
                    f"the Dask {where} does not answer",
                    found=f"{type(found).__name__}: {str(found) or f'nothing within {WAIT:g} s'}",
                    fix="restart it, or take it out of the cluster",
                ) from found
            if found != __version__:
                raise CalibrationError(
                    f"the Dask {where} is not the same software",
                    found=f"postproc-export {found}" if isinstance(found, str) else f"{type(found).__name__}: {found}",
                    needed=f"postproc-export {__version__}, as here",
                    fix="install the same wheel or checkout where the scheduler and the workers run",
                )
    return Cluster(client)


class _Source:
    """Some of the shards; subclasses make the tasks of a pass of them."""

    size: int | None = None  # values of the level; None where only reading tells

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        """Return the tasks of a pass, in order, for a task that gives the work."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Refuse what changed while a pass read it; chunks have no state, and workers look at files themselves."""


def is_dask(value: object) -> bool:
    """Whether a value is a collection of Dask; told by its type, so that dask is not imported."""
    return any(base.__module__.split(".")[0] in ("dask", "dask_expr") for base in type(value).__mro__)


def has_dask(shard: object) -> bool:
    """Whether a shard is a mapping with something of Dask in it."""
    return isinstance(shard, MemoryShard) and any(is_dask(value) for value in shard.given.values())


class _Arrays(_Source):
    """A level of a mapping of Dask arrays; NumPy arrays beside them are cut into the same chunks."""

    def __init__(self, level: Level, shard: MemoryShard, *, number: int) -> None:
        self._number = number
        self._level, self._convention = level, shard.convention
        pairs = level_pairs(_arrays_of(shard), name=shard.name, convention=shard.convention)
        self._pair = pairs.get(level)
        self.size = 0 if self._pair is None else self._pair.place.size

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        if self._pair is None:
            return []
        da = require("dask.array", purpose=_PURPOSE)
        values, truth = self._pair.values, self._pair.truth
        values = values if is_dask(values) else da.from_array(np.asarray(values))
        answers = da.map_blocks(
            _answer_chunk,
            *([values] if truth is None else [values, _like(values, truth)]),
            work=work,
            level=self._level,
            convention=self._convention,
            place=self._pair.place,
            number=self._number,
            dtype=object,
            meta=np.empty((0,) * values.ndim, dtype=object),
            name=f"postproc-export-{uuid.uuid4().hex}",
        )
        return list(np.ravel(answers.to_delayed()))


def _arrays_of(shard: MemoryShard) -> dict[str, Any]:
    array_type = require("dask.array", purpose=_PURPOSE).Array
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
    da = require("dask.array", purpose=_PURPOSE)
    if not is_dask(truth):
        return da.from_array(np.asarray(truth).reshape(values.shape), chunks=values.chunks)
    if truth.shape != values.shape:
        truth = truth[tuple(0 if length == 1 else slice(None) for length in truth.shape)]
        truth = truth[tuple(None if length == 1 else slice(None) for length in values.shape)]
    return truth.rechunk(values.chunks)


def _answer_chunk(
    *arrays: Any,
    work: Work,
    level: Level,
    convention: Convention,
    place: Place,
    number: int,
    block_info: Mapping[Any, Any],
) -> Reply:
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
    texts = convention.label is not None if level == "image" else None
    blocks = _chunk_blocks([np.asarray(array) for array in arrays], place, texts)
    return reply(Part(convention.blocks(level, blocks), number), work)


def _chunk_blocks(arrays: Sequence[AnyArray], place: Place, texts: bool | None) -> Iterator[Block]:
    """Yield the blocks of a chunk of the values and of the same one of the ground truth, if there is any."""
    for array, key in zip(arrays, (place.key, place.truth_key), strict=False):
        at = f"{place.where}: chunk {place.chunk} of {key}"
        is_truth = array is not arrays[0]
        check_type(array.dtype, place=at, truth=is_truth, texts=texts if is_truth else None)
        if array.shape != place.box:
            raise CalibrationError(
                f"{at} is not what the Dask array promises",
                found=f"shape {array.shape}",
                needed=f"shape {place.box}",
                fix="give the function that makes the chunks its chunk sizes (`chunks=` of map_blocks)",
            )
    yield from blocks_of(flat_chunks(arrays[0]), flat_chunks(arrays[1]) if len(arrays) > 1 else None, place)


def answer_shards(
    work: Work, *, level: Level, shards: Sequence[Shard], states: States, first: int, number: int, verify: bool
) -> Reply:
    """Return what shards answer that one task reads one after the other, and their states as they were opened.

    `states` are those that were met before, `first` the position of the first shard, `number` that of the group.
    """

    def blocks() -> Iterator[Block]:
        try:
            yield from read_shards(level, shards, states, verify=verify, first=first)
        except FileError as error:
            fix = "put the shards where every worker finds them under the same path"
            raise FileError(f"a Dask worker: {error.what}", found=error.found, needed=error.needed, fix=fix) from None

    return reply(Part(blocks(), number, states), work)


def _delayed(work: Any, **parts: Any) -> Any:
    dask = require("dask", purpose=_PURPOSE)
    return dask.delayed(partial(answer_shards, **parts), pure=False, traverse=False)(work)


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
            options = {"states": known, "first": first, "number": number, "verify": is_first}
            tasks.append(_delayed(work, level=self._level, shards=group, **options))
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
            boxes = sum(1 for _ in boxes_of(pair))
            self._runs = _runs(boxes, max(1, min(parts, boxes)))

    def tasks(self, work: Any, *, is_first: bool) -> list[Any]:
        self._check()
        tasks = []
        for run in self._runs:
            part = self._shard.absolute()
            part.run = run
            options = {"states": {}, "first": self._first, "number": self._number, "verify": is_first}
            tasks.append(_delayed(work, level=self._level, shards=[part], **options))
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
        self._is_known = len(self._known) == len(self._sources)
        self._total = sum(self._known) if self._is_known else None

    def first_pass(self, count: Count) -> Counted:
        """Return what the first pass counts; raises what is wrong with the values, or with computing a part."""
        carried = tally.SMALL if self._is_known else _CARRIED
        total: Tally | None = self(replace(count, carried=0 if sum(self._known) > tally.SMALL else carried))
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

    def __call__(self, work: Work) -> Any:
        """Return the answer of a pass."""
        self._number += 1
        done = parts = 0

        def report(read: int) -> None:
            nonlocal done, parts
            done, parts = done + read, parts + 1
            assert self._progress is not None, "somebody listens"
            self._progress(Progress(self._level, self._number, done, self._total, f"part {parts}"))

        def tasks(work: Any) -> list[Any]:
            return [task for source in self._sources for task in source.tasks(work, is_first=self._number == 1)]

        answer = self._cluster.run(tasks, work, on_reply=None if self._progress is None else report)
        for source in self._sources:
            source.check_unchanged()
        if self._progress is not None:
            self._total = done
        return answer


def shard_sources(level: Level, shards: Sequence[Shard], *, groups: int, states: States) -> list[_Source]:
    """Return the sources of tasks of a level, in the order of the shards; files in at most so many groups."""
    sources: list[_Source] = []
    number = first = 0
    for is_files, found in groupby(shards, key=lambda shard: not isinstance(shard, ZarrShard | MemoryShard)):
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
