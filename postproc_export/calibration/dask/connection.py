"""Connecting to a Dask cluster, or saying in one message why it is of no use."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from postproc_export.calibration.dask import watched
from postproc_export.calibration.dask.cluster import Cluster
from postproc_export.errors import CalibrationError, UsageError, require
from postproc_export.version import __version__

_PURPOSE: Final = "calibrating with Dask"


@contextmanager
def cluster_at(dask: Any) -> Iterator[Cluster]:
    """Yield the cluster at an address, of a client, or the one that Dask uses by default.

    Raises
    ------
    CalibrationError
        If there is no scheduler at the address, it has no workers, one of them does not answer, or they have another
        version of this package.
    """
    if dask is None:
        yield _checked(_default_client())
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

    Notes
    -----
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


def _default_client() -> Any:
    """Return the client that Dask computes with by default, None where it computes in this process."""
    get = require("dask.base", extra="dask", purpose=_PURPOSE).get_scheduler()
    owner = getattr(get, "__self__", None)
    return owner if hasattr(owner, "nthreads") else None


def _checked(client: Any) -> Cluster:
    """Return the cluster of a client whose workers are there and have this software; of no client, this process."""
    if client is not None:
        watched.wait_for_worker(client)
        for where, found in watched.run_everywhere(client, _version_function()).items():
            _check_answer(where, found)
    return Cluster(client)


def _version_function() -> Callable[[], str]:
    def version() -> str:  # travels by value: the package may not be there
        from postproc_export.version import __version__

        return __version__

    return version


def _check_answer(where: str, found: Any) -> None:
    if isinstance(found, OSError):
        raise CalibrationError(
            f"the Dask {where} does not answer",
            found=f"{type(found).__name__}: {str(found) or f'nothing within {watched.WAIT:g} s'}",
            fix="restart it, or take it out of the cluster",
        ) from found
    if found != __version__:
        raise CalibrationError(
            f"the Dask {where} is not the same software",
            found=f"postproc-export {found}" if isinstance(found, str) else f"{type(found).__name__}: {found}",
            needed=f"postproc-export {__version__}, as here",
            fix=f"pip install postproc-export=={__version__} where the scheduler and the workers run",
        )
