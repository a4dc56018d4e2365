"""The cluster that counts: connecting, watching for lost workers, and dealing parts out."""

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

from postproc_export import __version__
from postproc_export.calibration.arrays import Block
from postproc_export.calibration.counting import Part
from postproc_export.errors import CalibrationError, PostprocError, UsageError, require

# --- Waiting for a Dask cluster, but not for ever: for its workers, for an answer of each, and for the end of a task.

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


def run_everywhere(client: Any, function: Callable[[], Any]) -> dict[str, Any]:
    """Return what a function returns or raises at the scheduler and at every worker, by where that is.

    Who does not answer has an OSError (`TimeoutError` is one): `client.run` would wait for the slowest for ever.
    """
    found: dict[str, Any] = client.sync(_run_everywhere, client, function)
    return found


async def _run_everywhere(client: Any, function: Callable[[], Any]) -> dict[str, Any]:
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


# --- What one part of a source answers in a pass, and how the answers of parts add up to that of the whole.
#
# A part is what one task reads: a chunk of an array, some shard files. Answers hold histograms and, of bins that
# survive, few values; so that is all that travels.


class Work(Protocol):
    """One pass: what every part is asked."""

    def run(self, part: Part) -> Any:
        """Return the answer of a part."""
        ...

    def add(self, answers: Any) -> Any:
        """Return the answer of parts that follow each other, from theirs in order; at least one."""
        ...


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


# --- Running the tasks of a pass with Dask: on a cluster or in this process, answers added up as a tree.

FAN_IN: Final = 2  # a worker holds what it adds and a few more answers that wait, up to 22 MB each
_PURPOSE: Final = "calibrating with Dask"

OnReply = Callable[[int], None]


class Cluster:
    """Where tasks run."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def threads(self) -> int:
        """How many tasks run at once, about."""
        if self._client is None:
            return int(require("dask.system", extra="dask", purpose=_PURPOSE).CPU_COUNT)
        return sum(self._client.nthreads().values())

    def run(self, make: Callable[[Any], list[Any]], work: Work, *, on_reply: OnReply | None) -> Any:
        """Return the sum of the answers of all parts, None where there is no part."""
        dask = require("dask", extra="dask", purpose=_PURPOSE)
        question = dask.delayed(work, pure=False, traverse=False)
        leaves = make(question)
        if not leaves:
            return None
        heard = None if on_reply is None else _Heard(on_reply)
        try:
            return self._compute(_tree(leaves, question), leaves, heard)
        except PostprocError:
            raise
        except (Exception, CancelledError) as error:  # whatever the user's tasks, or the cluster, may raise
            if heard is not None and error is heard.error:
                raise
            raise CalibrationError(
                "Dask could not compute the parts of the source",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                fix="see the logs of the workers; the cause is chained to this error",
            ) from error

    def _compute(self, root: Any, leaves: Sequence[Any], on_reply: OnReply | None) -> Any:
        dask = require("dask", extra="dask", purpose=_PURPOSE)
        if self._client is None:
            with _reporting(on_reply):
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
        distributed = require("distributed", extra="dask", purpose=_PURPOSE)
        completed = distributed.as_completed(counters, with_results=True, loop=self._client.loop)
        for _ in counters:
            _, read = watched(self._client, completed.__anext__)
            if isinstance(read, BaseException):  # the cluster gave the part up, as it does when the scheduler is lost
                raise read
            on_reply(read)


class _Heard:
    """Passes replies on, and remembers what listening to them has raised."""

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply
        self.error: Exception | None = None

    def __call__(self, read: int) -> None:
        try:
            self._on_reply(read)
        except Exception as error:
            self.error = error
            raise


def _tree(answers: list[Any], question: Any) -> Any:
    def add(work: Work, some: Sequence[Any]) -> Any:  # replies of parts, or sums of them
        return work.add([each.answer if isinstance(each, Reply) else each for each in some])

    task = require("dask", extra="dask", purpose=_PURPOSE).delayed(add, pure=False)
    while True:
        answers = [task(question, answers[at : at + FAN_IN]) for at in range(0, len(answers), FAN_IN)]
        if len(answers) == 1:
            return answers[0]


@contextmanager
def _reporting(on_reply: OnReply | None) -> Iterator[None]:
    """Report the replies of tasks that run in this process."""
    if on_reply is None:
        yield
        return

    def after(key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, Reply):
            on_reply(result.read)

    with require("dask.callbacks", extra="dask", purpose=_PURPOSE).Callback(posttask=after):
        yield


# --- Connecting to a Dask cluster, or saying in one message why it is of no use.


@contextmanager
def cluster_at(dask: Any) -> Iterator[Cluster]:
    """Yield the cluster at an address, of a client, or the one that Dask uses by default."""
    if dask is None:
        owner = getattr(require("dask.base", extra="dask", purpose=_PURPOSE).get_scheduler(), "__self__", None)
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
    distributed = require("distributed", extra="dask", purpose=f"reading shards on the cluster at {address}")
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
    """Return who answers at an address.

    A client itself would wait for ever at a port where something else listens, such as the scheduler's dashboard.
    """
    dask, utils = (require(name, extra="dask", purpose=_PURPOSE) for name in ("dask", "dask.utils"))
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

        for where, found in run_everywhere(client, version).items():
            _check_answer(where, found)
    return Cluster(client)


def _check_answer(where: str, found: Any) -> None:
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
            fix=f"pip install postproc-export=={__version__} where the scheduler and the workers run",
        )
