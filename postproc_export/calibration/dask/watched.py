"""Waiting for a Dask cluster, but not for ever: for its workers, for an answer of each, and for the end of a task."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, TypeVar

from postproc_export.errors import CalibrationError

WAIT: Final = 30.0  # seconds that a cluster may have no worker, and for an answer of each
_LOOK: Final = 1.0  # seconds between two looks at the workers

_Result = TypeVar("_Result")


def address_of(client: Any) -> str:
    """Return where the scheduler of a client is."""
    return str(client.scheduler.address)


def wait_for_worker(client: Any) -> None:
    """Wait until there is a worker.

    Raises
    ------
    CalibrationError
        If there is none in time.
    """
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except TimeoutError as error:
        raise _no_worker(client, "has no worker") from error


def watched(client: Any, start: Callable[[], Awaitable[_Result]]) -> _Result:
    """Return what an awaitable of the client gives, however long it takes while there are workers.

    Parameters
    ----------
    client
        A `distributed.Client`.
    start
        Called on the loop of the client; returns what is to be awaited.

    Raises
    ------
    CalibrationError
        If there is no worker for `WAIT` seconds: Dask itself would wait for a new one for ever.
    """
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

    Notes
    -----
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
    address = address_of(client)
    return CalibrationError(
        f"the Dask scheduler at {address} {what}",
        found=f"none within {WAIT:g} s",
        needed="at least one",
        fix=f"dask worker {address}",
    )
