"""What goes wrong with the workers of a Dask cluster, one case after the other; writes what came of each.

Usage: python dask_trouble.py FOLDER
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from postproc_export.calibration import Progress, calibrate
from postproc_export.calibration import dask as dask_level

CHUNKS = 24
VALUES = np.random.default_rng(3).gamma(2, size=(CHUNKS, 50000)).astype(np.float32)


def slow(block: Any) -> Any:
    """Return the chunk after a while, so that a worker can go in the middle of a pass."""
    time.sleep(0.02)
    return block


class Cases:
    """The cases, in the order in which the workers go.

    Parameters
    ----------
    client
        The default client, of a cluster with two workers.
    workers
        Their processes, which nothing restarts.
    """

    def __init__(self, client: Client, workers: list[subprocess.Popen[bytes]]) -> None:
        self._client, self._workers = client, workers

    def one_stopped(self) -> Any:
        """A worker does not answer, and goes on after that."""
        os.kill(self._workers[0].pid, signal.SIGSTOP)
        try:
            with patched("WAIT", 1.0):
                return calibrated()
        finally:
            os.kill(self._workers[0].pid, signal.SIGCONT)

    def bad_progress(self) -> Any:
        """The user's own function raises."""

        def progress(at: Progress) -> None:
            raise ZeroDivisionError("in the progress function")

        return calibrated(progress)

    def other_software(self) -> Any:
        """The default client leads to another version."""
        mine, dask_level.__version__ = dask_level.__version__, "0.0.0"  # type: ignore[misc]
        try:
            return calibrated()
        finally:
            dask_level.__version__ = mine  # type: ignore[misc]

    def one_dies(self) -> Any:
        """One of two workers goes in the middle of the first pass."""
        heard: list[Progress] = []

        def progress(at: Progress) -> None:
            heard.append(at)
            if len(heard) == 6:
                self._kill(0)

        found = calibrated(progress)
        return {"stats": found, "parts": [sum(at.number == number for at in heard) for number in (1, 2)]}

    def last_dies(self) -> Any:
        """The last one goes, with somebody listening to the progress."""
        heard: list[Progress] = []

        def progress(at: Progress) -> None:
            heard.append(at)
            if len(heard) == 3:
                self._kill(1)

        with patched("WAIT", 0.5):
            return calibrated(progress)

    def none_left(self) -> Any:
        """The default client has no worker from the start."""
        with patched("WAIT", 0.5):
            return calibrated()

    def _kill(self, number: int) -> None:
        self._workers[number].kill()
        self._workers[number].wait()


def calibrated(progress: Callable[[Progress], None] | None = None) -> str:
    """Return the statistics file of an array in chunks, from the default client."""
    scores = da.from_array(VALUES, chunks=(1, -1)).map_blocks(slow, dtype=np.float32).reshape(-1)
    return calibrate({"scores": scores, "labels": scores > 6}, resamples=0, progress=progress).dumps()


@contextmanager
def patched(name: str, value: float) -> Iterator[None]:
    """Give a waiting time of the package another value."""
    before = getattr(dask_level, name)
    setattr(dask_level, name, value)
    try:
        yield
    finally:
        setattr(dask_level, name, before)


def result_of(case: Callable[[], Any]) -> Any:
    """Return what a case returns, or the error that it raises."""
    try:
        return case()
    except Exception as error:
        return {"class": type(error).__name__, "text": str(error)}


def worker(address: str) -> subprocess.Popen[bytes]:
    """Start a worker that no nanny looks after."""
    options = ("--no-nanny", "--nthreads", "1", "--no-dashboard")
    return subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", address, *options])


def main(folder: Path) -> None:
    """Run all cases, and write the results."""
    dask.config.set({"distributed.comm.retry.count": 0})
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        workers = [worker(cluster.scheduler_address) for _ in range(2)]
        try:
            client.wait_for_workers(2, timeout=60)
            cases = Cases(client, workers)
            order = (
                *(cases.one_stopped, cases.bad_progress, cases.other_software),
                *(cases.one_dies, cases.last_dies, cases.none_left),
            )
            results = {case.__name__: result_of(case) for case in order}
        finally:
            for process in workers:
                process.kill()
                process.wait()
    with dask.config.set(scheduler="synchronous"):
        results["alone"] = calibrated()
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
