"""What a report knows of a level: every setting, and figures that are those of the curve."""

from bisect import bisect_right
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from report_stats import stats_of, thinned, two_bells

from postproc_export.curve import Counts, Limits, counts_at
from postproc_export.errors import CalibrationError, MetadataError
from postproc_export.float32 import Half, ranked, to_float32
from postproc_export.options import TailOptions
from postproc_export.report.levels import LevelView, facts, percent
from postproc_export.stats import CalibrationStats, Comparison, decision_boundary
from postproc_export.update import State

VALUES = st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=2, max_size=30)


def shown(document: dict[str, Any], sensitivity: float) -> tuple[list[int], list[int]]:
    """Return what the page looks up at a sensitivity: true and false positives, each the fewest and the most."""
    index = bisect_right([to_float32(each) for each in document["least"]], to_float32(sensitivity)) - 1
    return [document["tp"][index], document["tpMost"][index]], [document["fp"][index], document["fpMost"][index]]


def agrees(stats: CalibrationStats, comparison: Comparison, half: Half | None, sensitivities: list[float]) -> int:
    """Compare what the page shows with the counts of the curve, and return at how many sensitivities."""
    level = stats.image or stats.pixel
    assert level is not None
    name = "image" if stats.image else "pixel"
    options = TailOptions(comparison=comparison)
    view = LevelView.of(name, State(stats, options, {} if half is None else {name: half}))
    assert view is not None
    document, compared = view.to_json(), 0
    begins = [to_float32(each) for each in document["least"]]
    for sensitivity in [0.0, 0.5, 1.0, *sensitivities, *begins[:30], *document["decimal"][-30:]]:
        try:
            boundary = decision_boundary(level, sensitivity=sensitivity, comparison=comparison, dtype=half or "float32")
        except MetadataError:  # subnormal
            continue
        found = counts_at(level, boundary, half)
        assert found is not None
        assert shown(document, sensitivity) == ([*found.tp], [*found.fp])
        compared += 1
    return compared


@pytest.mark.parametrize("comparison", ["ge", "gt"])
@pytest.mark.parametrize("half", [None, "float16", "bfloat16"])
@settings(max_examples=10)
@given(normal=VALUES, anomalous=VALUES, sensitivities=st.lists(st.floats(0, 1), max_size=20))
def test_every_sensitivity_shows_what_the_curve_counts(
    comparison: Comparison, half: Half | None, normal: list[float], anomalous: list[float], sensitivities: list[float]
) -> None:
    """At any sensitivity, listed or not, the page's counts are those of the boundary, for every rule and host."""
    try:
        stats = stats_of(normal, anomalous)
    except CalibrationError:  # the values are too near to one another for a range
        reject()
    assert agrees(stats, comparison, half, sensitivities) >= 3


@pytest.mark.parametrize("half", [None, "float16", "bfloat16"])
def test_a_thinned_curve_shows_between_which_counts_the_truth_lies(half: Half | None) -> None:
    """Of more samples than the curve has points the fewest and the most are shown, and exact ones at its thresholds."""
    stats = thinned()
    assert agrees(stats, "ge", half, np.random.default_rng(1).uniform(0.3, 0.7, 100).tolist()) > 100
    view = LevelView.of("pixel", State(stats))
    assert view is not None
    kinds = {each.counts.tp[0] == each.counts.tp[1] for each in view.settings}
    assert kinds == {True, False}


def test_settings_are_apart() -> None:
    """Settings rise, each has a decimal of its own, and the float32 before it belongs to the one before."""
    view = LevelView.of("image", State(two_bells()))
    assert view is not None
    begins = [each.least for each in view.settings]
    assert begins[0] == 0.0
    assert begins == sorted(set(begins))
    assert all(one.counts != other.counts for one, other in zip(view.settings, view.settings[1:], strict=False))
    ends = [*begins[1:], ranked(0x3F800001)]
    for each, end in zip(view.settings, ends, strict=True):
        assert each.least <= to_float32(each.decimal) < end


def test_rates_are_exact_fractions() -> None:
    """Rates are those of the counts; of limits the lowest and the highest that each can be."""
    assert Counts((3, 3), (1, 1), 4, 10).shares == {
        "recall": ((3, 4),) * 2,
        "precision": ((3, 4),) * 2,
        "f1": ((6, 8),) * 2,
        "fpr": ((1, 10),) * 2,
    }
    limits = Counts((2, 3), (0, 5), 4, 10).shares
    assert limits["precision"] == ((2, 7), (3, 3))
    assert limits["f1"] == ((4, 11), (6, 7))
    assert Counts((2, 3), (0, 5), 4, 10).matrix == {
        "found": "2 to 3",
        "missed": "1 to 2",
        "false alarms": "0 to 5",
        "passed": "5 to 10",
    }
    assert Counts((0, 0), (0, 0), 4, 0).shares["precision"] is None
    assert Counts((0, 0), (0, 0), 4, 0).shares["fpr"] is None


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (None, "-"),
        (((4, 5), (4, 5)), "80.00 %"),
        (((0, 3), (7, 7)), "0.00 to 100.00 %"),
        (((1, 10**9), (1, 10**9)), "0.0000001 %"),
        (((999_999, 10**6),) * 2, "99.9999 %"),
        (((1, 3), (33_333, 10**5)), "33.33 %"),
        (((1, 32), (1, 32)), "3.12 %"),  # 3.125: half to even
    ],
)
def test_what_is_not_all_does_not_look_so(limits: Limits | None, text: str) -> None:
    """A rate has two decimals, or as many as tell it from 0 and from 1."""
    assert percent(limits) == text


def test_a_level_without_a_threshold_is_none() -> None:
    """What does not decide has no settings; statistics without a curve have a boundary alone."""
    assert LevelView.of("pixel", State(two_bells())) is None
    plain = CalibrationStats.from_json({"schema_version": 1, "image": {"threshold": 1, "min": 0, "max": 3}})
    view = LevelView.of("image", State(plain))
    assert view is not None
    assert view.to_json()["least"] == []
    assert ("curve", "none in these statistics: what a setting finds is not known") in [*facts(view)]
