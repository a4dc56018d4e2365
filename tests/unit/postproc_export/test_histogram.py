"""Histograms: every sample in its bin, tails apart, no class in one bin, and what is not known said."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from postproc_export.calibration import Calibrator
from postproc_export.float32 import narrowed
from postproc_export.histogram import Histogram, histogram_lines
from postproc_export.stats import LevelStats

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of values that hardly tell the classes apart
RANDOM = np.random.default_rng(3)


def calibrated(normal: ArrayLike, anomalous: ArrayLike) -> LevelStats:
    """Return the statistics of such image scores."""
    values = np.concatenate([normal, anomalous]).astype(np.float32)
    labels = np.repeat([0, 1], [np.size(normal), np.size(anomalous)])
    with Calibrator(resamples=0, compare=()) as calibrator:
        calibrator.update(values, labels)
        found = calibrator.compute().image
    assert found is not None
    return found


def counted(values: ArrayLike, histogram: Histogram) -> NDArray[np.int64]:
    """Count values in the bins one by one, all that are below an edge or at it in the last one."""
    rounded, lows = np.asarray(values, dtype=np.float32), np.array([each.low for each in histogram.bins])
    return np.bincount(np.searchsorted(lows, rounded, side="right") - 1, minlength=len(lows))


def histogram_of(stats: LevelStats, **options: Any) -> Histogram:
    """Return the histogram of statistics that hold a curve."""
    found = Histogram.of(stats, **options)
    assert found is not None
    return found


VALUES = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=60)


@given(VALUES, VALUES, st.integers(2, 40), st.floats(0, 1))
def test_every_sample_is_in_its_bin(normal: list[float], anomalous: list[float], count: int, share: float) -> None:
    """Of any values: the bins follow one another from the lowest to the highest, and hold what lies between."""
    values = np.float32([*normal, *anomalous]) + np.float32(0)
    assume(float(values.max()) - float(values.min()) >= 2.0**-75)
    stats = calibrated(normal, anomalous)
    assert stats.threshold is not None
    mark = float(np.float32(stats.min + share * (stats.max - stats.min)))
    found = histogram_of(stats, count=count, marks=[stats.threshold, mark, float("-inf"), float("inf")])
    assert found.error == 0
    assert (found.bins[0].low, found.bins[-1].high) == (values.min(), values.max())
    assert all(here.high == there.low for here, there in pairwise(found.bins))
    assert {stats.threshold, mark} <= {*(each.low for each in found.bins), found.bins[-1].high}
    assert [each.normal for each in found.bins] == counted(normal, found).tolist()
    assert [each.anomalous for each in found.bins] == counted(anomalous, found).tolist()
    assert len(found.bins) <= count + 7
    lines = [*histogram_lines("image", stats, boundary=mark)]
    assert max(map(len, lines)) <= 76


@pytest.mark.parametrize(
    ("normal", "anomalous", "is_even"),
    [
        pytest.param(RANDOM.normal(0, 1, 40_000), RANDOM.normal(4, 1, 5_000), True, id="normal"),
        pytest.param(RANDOM.lognormal(0, 1, 40_000), RANDOM.lognormal(2, 1.5, 5_000), False, id="heavy"),
        pytest.param(RANDOM.integers(0, 9, 40_000), RANDOM.integers(5, 14, 5_000), True, id="few-values"),
        pytest.param(
            np.r_[np.zeros(9_000), RANDOM.random(9_000)], 2 + RANDOM.random(900), True, id="half-of-them-zero"
        ),
    ],
)
def test_a_thinned_curve_tells_how_far_counts_may_be_off(normal: Any, anomalous: Any, is_even: bool) -> None:
    """Counts of more samples than a curve has points are no further off than is said, which is little, and add up."""
    found = histogram_of(calibrated(normal, anomalous), count=20)
    assert found.is_even is is_even
    for name, values in (("normal", normal), ("anomalous", anomalous)):
        told = np.array([getattr(each, name) for each in found.bins])
        assert told.sum() == len(values)
        assert np.abs(told - counted(values, found)).max() <= found.error <= 2 * len(normal) // 900 + 2


def test_a_complete_curve_is_exact_and_says_nothing_of_thinning() -> None:
    """Up to 1,999 samples; the text of more says within what its counts are right."""
    few, many = (calibrated(RANDOM.normal(0, 1, size), RANDOM.normal(3, 1, 99)) for size in (1_900, 1_901))
    assert histogram_of(few).error == 0
    assert not [line for line in histogram_lines("image", few, boundary=few.threshold) if "thinned" in line]
    error = histogram_of(many, marks=[many.threshold or 0.0]).error
    assert error > 0
    assert f"counts are right within {error}" in "\n".join(histogram_lines("image", many, boundary=many.threshold))


def test_values_far_out_are_a_tail_and_press_nothing_together() -> None:
    """One image at 10^30 is counted in a bin of its own, told as a tail; without it there is none."""
    normal, anomalous = RANDOM.normal(0, 1, 100), RANDOM.normal(5, 1, 50)
    near, far = histogram_of(calibrated(normal, anomalous)), histogram_of(calibrated(normal, [*anomalous, 1e30]))
    assert not any(each.is_tail for each in near.bins)
    assert [(each.normal, each.anomalous) for each in far.bins if each.is_tail] == [(0, 1)]
    assert sum(each.normal > 0 for each in far.bins) >= 3
    assert "tail" in [*histogram_lines("image", calibrated(normal, [*anomalous, 1e30]), boundary=0)][-1]


def test_a_class_that_lies_close_together_keeps_its_shape() -> None:
    """Beside anomalous values a thousand times as wide, normal ones still fill several bins."""
    found = histogram_of(calibrated(RANDOM.random(300), 1000 * RANDOM.random(300)))
    assert not found.is_even
    assert sum(each.normal > 5 for each in found.bins) >= 2
    assert sum(each.anomalous > 5 for each in found.bins) >= 4


def test_bars_are_logarithmic_where_counts_differ_much() -> None:
    """Ten to one are bars of one scale; a thousand to one are not, and a single sample has a bar still."""
    plain = [*histogram_lines("image", calibrated(np.linspace(0, 1, 100), [5.0] * 10), boundary=5)]
    steep = [*histogram_lines("image", calibrated(np.linspace(0, 0.01, 1_000), [5.0]), boundary=5)]
    assert not any("logarithmic" in line for line in plain)
    assert any("logarithmic" in line for line in steep)
    assert steep[-1].split()[-2:] == ["1", "###"]


def test_threshold_and_boundary_stand_between_the_rows_that_they_divide() -> None:
    """One line where they are one value; a boundary beyond all values before the first row, or behind the last."""
    stats = calibrated([0.0, 1.0, 2.0], [2.0, 3.0, 4.0])
    assert stats.threshold == 2.0
    lines = [*histogram_lines("image", stats, boundary=3.0)]
    rows = {line.split(" ")[1]: number for number, line in enumerate(lines) if line.startswith("-- ")}
    assert [*rows] == ["threshold", "boundary"]
    assert lines[rows["boundary"] + 1].startswith("3 to ")
    (both,) = [line for line in histogram_lines("image", stats, boundary=2.0) if line.startswith("--")]
    assert both.startswith("-- threshold and boundary 2 --")
    assert [*histogram_lines("image", stats, boundary=float("-inf"))][2].startswith("-- boundary -inf")
    assert [*histogram_lines("image", stats, boundary=float("inf"))][-1].startswith("-- boundary inf")


def test_the_boundary_of_a_narrow_host_divides_as_the_host_does() -> None:
    """The constant that stands below a float16 threshold leaves the samples at the threshold above it."""
    values = np.float16(RANDOM.normal(0, 1, 3_000))
    stats = calibrated(values, values[:500] + np.float16(1))
    assert stats.threshold is not None
    boundary = narrowed(stats.threshold, "float16")
    assert boundary < stats.threshold
    found = histogram_of(stats, marks=[boundary], half="float16")
    rates = stats.details["at_threshold"]
    above = [each for each in found.bins if each.low >= boundary]
    assert sum(each.anomalous for each in above) == rates["tp"]
    assert sum(each.normal for each in above) == rates["fp"]


def test_one_class_and_no_curve() -> None:
    """Normal images alone have a histogram; statistics that were typed in have none, and no line of text."""
    alone = calibrated(RANDOM.normal(0, 1, 300), [])
    assert sum(each.normal for each in histogram_of(alone).bins) == 300
    typed = LevelStats(threshold=1.0, min=0.0, max=2.0)
    assert Histogram.of(typed) is None
    assert [*histogram_lines("image", typed, boundary=1.0)] == []


@pytest.mark.parametrize("number", [-5, 0, 10**400])
def test_counts_that_cannot_be_are_told_and_break_nothing(number: int) -> None:
    """A file may hold any integers: `inspect` of it still tells the rest."""
    stats = calibrated([0.0, 1.0, 2.0], [2.0, 3.0, 4.0])
    broken = json.loads(json.dumps(stats.details["curve"]))
    broken["tp"] = [number] * len(broken["tp"])
    for normal in (3, 0, 3_000):
        changed = replace(stats, n_normal=normal, details={"curve": broken})
        lines = [*histogram_lines("image", changed, boundary=2.0)]
        damaged = (number, normal) not in ((0, 3), (0, 3_000))
        assert (lines == ["image level: the statistics have a damaged curve"]) == damaged
