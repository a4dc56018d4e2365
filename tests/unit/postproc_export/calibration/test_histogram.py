"""The first pass counts buckets, or every key of a few of them, which gives the same table."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from postproc_export.calibration import counting
from postproc_export.calibration.counting import CoarseHistogram
from postproc_export.calibration.table import ordered_keys

NARROW = [
    pytest.param(lambda rng: 1000 + rng.standard_normal(5000), id="offset"),
    pytest.param(lambda rng: -1000 + rng.standard_normal(5000), id="negative"),
    pytest.param(lambda rng: rng.integers(-3, 4, 5000) * 2.0**-149, id="subnormal-of-both-signs"),
    pytest.param(lambda rng: rng.choice([0.0, -0.0, 1e-45], 5000), id="both-zeros"),
    pytest.param(lambda rng: rng.choice([-0.0, -1e-45], 5000), id="negative-zero-on-top"),
    pytest.param(lambda rng: np.full(5000, -0.0), id="negative-zero-alone"),
    pytest.param(lambda rng: rng.choice([1.0, np.nextafter(np.float32(1), np.float32(0))], 5000), id="an-edge"),
    pytest.param(lambda rng: np.finfo(np.float32).max * (1 - rng.random(5000) * 1e-3), id="largest"),
    pytest.param(lambda rng: -np.finfo(np.float32).max * (1 - rng.random(5000) * 1e-3), id="lowest"),
]


def narrow(draw: Callable[[np.random.Generator], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return values in few buckets, and their ground truth."""
    rng = np.random.default_rng(3)
    return draw(rng).astype(np.float32), rng.random(5000) < 0.1


def counted(values: np.ndarray, truth: np.ndarray) -> CoarseHistogram:
    """Return the histogram of values in five blocks."""
    histogram = CoarseHistogram()
    for part, flags in zip(np.array_split(values, 5), np.array_split(truth, 5), strict=True):
        histogram.add(part, flags, low=float(part.min()), high=float(part.max()))
    return histogram


def assert_same(one: CoarseHistogram, other: CoarseHistogram) -> None:
    """Both have the same buckets."""
    tables = [each.table(low=0, high=2**32 - 1) for each in (one, other)]
    for name in ("starts", "widths", "normal", "anomalous"):
        np.testing.assert_array_equal(*(getattr(table, name) for table in tables))


@pytest.mark.parametrize("draw", NARROW)
def test_counting_keys_counts_the_buckets_too(
    draw: Callable[[np.random.Generator], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of values in few buckets every key is counted; their sums are what is counted of the buckets alone."""
    values, truth = narrow(draw)
    by_key = counted(values, truth)
    exact = by_key.exact_table(low=0, high=2**32 - 1)
    assert exact is not None
    keys = ordered_keys(values + np.float32(0))
    for flags, counts in ((truth, exact.anomalous), (~truth, exact.normal)):
        met, expected = np.unique(keys[flags], return_counts=True)
        np.testing.assert_array_equal(exact.starts[counts > 0], met)
        np.testing.assert_array_equal(counts[counts > 0], expected)
    monkeypatch.setattr(counting, "FEW", -1)
    by_bucket = counted(values, truth)
    assert by_bucket.exact_table(low=0, high=2**32 - 1) is None
    assert_same(by_key, by_bucket)


def test_both_classes_are_counted_at_once_on_a_32_bit_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of values are of its own size, wherever the row of their class stands in them."""
    monkeypatch.setattr(counting, "FEW", -1)
    expected = counted(*narrow(NARROW[0].values[0]))
    monkeypatch.setattr(counting.Scratch, "__init__", lambda own: setattr(own, "_held", np.empty(5000, np.int32)))
    assert_same(counted(*narrow(NARROW[0].values[0])), expected)


@pytest.mark.parametrize("second", [0.999, 1.001, 1.5, -1.0])
def test_histograms_add_up_whatever_they_count(second: float) -> None:
    """Values of the same buckets, of others near by or far away, in either order, and after a way between processes."""
    (values, truth), other = narrow(NARROW[0].values[0]), narrow(NARROW[0].values[0])[0] * np.float32(second)
    whole = counted(np.concatenate([values, other]), np.concatenate([truth, truth]))
    for first, then in ((values, other), (other, values)):
        histogram, added = counted(first, truth), counted(then, truth)
        travelled = pickle.loads(pickle.dumps(histogram))
        for each in (histogram, travelled):
            each.merge(added)
            assert_same(each, whole)
        assert_same(added, counted(then, truth))
    empty = CoarseHistogram()
    empty.merge(CoarseHistogram())
    empty.merge(whole)
    assert_same(empty, whole)
