"""Three gloo processes, one of them without a sample, which no launcher looks after: one is killed at the end.

Usage: PYTHONPATH=tests python three_ranks.py FOLDER

The script starts itself three times; every process writes what it got to a file of its own.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch.distributed as dist
from calibration_cases import computed, three_shards

from postproc_export.calibration import Calibrator, tally
from postproc_export.calibration.counting import Divide

RANKS = 3


def scores(rank: int) -> Calibrator:
    """Return a calibrator with labelled scores, others on each rank."""
    calibrator = Calibrator(resamples=0)
    calibrator.update(np.float32([rank, rank + 2.5, rank + 1]), np.array([0, 1, 0]))
    return calibrator


def in_second_pass(rank: int, act: Callable[[], NoReturn]) -> None:
    """Compute on all ranks, where rank 1 does something else instead of its second pass."""

    def count(self: Divide, *arguments: Any) -> NoReturn:
        act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "SMALL", 0)
        if rank == 1:
            patch.setattr(Divide, "count", count)
        scores(rank).compute(distributed=True)


def interrupted(rank: int) -> None:
    """Somebody presses Ctrl-C at rank 1."""

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    in_second_pass(rank, interrupt)


def subgroup(rank: int) -> None:
    """Rank 2 fails in a group where it is the second one."""
    group = dist.new_group([1, 2])
    if rank == 0:
        return
    calibrator = scores(rank)
    calibrator._levels["image"].is_broken = rank == 2
    calibrator.compute(distributed=True, group=group)


def killed(rank: int) -> None:
    """Rank 1 is killed in its second pass; has to be the last case."""

    def kill() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    in_second_pass(rank, kill)


def raised_by(case: Callable[[int], None], rank: int) -> dict[str, str]:
    """Return class and text of what a case raises."""
    try:
        case(rank)
    except BaseException as error:
        return {"class": type(error).__name__, "text": str(error)}
    return {"class": "none", "text": "nothing was raised"}


def run_rank(folder: Path, rank: int) -> None:
    """Run all cases in one process, and write the results before the case that ends a process and after it."""
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timeout=timedelta(seconds=60), rank=rank, world_size=RANKS)
    results: dict[str, Any] = {case.__name__: raised_by(case, rank) for case in (interrupted, subgroup)}
    for route in ("sorted", "histogram"):
        case = three_shards(route)
        results[route] = computed(case, case.shards[rank], distributed=True)
    path = folder / f"{rank}.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    results["killed"] = raised_by(killed, rank)
    path.write_text(json.dumps(results), encoding="utf-8")
    os._exit(0)  # the group is broken: destroying it would wait for the rank that is gone


def main(folder: Path) -> None:
    """Start the processes, and wait for them."""
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(RANKS)]
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, -signal.SIGKILL, 0], codes


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else run_rank(Path(sys.argv[1]), int(sys.argv[2]))
