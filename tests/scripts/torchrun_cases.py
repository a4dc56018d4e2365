"""Every distributed case in one start of torchrun; each process writes what it got to a file of its own.

Usage: PYTHONPATH=tests torchrun --nproc-per-node 2 torchrun_cases.py FOLDER
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from calibration_cases import computed, sharded_cases

from postproc_export.calibration import CalibrationWarning, Calibrator, tally
from postproc_export.calibration.arrays import Block
from postproc_export.calibration.ranks import all_ranks
from postproc_export.calibration.tally import Spool
from postproc_export.errors import FileError


def scores(rank: int, **options: Any) -> Calibrator:
    """Return a calibrator with a few labelled scores, others on each rank."""
    calibrator = Calibrator(resamples=0, **options)
    calibrator.update(np.float32([rank, rank + 2.5, rank + 1]), np.array([0, 1, 0]))
    return calibrator


def nothing_seen(rank: int) -> None:
    """No rank has seen anything."""
    Calibrator().compute(distributed=True)


def unreachable(rank: int) -> None:
    """The policy cannot be reached by the values of both ranks."""
    calibrator = Calibrator(image_policy="precision=0.9")
    calibrator.update(np.float32([1, 2]), np.array([rank, 0]))
    calibrator.compute(distributed=True)


def broken_before(rank: int) -> None:
    """Rank 1 could not keep a batch."""
    calibrator = scores(rank)
    calibrator._levels["pixel"].is_broken = rank == 1
    calibrator.compute(distributed=True)


def broken_later(rank: int) -> None:
    """Rank 1 cannot read its values again in the second pass."""

    def blocks(spool: Spool, *, labelled: bool) -> Iterator[Block]:
        raise FileError("the spool file of the calibrator was truncated", fix="calibrate again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "SMALL", 0)
        calibrator = scores(rank)
        if rank == 1:
            patch.setattr(Spool, "blocks", blocks)
        calibrator.compute(distributed=True)


def foreign_error(rank: int) -> None:
    """Rank 0 runs into an error that is not the package's."""
    calibrator = scores(rank)
    if rank == 0:
        calibrator._levels["image"].tally = None  # type: ignore[assignment]
    calibrator.compute(distributed=True)


def changed(rank: int) -> None:
    """Rank 0 finds other values in the second pass than in the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "SMALL", 0)
        calibrator = scores(rank)
        if rank == 0:
            assert calibrator._levels["image"].spool is not None
            calibrator._levels["image"].spool._values[0] = 2.5
        calibrator.compute(distributed=True)


def warned(rank: int) -> None:
    """Rank 1 treats warnings as errors, so it fails after the last exchange of the counts."""
    calibrator = Calibrator()
    calibrator.update(np.float32([rank, 3]), np.array([0, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if rank == 1 else "ignore", CalibrationWarning)
        calibrator.compute(distributed=True)


def other_options(rank: int) -> None:
    """The ranks were given different policies."""
    scores(rank, image_policy=("f1", "recall=1")[rank]).compute(distributed=True)


def other_ranges(rank: int) -> None:
    """The ranks were given different ranges."""
    scores(rank, image_range=("extremes", "quantile=0,0.9")[rank]).compute(distributed=True)


def other_steps(rank: int) -> None:
    """The values of rank 1 alone are turned round."""
    scores(rank, step=((), "negate")[rank]).compute(distributed=True)


def other_labels(rank: int) -> None:
    """Only rank 0 has ground truth."""
    calibrator = Calibrator()
    calibrator.update(np.float32([1, 2]), np.array([0, 1]) if rank == 0 else None)
    calibrator.compute(distributed=True)


def apart(rank: int) -> None:
    """The ranks would add arrays of different shapes."""
    with all_ranks(None) as ranks:
        ranks.add(np.zeros(3 + rank, dtype=np.int64))


def subgroup(rank: int) -> None:
    """A group of rank 1 alone; rank 0 has no business there."""
    calibrator, group = scores(rank), dist.new_group([1])
    stats = calibrator.compute(distributed=True, group=group)
    assert rank == 1
    assert stats.to_json() == calibrator.compute().to_json()
    raise AssertionError("rank 1 got its own statistics")


def ended(rank: int) -> None:
    """Rank 1 ends before it computes; has to be the last case."""
    if rank == 1:
        os._exit(0)
    scores(rank).compute(distributed=True)


TROUBLE = (
    nothing_seen,
    unreachable,
    broken_before,
    broken_later,
    foreign_error,
    changed,
    warned,
    other_options,
    other_ranges,
    other_steps,
    other_labels,
    apart,
    subgroup,
)


def raised_by(case: Callable[[int], None], rank: int) -> dict[str, str]:
    """Return class and text of the error that a case raises."""
    try:
        case(rank)
    except Exception as error:
        return {"class": type(error).__name__, "text": str(error)}
    return {"class": "none", "text": "nothing was raised"}


def main(folder: Path) -> None:
    """Run all cases, and write the results before the case that ends a process and after it."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    results: dict[str, Any] = {case.__name__: raised_by(case, rank) for case in TROUBLE}
    for name, case in sharded_cases().items():
        results[name] = computed(case, case.shards[rank], distributed=True)
    path = folder / f"{rank}.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    results["ended"] = raised_by(ended, rank)
    path.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
