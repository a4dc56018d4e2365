"""What a user should know of a threshold: counts and rates there, the areas under both curves, a curve to plot."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from postproc_export.calibration.counting.ordered import value_of
from postproc_export.calibration.counting.table import Table
from postproc_export.calibration.thresholds.searches import Found
from postproc_export.float32 import shortest

CURVE_POINTS: Final = 2000
_ROUNDING: Final = 1e-12  # float64 sums of up to 10^6 terms in [0, 1], each within 2^-50


def rates_at(found: Found, *, normal: int, anomalous: int) -> dict[str, Any]:
    """Return TP, FP, TN, FN and the rates of the decision ``s >= threshold``; a rate over nothing is None."""
    tp, fp = found.tp, found.fp
    return {
        "tp": tp,
        "fp": fp,
        "tn": normal - fp,
        "fn": anomalous - tp,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, anomalous),
        "f1": _ratio(2 * tp, tp + fp + anomalous),
        "fpr": _ratio(fp, normal),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def auroc(table: Table) -> dict[str, float] | None:
    """Return the interval that holds the area under the ROC curve; ties count one half.

    Notes
    -----
    Pairs in different bins are decided. A pair within a bin of one value is a tie; within a wider bin it may go either
    way. Products are Python integers where int64 could overflow, as it does at 10^12 values.
    """
    pairs = table.n_normal * table.n_anomalous
    if not pairs:
        return None
    below = table.n_normal - table.fp
    certain = _dot(table.anomalous, below) * 2
    mixed = np.flatnonzero((table.normal > 0) & (table.anomalous > 0))
    single, wide = mixed[table.widths[mixed] == 0], mixed[table.widths[mixed] > 0]
    certain += _dot(table.anomalous[single], table.normal[single])
    blurred = _dot(table.anomalous[wide], table.normal[wide]) * 2
    low, high = certain / (2 * pairs), (certain + blurred) / (2 * pairs)
    if not blurred:
        return _interval(low, high)
    return _interval(max(math.nextafter(low, 0.0), 0.0), min(math.nextafter(high, 1.0), 1.0))


def _dot(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    if int(left.sum()) * int(right.max(initial=0)) < 1 << 63:
        return int(left @ right)
    used = np.flatnonzero((left > 0) & (right > 0))
    return sum(one * other for one, other in zip(left[used].tolist(), right[used].tolist(), strict=True))


def average_precision(table: Table) -> dict[str, float] | None:
    """Return the interval of the average precision: the sum over thresholds of recall gained times precision.

    Notes
    -----
    In a bin of more than one value precision is at most that of all its anomalous values above all its normal ones. It
    is at least that of the reverse order, one by one, which sums to p - F ln(1 + p / (T + F)) or more, T true positives
    above the bin and F false positives down to its end.
    """
    if not table.n_anomalous or not table.n_normal:
        return None
    used = np.flatnonzero(table.anomalous > 0)
    gained = table.anomalous[used].astype(np.float64)
    tp, fp = table.tp[used].astype(np.float64), table.fp[used].astype(np.float64)
    tp_above, fp_above = table.tp_above[used].astype(np.float64), table.fp_above[used].astype(np.float64)
    exact = (table.widths[used] == 0) | (fp == 0)
    highest = gained * tp / (tp + np.where(exact, fp, fp_above))
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = gained - fp * np.log1p(gained / (tp_above + fp))
    lowest = np.where(exact, highest, np.maximum(worst, 0.0))
    total = float(table.n_anomalous)
    low, high = math.fsum(lowest) / total, math.fsum(highest) / total
    if bool(exact.all()):
        return _interval(low, high)
    return _interval(max(low - _ROUNDING, 0.0), min(high + _ROUNDING, 1.0))


def _interval(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high, "width": high - low}


def curve(table: Table, chosen: Found | None) -> dict[str, list[Any]]:
    """Return at most 2,000 thresholds with exact counts, evenly spread over both classes, the chosen one among them."""
    share = (CURVE_POINTS - 3) // 2
    rows = [np.array([0, len(table) - 1])]
    for at_or_above in (table.tp, table.fp):
        wanted = np.linspace(0, int(at_or_above[0]), share)
        rows.append(np.clip(np.searchsorted(-at_or_above, -wanted, side="right") - 1, 0, None))
    picked = np.unique(np.concatenate(rows)) if len(table) > CURVE_POINTS - 1 else np.arange(len(table))
    values = table.values()[picked].tolist()
    points = dict(zip(values, zip(table.tp[picked].tolist(), table.fp[picked].tolist(), strict=True), strict=True))
    if chosen is not None:
        points[value_of(chosen.key)] = (chosen.tp, chosen.fp)
    ordered = sorted((value, tp, fp) for value, (tp, fp) in points.items())
    return {
        "threshold": [shortest(value) for value, _, _ in ordered],
        "tp": [tp for _, tp, _ in ordered],
        "fp": [fp for _, _, fp in ordered],
    }
