"""How far the threshold may move with other images of the same kind: a bootstrap interval, whatever the order."""

from typing import Any, Final

import numpy as np

from postproc_export.calibration.counting.ordered import value_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.thresholds.operating import question
from postproc_export.calibration.thresholds.policies import Policy
from postproc_export.calibration.thresholds.searches import Found
from postproc_export.float32 import shortest

MAX_IMAGES: Final = 10**6
CONFIDENCE: Final = 0.95
_SEED: Final = 20_240_501
_LARGE: Final = 20_000
_FEWER: Final = 5  # times fewer resamples above that many images, where the interval is narrow anyway


def threshold_interval(table: Table, policy: Policy, *, resamples: int) -> dict[str, Any]:
    """Return the 95 % percentile interval of the threshold over resamples of the images.

    Parameters
    ----------
    table
        One bin per distinct value. The resampling draws from the sorted values, so neither the order of the images nor
        their distribution over shards matters.
    policy
        Chooses the threshold of each resample; resamples in which a class is missing follow the one-class rule.
    resamples
        How many; a fifth of them above 20,000 images.
    """
    total = table.n_normal + table.n_anomalous
    if total > MAX_IMAGES:
        return {"left_out": f"more than {MAX_IMAGES} images"}
    count = resamples if total <= _LARGE else max(1, resamples // _FEWER)
    cells = np.repeat(np.arange(2 * len(table)), np.concatenate((table.normal, table.anomalous)))
    generator = np.random.default_rng(_SEED)
    keys = (_resampled_key(table, policy, cells[generator.integers(0, total, total)]) for _ in range(count))
    reached = sorted(key for key in keys if key is not None)
    if not reached:
        return {"left_out": "no resample reaches the policy"}
    tail = (1 - CONFIDENCE) / 2
    low, high = (reached[min(len(reached) - 1, int(share * len(reached)))] for share in (tail, 1 - tail))
    ends = {"low": shortest(value_of(low)), "high": shortest(value_of(high))}
    return {**ends, "confidence": CONFIDENCE, "resamples": count, "unreachable": count - len(reached)}


def _resampled_key(table: Table, policy: Policy, drawn: "np.ndarray[Any, np.dtype[np.intp]]") -> int | None:
    normal, anomalous = np.bincount(drawn, minlength=2 * len(table)).reshape(2, -1)
    used = np.flatnonzero(normal + anomalous)
    starts = table.starts[used]
    again = Table(
        starts=starts,
        widths=table.widths[used],
        normal=normal[used],
        anomalous=anomalous[used],
        low=int(starts[0]),
        high=int(starts[-1]),
    )
    outcome = question(policy, again).search.step(again)
    return outcome.key if isinstance(outcome, Found) else None
