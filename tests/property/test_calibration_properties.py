"""Calibration against the plain definition, on distributions made to break it, by every route through the engine."""

import warnings
from contextlib import suppress
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from calibration_cases import KINDS, ROUTES, Plain, take_route, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postproc_export.calibration import Calibrator, tally
from postproc_export.calibration.search import BestRatio, Found, LowestPrecise, ranked
from postproc_export.calibration.statistics import CalibrationWarning
from postproc_export.calibration.table import Table
from postproc_export.errors import CalibrationError
from postproc_export.float32 import nearest
from postproc_export.run_options import CalibratorOptions
from postproc_export.stats import LevelStats

ONE_ROUTE = [HealthCheck.function_scoped_fixture]  # the route is the same for every example of a test


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way through the engine that all passes of a test take."""
    take_route(request.param, monkeypatch)
    return str(request.param)


def level_of(values: np.ndarray, truth: np.ndarray, policy: str, **options: Any) -> LevelStats:
    """Calibrate one level in three batches."""
    with Calibrator(image_policy=policy, resamples=0, **options) as calibrator:
        for part, flags in zip(np.array_split(values, 3), np.array_split(truth, 3), strict=True):
            calibrator.update(part, flags)
        stats = calibrator.compute().image
    assert stats is not None
    return stats


cases = st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(3, 120))
ratios = st.sampled_from([Fraction(text) for text in ("0", "0.01", "0.1", "0.3", "0.5", "0.75", "0.9", "0.99", "1")])


shares = st.lists(
    st.sampled_from(["0", "0.001", "0.02", "0.1", "0.25", "0.5", "0.9", "0.999", "1"]),
    min_size=2,
    max_size=2,
    unique=True,
).map(lambda each: sorted(each, key=float))


def decimal(ratio: Fraction) -> str:
    """Return the exact decimal of a ratio."""
    return str(float(ratio))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=ONE_ROUTE)
@given(
    seed=st.integers(0, 10**6), size=st.integers(3, 120), ratio=ratios, beta=st.sampled_from(["1", "0.5", "2", "3.3"])
)
def test_every_policy_agrees_with_the_plain_definition(
    route: str, kind: str, seed: int, size: int, ratio: Fraction, beta: str
) -> None:
    """Threshold, counts and class sizes of every policy equal those of sorting everything with Python integers."""
    values, truth = values_of(kind, seed, size)
    plain, text, percent = Plain(values, truth), decimal(ratio), decimal(100 * ratio)
    of_all = Plain(values, np.zeros_like(truth)).quantile(ratio)
    expected = {
        "f1": plain.fbeta(Fraction(1)),
        f"fbeta={beta}": plain.fbeta(Fraction(beta)),
        f"recall={text}": plain.recall(ratio),
        f"precision={text}": plain.precision(ratio),
        f"fpr={text}": plain.fpr(ratio),
        f"quantile={text}": plain.quantile(ratio),
        f"percentile={percent}": of_all,
        f"percentile={percent},factor=1.421": nearest(Fraction(of_all) * Fraction(1421, 1000)),
    }
    stats = level_of(values, truth, "f1", compare=tuple(expected))
    assert (stats.min, stats.max) == (plain.distinct[0], plain.distinct[-1])
    assert (stats.n_normal, stats.n_anomalous) == (plain.normal, plain.anomalous)
    for row in stats.details["policies"]:
        threshold = expected[row["policy"]]
        assert row["threshold"] is None if threshold is None else np.float32(row["threshold"]) == threshold, row
        if threshold is not None:
            assert (row["tp"], row["fp"]) == plain.counts(threshold), row


@settings(max_examples=60, deadline=None, suppress_health_check=ONE_ROUTE)
@given(case=cases, shares=shares, share=st.sampled_from(["-0.5", "0.3", "1"]))
def test_every_range_agrees_with_the_plain_definition(
    route: str, case: tuple[str, int, int], shares: list[str], share: str
) -> None:
    """Min and max are the inverted-CDF quantiles of all values, `range=U` is between them, and nothing else moves."""
    values, truth = values_of(*case)
    low, high = (Plain(values, np.zeros_like(truth)).quantile(Fraction(each)) for each in shares)
    asked = {"image_range": f"quantile={','.join(shares)}", "compare": (f"range={share}", "recall=0.5")}
    if not low < high or not np.float32(high) - np.float32(low) >= 2.0**-75:
        with pytest.raises(CalibrationError, match=r"image.range with shares further apart, or extremes"):
            level_of(values, truth, "f1", **asked)
        return
    stats, whole = level_of(values, truth, "f1", **asked), level_of(values, truth, "f1", compare=asked["compare"])
    assert (stats.min, stats.max, stats.details["range"]) == (low, high, asked["image_range"])
    seen = stats.details["extremes"]
    assert (np.float32(seen["min"]), np.float32(seen["max"])) == (whole.min, whole.max)
    assert (whole.details["range"], "extremes" in whole.details) == ("extremes", False)
    assert (stats.threshold, stats.details["at_threshold"]) == (whole.threshold, whole.details["at_threshold"])
    within, recall = stats.details["policies"]
    assert recall == whole.details["policies"][1]
    threshold = nearest(Fraction(low) + Fraction(share) * (Fraction(high) - Fraction(low)))
    counts = Plain(values, truth).counts(threshold)
    assert (np.float32(within["threshold"]), within["tp"], within["fp"]) == (threshold, *counts)


@settings(max_examples=40, deadline=None)
@given(case=cases, shares=shares)
def test_one_pass_says_where_the_ends_of_a_range_are(case: tuple[str, int, int], shares: list[str]) -> None:
    """Within the limits that stand beside them lie the exact quantiles, and the numbers that were taken."""
    values, truth = values_of(*case)
    with pytest.MonkeyPatch.context() as patch, suppress(CalibrationError):
        patch.setattr(tally, "SMALL", 0)
        stats = level_of(values, truth, "f1", image_range=f"quantile={','.join(shares)}", exact=False)
        for name, share in zip(("min", "max"), shares, strict=True):
            low, high = stats.details["range_limits"][name]
            exact = Plain(values, np.zeros_like(truth)).quantile(Fraction(share))
            assert np.float32(low) <= exact <= np.float32(high)
            assert np.float32(low) <= getattr(stats, name) <= np.float32(high)


@settings(max_examples=60, deadline=None, suppress_health_check=ONE_ROUTE)
@given(case=cases)
def test_areas_lie_in_their_intervals(route: str, case: tuple[str, int, int]) -> None:
    """AUROC and average precision lie in the recorded intervals, which have no width where every value is known."""
    values, truth = values_of(*case)
    plain, stats = Plain(values, truth), level_of(values, truth, "f1")
    for name, exact in (("auroc", plain.auroc()), ("average_precision", plain.average_precision())):
        area = stats.details[name]
        assert area["low"] - 1e-12 <= exact <= area["high"] + 1e-12, (name, area)
        assert "batches" in route or area["width"] <= 1e-12
    curve = stats.details["curve"]
    for threshold, tp, fp in zip(curve["threshold"], curve["tp"], curve["fp"], strict=True):
        assert (tp, fp) == plain.counts(np.float32(threshold))


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_one_pass_says_how_far_it_is(case: tuple[str, int, int]) -> None:
    """Without a spool, F1 at the threshold is at most the stated gap below the best, and its counts are exact."""
    values, truth = values_of(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "SMALL", 0)
        stats = level_of(values, truth, "f1", exact=False)
    plain = Plain(values, truth)
    tp, fp = plain.counts(plain.fbeta(Fraction(1)))
    best = 2 * tp / (tp + fp + plain.anomalous)
    here = stats.details["at_threshold"]
    assert (here["tp"], here["fp"]) == plain.counts(stats.threshold or 0.0)
    assert best - here["f1"] <= stats.details["f1_gap"]


@settings(max_examples=25, deadline=None)
@given(case=cases, shards=st.integers(1, 5), data=st.data())
def test_order_and_sharding_do_not_matter(case: tuple[str, int, int], shards: int, data: st.DataObject) -> None:
    """Any order, split and merge of the same values gives the same statistics, the bootstrap interval included."""
    values, truth = values_of(*case)
    order = np.array(data.draw(st.permutations(range(values.size))))
    whole = Calibrator(resamples=20)
    whole.update(values, truth)
    parts = [Calibrator(resamples=20) for _ in range(shards)]
    for part, index in zip(parts, np.array_split(order, shards), strict=True):
        part.update(values[index], truth[index])
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].compute().to_json() == whole.compute().to_json()


class Counted:
    """The plain definition over counts per value, for more values than memory holds."""

    def __init__(self, table: Table) -> None:
        self.rows = list(zip(table.starts.tolist(), table.tp.tolist(), table.fp.tolist(), strict=True))
        self.positives, self.negatives = self.rows[0][1:]

    def best(self, square: Fraction) -> int:
        """Return the lowest key of the highest F-beta."""
        bottom = square * self.positives
        return max(self.rows, key=lambda row: (Fraction(row[1]) / (row[1] + row[2] + bottom), -row[0]))[0]

    def precise(self, ratio: Fraction) -> int | None:
        """Return the lowest key with that precision."""
        return min((key for key, tp, fp in self.rows if Fraction(tp, tp + fp) >= ratio), default=None)

    def recalling(self, ratio: Fraction) -> int:
        """Return the highest key with that recall."""
        return max(key for key, tp, _ in self.rows if Fraction(tp, self.positives) >= ratio)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([10**9, 10**12, 10**16]), near=st.booleans())
def test_huge_counts_are_decided_by_integers(seed: int, scale: int, near: bool) -> None:
    """Ties of a billion and totals beyond 10^12, also where F1 differs only in its 20th digit, are decided exactly."""
    rng = np.random.default_rng(seed)
    counts = scale + rng.integers(-3, 4, (2, 30)) if near else rng.integers(0, scale, (2, 30))
    counts[:, [0, -1]] += 1
    starts = np.sort(rng.choice(2**20, 30, replace=False)).astype(np.uint32)
    table = Table(
        starts=starts,
        widths=np.zeros(30, np.uint8),
        normal=counts[0],
        anomalous=counts[1],
        low=int(starts[0]),
        high=int(starts[-1]),
    )
    plain, ratio = Counted(table), Fraction(int(table.tp[7]), int(table.tp[7] + table.fp[7]))

    def key(search: Any) -> int | None:
        outcome = search(table)
        return outcome.key if isinstance(outcome, Found) else None

    assert key(BestRatio(1, 1)) == plain.best(Fraction(1))
    assert key(BestRatio(1089, 100)) == plain.best(Fraction(1089, 100))
    assert key(LowestPrecise(ratio)) == plain.precise(ratio)
    rank = int(table.tp[11])
    assert key(partial(ranked, counts="tp", rank=rank)) == plain.recalling(Fraction(rank, plain.positives))


@pytest.mark.parametrize("policy", ["f1", "recall=0.5", "precision=0.5"])
def test_only_normal_values_warn_and_take_the_highest(route: str, policy: str) -> None:
    """Without anomalous samples the threshold is the highest value seen, and the statistics say which rule applied."""
    values = np.random.default_rng(1).normal(size=50).astype(np.float32)
    with pytest.warns(CalibrationWarning, match="only normal samples"):
        stats = level_of(values, np.zeros(50, bool), policy)
    assert (stats.threshold, stats.rule, stats.n_anomalous) == (float(values.max()), "only_normal", 0)


def test_policies_that_need_only_normal_values_do_not_warn(route: str) -> None:
    """`fpr` and `quantile` are defined without anomalous samples."""
    values = np.arange(100, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert level_of(values, np.zeros(100, bool), "fpr=0.05").threshold == 95
        assert level_of(values, np.zeros(100, bool), "quantile=0.95").threshold == 94


def test_options_default_to_an_exact_result() -> None:
    """A level is exact unless asked otherwise."""
    assert CalibratorOptions().exact
