"""Validation outputs spread unevenly over two processes: what every distributed route has to turn into one result."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from adversarial import KINDS, take_route, values_of

from postproc_export.calibration import COMPARED, Calibrator, spool

Batch = Mapping[str, Any]

_DATA: Final = Path(__file__).parent / "data" / "calibration"


@dataclass(frozen=True, slots=True)
class Sharded:
    """Batches of every process, the options of their calibrators, and the way through the engine."""

    shards: tuple[tuple[Batch, ...], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    route: str = "sorted"

    @property
    def whole(self) -> tuple[Batch, ...]:
        """The batches of all processes."""
        return tuple(batch for shard in self.shards for batch in shard)


def computed(case: Sharded, batches: tuple[Batch, ...], **compute: Any) -> dict[str, Any]:
    """Return what one process gets: the statistics as JSON, and what it was warned about."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take_route(case.route, patch)
        patch.setattr(spool, "BLOCK", 50)
        patch.setattr(spool, "IN_MEMORY", 2 * 50 * 4)
        with Calibrator(**{"resamples": 20, **case.options}) as calibrator:
            for batch in batches:
                calibrator.update(**batch)
            stats = calibrator.compute(**compute).to_json()
    return {"stats": stats, "warnings": [str(each.message) for each in caught]}


def _anomalib(name: str) -> Batch:
    keys = {"scores": "pred_score", "labels": "gt_label", "maps": "anomaly_map", "masks": "gt_mask"}
    with np.load(_DATA / f"{name}.npz") as file:
        return {keys[key]: file[key] for key in file if key != "masks" or "maps" in file}


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return {key: array[start:stop] for key, array in batch.items()}


def _adversarial(kind: str, seed: int) -> tuple[tuple[Batch, ...], ...]:
    values, truth = values_of(kind, seed, 110)
    scores = {"pred_score": values, "gt_label": truth}
    return (_part(scores, 0, 37),), (_part(scores, 37, 101), _part(scores, 101, 110))


def _scores(values: Any, truth: Any = None) -> Batch:
    return {"pred_score": np.asarray(values), "gt_label": truth if truth is None else np.asarray(truth)}


def sharded_cases() -> dict[str, Sharded]:
    """Return every case by its name."""
    padim, dfkde = _anomalib("padim"), _anomalib("dfkde")
    uneven = ((_part(padim, 0, 11), _part(padim, 11, 13)), (_part(padim, 13, 80),))
    cases = {
        "padim": Sharded(uneven, {"compare": COMPARED}),
        "padim-histogram": Sharded(uneven, {"compare": COMPARED}, "histogram"),
        "dfkde": Sharded(((_part(dfkde, 0, 79),), (_part(dfkde, 79, 80),))),
        "one-pass": Sharded(uneven, {"exact": False}, "histogram"),
        "first-empty": Sharded(((), (padim,)), {"compare": COMPARED}, "histogram"),
        "last-empty": Sharded(((padim,), ()), {"compare": COMPARED}, "eighths"),
        "a-level-each": Sharded(((_part_of(padim, "image"),), (_part_of(padim, "pixel"),)), {}, "histogram"),
        "dropped": Sharded(
            ((_scores([1.0, np.nan, 3.0], [0, 1, 1]),), (_scores([np.inf], [0]), _scores([2.0, 5.0], [0, 1]))),
            {"nonfinite": "drop"},
        ),
        "only-dropped-in-one": Sharded(
            ((_scores([np.nan], [1]),), (_scores([2.0, 5.0], [0, 1]),)), {"nonfinite": "drop"}
        ),
        "only-normal": Sharded(((_scores([1.0, 2.0], [0, 0]),), (_scores([4.0], [0]),))),
        "unlabelled": Sharded(((_scores([1.0, 2.0]),), (_scores([4.0]),))),
        "merged-across": Sharded(
            ((_scores([1.0, 2.0], [0, 1]),), (_scores([0.5, 2.0 + 1e-9], [0, 1]),)), {}, "histogram"
        ),
        "merged-in-one": Sharded(
            ((_scores(np.float32([1.0]), [0]),), (_scores([0.5, 2.0, 2.0 + 1e-9], [0, 1, 1]),)), {}, "histogram"
        ),
        "negative-zero": Sharded(((_scores(np.float32([-0.0, 1.0]), [0, 1]),), (_scores(np.float32([0.0]), [1]),))),
    }
    for seed, kind in enumerate(KINDS):
        for route in ("histogram", "eighths", "late-batches"):
            cases[f"{kind}-{route}"] = Sharded(_adversarial(kind, seed), {"compare": COMPARED, "resamples": 0}, route)
    return cases


def three_shards(route: str) -> Sharded:
    """Return many samples for rank 0, none for rank 1, a few in two batches for rank 2."""
    rng = np.random.default_rng(8)
    values = rng.gamma(2, size=120).astype(np.float32).round(2)
    whole = _scores(values, rng.random(120) < values / 9)
    last = (_part(whole, 90, 93), _part(whole, 93, 120))
    return Sharded(((_part(whole, 0, 90),), (), last), {"compare": COMPARED}, route)


def _part_of(batch: Batch, level: str) -> Batch:
    keys = ("pred_score", "gt_label") if level == "image" else ("anomaly_map", "gt_mask")
    return {key: batch[key] for key in keys}
