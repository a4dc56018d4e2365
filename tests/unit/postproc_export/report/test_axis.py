"""Where raw values stand on the axis of a plot."""

from dataclasses import replace

import numpy as np
import pytest
from report_stats import heavy_tails, stats_of, two_bells

from postproc_export.curve import Curve
from postproc_export.report.axis import Kind, ValueAxis
from postproc_export.stats import CalibrationStats


def axis_of(stats: CalibrationStats) -> ValueAxis:
    """Return the axis of the image level."""
    assert stats.image is not None
    curve = Curve.of(stats.image)
    assert curve is not None
    return ValueAxis.of(stats.image, curve)


def two_outliers() -> CalibrationStats:
    """Calibrate on two narrow classes with one value far above them and one far below."""
    generator = np.random.default_rng(0)
    normal, anomalous = 1 + 0.1 * generator.standard_normal(60), 2 + 0.3 * generator.standard_normal(40)
    return stats_of(normal.tolist(), [*anomalous.tolist(), 500.0, -80.0])


def endless(stats: CalibrationStats) -> CalibrationStats:
    """Damage what the statistics say of the highest value."""
    assert stats.image is not None
    return replace(stats, image=replace(stats.image, details={**stats.image.details, "extremes": {"max": "none"}}))


@pytest.mark.parametrize(
    ("stats", "kind"),
    [
        pytest.param(two_bells(), "linear", id="two-bells"),
        pytest.param(heavy_tails(), "log", id="heavy-tails"),
        pytest.param(two_outliers(), "tails", id="outliers"),
        pytest.param(endless(two_outliers()), "tails", id="highest-not-known"),
    ],
)
def test_the_middle_of_each_class_is_seen(stats: CalibrationStats, kind: Kind) -> None:
    """Places rise with the values on every kind of axis, every value has one, and no class is squeezed to a line."""
    axis = axis_of(stats)
    assert axis.kind == kind
    assert stats.image is not None
    values = sorted({*np.linspace(axis.lowest, axis.highest, 500).tolist(), *stats.image.details["curve"]["threshold"]})
    places = [axis.place(value) for value in values]
    assert places == sorted(places)
    low, high = axis.ends
    assert (places[0], places[-1]) == (low, high)
    assert low < axis.place(stats.image.threshold or 0.0) < high
    assert axis.place(float("-inf")) == low
    assert axis.place(float("inf")) == high
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 20
    assert all(low - 1e-9 <= place <= high + 1e-9 for place, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


def test_an_axis_says_how_it_is_drawn() -> None:
    """A logarithmic axis and drawn together tails are named."""
    assert axis_of(two_bells()).title() == "raw value"
    assert axis_of(heavy_tails()).title() == "raw value, logarithmic"
    assert "the tails beyond drawn together" in axis_of(two_outliers()).title()


def test_one_class_has_an_axis() -> None:
    """Normal values alone are drawn, too."""
    with pytest.warns(UserWarning, match="only normal"):
        stats = stats_of([1.0, 1.5, 2.0, 2.5], [])
    assert axis_of(stats).ends == (1.0, 2.5)
