"""The interval of the image threshold: fixed draws, and what every policy finds in each resample."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from calibration_cases import KINDS, values_of

from postproc_export.calibration import Calibrator, resampling, tally
from postproc_export.calibration.counting import exact_table, table_of_keys
from postproc_export.calibration.resampling import Resamples, threshold_interval
from postproc_export.calibration.search import Found, search_for
from postproc_export.calibration.table import Table, key_of, merge_zeros, ordered_keys
from postproc_export.policies import COMPARED, Policy, Range

EXTREMES = Range.parse("extremes")
F1 = Policy.parse("f1")
POLICIES = (*COMPARED, "fbeta=3.3", "recall=0", "precision=1", "precision=0.123456789012345678", "fpr=0", "fpr=1")
POLICIES += ("quantile=0", "quantile=1", "range=0.5", "range=-3", "range=1e38")
POLICIES += ("percentile=0", "percentile=70,factor=1.421")


def table_of(values: Sequence[float], normal: Sequence[int], anomalous: Sequence[int]) -> Table:
    """Return a table of distinct values, ascending."""
    starts = np.array([key_of(value) for value in values], np.uint32)
    counts = (np.array(each, np.int64) for each in (normal, anomalous))
    return exact_table(starts, *counts, low=int(starts[0]), high=int(starts[-1]))


TABLE = table_of([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [9, 5, 3, 2, 1, 0], [0, 1, 1, 2, 3, 4])


@pytest.mark.parametrize("spread", ["extremes", "quantile=0.1,0.9"])
@pytest.mark.parametrize("kind", [*KINDS, "normal", "anomalous", "largest"])
def test_resamples_have_the_thresholds_of_their_tables(kind: str, spread: str) -> None:
    """Those of every policy, and of the one-class rules, as the search finds them in the table of one resample."""
    if kind in KINDS:
        values, truth = values_of(kind, 3, 40)
    else:
        values = np.random.default_rng(0).choice(np.array([-1e-45, -0.0, 2, 3.4028235e38], np.float32), 12)
        truth = np.arange(12) % 2 == 0 if kind == "largest" else np.full(12, kind == "anomalous")
    keys = ordered_keys(merge_zeros(values))
    table = table_of_keys(keys, keys[truth], low=int(keys.min()), high=int(keys.max()))
    cells = np.repeat(np.arange(2 * len(table)), np.concatenate((table.normal, table.anomalous)))
    drawn = np.random.default_rng(1).choice(cells, (30, cells.size))
    resamples = Resamples.of(table.starts, drawn)
    for policy in map(Policy.parse, POLICIES):
        found = resamples.keys(policy, Range.parse(spread)).tolist()
        assert found == [searched(table, row, policy, Range.parse(spread)) for row in drawn], policy.text


def searched(table: Table, drawn: np.ndarray, policy: Policy, spread: Range) -> int:
    """Return the key of the threshold of one resample, -1 for none."""
    normal, anomalous = np.bincount(drawn, minlength=2 * len(table)).reshape(2, -1)
    used = np.flatnonzero(normal + anomalous)
    starts = table.starts[used]
    again = exact_table(starts, normal[used], anomalous[used], low=int(starts[0]), high=int(starts[-1]))
    outcome = search_for(policy, again, spread)[0](again)
    return outcome.key if isinstance(outcome, Found) else -1


def test_the_seed_is_fixed() -> None:
    """The same images give the same interval in every version: these numbers are part of the contract."""
    found = threshold_interval(TABLE, F1, EXTREMES, resamples=200)
    assert found == {"low": 1.0, "high": 4.0, "confidence": 0.95, "resamples": 200, "unreachable": 0}


def test_the_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One resample after the other draws the same as all of them together."""
    draws = []
    counted = Resamples.of
    monkeypatch.setattr(Resamples, "of", lambda starts, drawn: (draws.extend(drawn), counted(starts, drawn))[1])
    for at_once in (1, 70, 1 << 20):
        monkeypatch.setattr(resampling, "AT_ONCE", at_once)
        threshold_interval(TABLE, F1, EXTREMES, resamples=7)
    assert len(draws) == 21
    assert all(np.array_equal(draws[at], draws[at % 7]) for at in range(21))


def test_large_sets_take_a_fifth_of_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above that many images the interval is narrow anyway."""
    monkeypatch.setattr(resampling, "LARGE", 30)
    assert threshold_interval(TABLE, F1, EXTREMES, resamples=200)["resamples"] == 40
    monkeypatch.setattr(resampling, "LARGE", 31)
    assert threshold_interval(TABLE, F1, EXTREMES, resamples=200)["resamples"] == 200


def test_it_is_left_out_where_there_are_too_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the statistics say so, by whichever limit."""
    monkeypatch.setattr(resampling, "MAX_IMAGES", 30)
    assert threshold_interval(TABLE, F1, EXTREMES, resamples=9) == {"left_out": "more than 30 images"}
    monkeypatch.setattr(tally, "SMALL", 10)
    with Calibrator(resamples=9) as calibrator:
        calibrator.update(np.arange(12.0), np.arange(12) > 6)
        stats = calibrator.compute().image
    assert stats is not None
    assert "12 images are more than" in stats.details["threshold_interval"]["left_out"]


def test_resamples_that_miss_the_policy_are_counted() -> None:
    """A precision that few resamples reach has an interval over those, and says how few."""
    table = table_of([1.0, 2.0, 3.0], [3, 3, 1], [1, 3, 2])
    found = threshold_interval(table, Policy.parse("precision=0.7"), EXTREMES, resamples=100)
    assert 0 < found["unreachable"] < 100
    assert not math.isnan(found["low"])
