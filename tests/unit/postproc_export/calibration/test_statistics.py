"""What statistics tell besides the threshold: rates, areas, interval, at any number of values."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from calibration_cases import Plain

from postproc_export.calibration import Calibrator, tally
from postproc_export.calibration.search import Found
from postproc_export.calibration.statistics import auroc, average_precision, curve, rates_at
from postproc_export.calibration.table import Table, key_of
from postproc_export.stats import LevelStats


def table_of(values: list[float], normal: list[int], anomalous: list[int], *, width: int = 0) -> Table:
    """Return a table of distinct values, or of bins that begin there."""
    starts = np.array([key_of(value) for value in values], np.uint32)
    return Table(
        starts=starts,
        widths=np.full(starts.size, width, np.uint8),
        normal=np.array(normal, np.int64),
        anomalous=np.array(anomalous, np.int64),
        low=int(starts[0]),
        high=int(starts[-1]),
    )


def image_stats(values: np.ndarray, truth: np.ndarray, **options: Any) -> LevelStats:
    """Return the statistics of the image level."""
    with Calibrator(**{"resamples": 0, **options}) as calibrator:
        calibrator.update(values, truth)
        stats = calibrator.compute().image
    assert stats is not None
    return stats


@pytest.mark.parametrize("scale", [1, 10**6, 10**12, 10**15])
def test_areas_and_rates_do_not_overflow(scale: int) -> None:
    """A thousand million million values of each kind give the areas and rates of a few."""
    values, normal, anomalous = [-1.0, 0.5, 1.0, 2.0, 5.0], [5, 4, 1, 1, 0], [0, 1, 2, 1, 3]
    small = table_of(values, normal, anomalous)
    large = table_of(values, [scale * each for each in normal], [scale * each for each in anomalous])
    assert auroc(large) == auroc(small)
    assert average_precision(large) == average_precision(small)
    found = Found(key_of(1.0), 6 * scale, 2 * scale)
    rates = rates_at(found, normal=11 * scale, anomalous=7 * scale)
    assert (rates["tn"], rates["fn"], rates["precision"]) == (9 * scale, scale, 0.75)
    assert (rates["recall"], rates["f1"], rates["fpr"]) == (6 / 7, 12 / 15, 2 / 11)
    points = curve(large, [found])
    assert (points["tp"][0], points["fp"][0]) == (7 * scale, 11 * scale)


def test_a_tie_of_a_billion_among_other_values_counts_one_half_each() -> None:
    """Pairs of equal values are neither right nor wrong."""
    tie = 10**9
    area = auroc(table_of([0.0, 1.0, 2.0], [7, tie, 0], [0, tie, 3]))
    exact = Fraction(7 * (tie + 3) + tie * 3) + Fraction(tie * tie, 2)
    assert area is not None
    assert area["value"] == float(exact / ((tie + 7) * (tie + 3)))
    assert area["width"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_one_pass_gives_intervals_that_hold_the_areas(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that share buckets, in one pass without a spool: exact areas of the plain definition lie inside."""
    monkeypatch.setattr(tally, "SMALL", 0)
    rng = np.random.default_rng(seed)
    truth = rng.random(300) < 0.3
    values = (1 + np.round(rng.normal(0, 2.0**-9, 300) + truth * 2.0**-10, 5)).astype(np.float32)
    details, plain = image_stats(values, truth, exact=False).details, Plain(values, truth)
    for name, exact in (("auroc", plain.auroc()), ("average_precision", plain.average_precision())):
        assert Fraction(details[name]["low"]) <= exact <= Fraction(details[name]["high"])
        assert details[name]["width"] > 0


def test_the_ends_of_an_interval_are_rounded_outwards() -> None:
    """A wide bin decides nothing; what float64 cannot hold lies inside all the same."""
    table = table_of([1.0, 3.0], [1, 2], [2, 1], width=16)
    area = auroc(table)
    assert area is not None
    low, high = Fraction(1, 9), Fraction(1 + 2 + 2, 9)  # 1 pair in order, 4 within bins, 4 in the wrong order
    assert Fraction(area["low"]) <= low <= high <= Fraction(area["high"])
    assert area["high"] - area["low"] < 4 / 9 + 1e-15


@pytest.mark.parametrize("policy", ["f1", "fbeta=2", "recall=0.7", "precision=0.6", "fpr=0.1", "quantile=0.8"])
def test_rates_are_those_of_the_decision(policy: str) -> None:
    """TP, FP, TN, FN and the four rates, counted again one by one."""
    rng = np.random.default_rng(5)
    truth = rng.random(400) < 0.3
    values = (rng.normal(size=400) + truth).round(1).astype(np.float32)
    stats = image_stats(values, truth, image_policy=policy)
    decided, at = values >= np.float32(stats.threshold), stats.details["at_threshold"]
    tp, fp = int((decided & truth).sum()), int((decided & ~truth).sum())
    tn, fn = int((~decided & ~truth).sum()), int((~decided & truth).sum())
    assert [at[name] for name in ("tp", "fp", "tn", "fn")] == [tp, fp, tn, fn]
    rates = [tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn), fp / (fp + tn)]
    assert [at[name] for name in ("precision", "recall", "f1", "fpr")] == rates
