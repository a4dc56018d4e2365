"""What one pass without a spool knows: counts in buckets of 2^16 keys, so within one it knows bounds only."""

import dataclasses
from typing import Any

import numpy as np

from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.thresholds.searches import MARGIN, BestRatio, CountsAt, Found


def single_values(table: Table) -> Table:
    """Return the table with every bin taken for one value, its lower edge: all that one pass can decide by."""
    return dataclasses.replace(table, widths=np.zeros_like(table.widths))


def one_pass_bound(table: Table, found: Found) -> dict[str, Any]:
    """Return how far F1 at the threshold can be below the best F1 of all observed values, at most.

    Parameters
    ----------
    table
        The buckets; without anomalous values F1 is not defined, and neither is its distance.
    found
        The threshold; within a bucket, F1 there is at least that of all its normal and none of its anomalous values.
    """
    if not table.n_anomalous:
        return {"exact": False, "f1_gap": None}
    tp, fp = _worst_at(table, found.key)
    best = 2 * float(BestRatio(1, 1).upper(table).max())
    here = 2 * tp / (tp + fp + table.n_anomalous)
    return {"exact": False, "f1_gap": min(max(best * (1 + MARGIN) - here, 0.0), 1.0)}


def _worst_at(table: Table, key: int) -> tuple[int, int]:
    """Return the fewest true and the most false positives that a threshold can have."""
    known = CountsAt(key).step(table)
    if isinstance(known, Found):
        return known.tp, known.fp
    index = int(np.searchsorted(table.starts, key, side="right")) - 1
    return int(table.tp_above[index]), int(table.fp[index])
