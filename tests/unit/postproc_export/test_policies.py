"""The text form of operating points, and thresholds that follow without a search."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from postproc_export.calibration import COMPARED, Calibrator, Policy
from postproc_export.errors import CalibrationError, UsageError
from postproc_export.float32 import nearest
from postproc_export.stats import LevelStats


def calibrated(values: Sequence[float], truth: Sequence[int], policy: str, **options: Any) -> LevelStats:
    """Return the statistics of the image level."""
    with Calibrator(image_policy=policy, **{"resamples": 0, **options}) as calibrator:
        calibrator.update(values, truth)
        stats = calibrator.compute().image
    assert stats is not None
    return stats


LEGAL = [
    pytest.param("f1", "f1", Fraction(1), id="f1"),
    pytest.param(" FBeta = 2 ", "fbeta", Fraction(2), id="spaces"),
    pytest.param("recall=0.99", "recall", Fraction(99, 100), id="exact-decimal"),
    pytest.param("fpr=1e-3", "fpr", Fraction(1, 1000), id="exponent"),
    pytest.param("value=-.5", "value", Fraction(-1, 2), id="negative"),
    pytest.param("range=1.25", "range", Fraction(5, 4), id="beyond"),
    pytest.param("percentile=99.9", "percentile", Fraction(999, 1000), id="percentile"),
    pytest.param(" Percentile = 95 , Factor = 1.421 ", "percentile", Fraction(95, 100), id="factor"),
]


@pytest.mark.parametrize(("text", "kind", "parameter"), LEGAL)
def test_numbers_are_exact_decimals(text: str, kind: str, parameter: Fraction) -> None:
    """0.99 is 99/100, not the float next to it."""
    policy = Policy.parse(text)
    assert (policy.kind, policy.parameter) == (kind, parameter)
    assert Policy.parse(policy.text) == policy


ILLEGAL = [
    pytest.param("best", "unknown policy 'best'", id="unknown"),
    pytest.param("f1=2", "takes no number", id="f1-number"),
    pytest.param("recall", "no number that can be read", id="no-number"),
    pytest.param("recall=nan", "no number that can be read", id="nan"),
    pytest.param("recall=1/2", "no number that can be read", id="fraction"),
    pytest.param("recall=1.01", r"out of range\n.*1\.01\n.*\[0, 1\]", id="above-one"),
    pytest.param("fbeta=0", "a decimal above 0", id="beta-zero"),
    pytest.param("recall=0.9,1", "no number that can be read", id="two-numbers"),
    pytest.param("percentile=100.1", r"out of range\n.*100\.1\n.*\[0, 100\]", id="above-all"),
    pytest.param("percentile=95,", "cannot be read\n.*nothing\n.*percentile=Q,factor=F", id="no-factor"),
    pytest.param("percentile=95,times=2", "cannot be read\n.*times=2", id="another-word"),
    pytest.param("percentile=95,factor=-1", r"out of range\n.*-1\n.*above 0", id="negative-factor"),
    pytest.param("percentile=95,factor=", "no number that can be read", id="factor-without-number"),
    pytest.param("mebin", "mebin' has no threshold.*\n.*each image.*connected parts", id="mebin"),
]


@pytest.mark.parametrize(("text", "message"), ILLEGAL)
def test_other_texts_are_refused(text: str, message: str) -> None:
    """The message says what the policy needs."""
    with pytest.raises(UsageError, match=message):
        Calibrator(pixel_policy=text)


def test_the_compared_policies_are_legal() -> None:
    """The table that users choose from parses."""
    assert [Policy.parse(text).text for text in COMPARED] == list(COMPARED)


FIXED = [
    pytest.param("value=0.1", float(np.float32(0.1)), 4, id="value-rounded"),
    pytest.param("value=99", 99.0, 0, id="value-above-all"),
    pytest.param("value=-99", -99.0, 7, id="value-below-all"),
    pytest.param("range=0.5", 3.0, 4, id="range"),
    pytest.param("range=1.5", 9.0, 0, id="range-above-all"),
    pytest.param("percentile=0", 0.0, 7, id="lowest"),
    pytest.param("percentile=50", 3.0, 4, id="percentile"),
    pytest.param("percentile=57.15", 4.0, 3, id="just-above-four-of-seven"),
    pytest.param("percentile=100", 6.0, 1, id="highest"),
    pytest.param("percentile=50,factor=1.421", float(np.float32(4.263)), 2, id="factor"),
]


@pytest.mark.parametrize(("policy", "threshold", "positives"), FIXED)
def test_fixed_thresholds_come_with_counts(policy: str, threshold: float, positives: int) -> None:
    """A threshold that nobody searched for has TP and FP too."""
    calibrator = Calibrator(image_policy=policy, resamples=0)
    calibrator.update([0.0, 0.05, 0.0, 3.0, 4.0, 5.0, 6.0], [0, 0, 1, 0, 1, 1, 1])
    stats = calibrator.compute().image
    assert stats is not None
    assert stats.threshold == threshold
    found = stats.details["at_threshold"]
    assert (found["tp"] + found["fp"], found["tp"] + found["fn"]) == (positives, 4)


@pytest.mark.parametrize("policy", ["value=1e39", "value=-1e39", "value=3.4028236e38"])
def test_a_threshold_beyond_float32_is_refused(policy: str) -> None:
    """No infinite threshold is made, and the largest float32 is one as statistics write it."""
    with pytest.raises(UsageError, match="is no finite float32"):
        Policy.parse(policy)
    assert Policy.parse("value=3.4028235e38").is_fixed


def test_a_share_of_the_range_beyond_float32_is_refused() -> None:
    """What follows from the data is refused when the data is known, and as a row of a table says nothing else."""
    values, truth = [2e38, 2.5e38, 2.1e38], [0, 1, 1]
    with pytest.raises(CalibrationError, match=r"cannot reach range=9(.|\n)*beyond the largest float32"):
        calibrated(values, truth, "range=9")
    with pytest.raises(CalibrationError, match=r"cannot reach percentile=9,factor=2(.|\n)*ask for a smaller factor"):
        calibrated(values, truth, "percentile=9,factor=2")
    stats = calibrated(values, truth, "f1", compare=["range=9"])
    assert stats.details["policies"] == [{"policy": "range=9", "rule": "range=9", "threshold": None}]


TOP = float(np.finfo(np.float32).max)


def test_no_threshold_lies_above_the_largest_float32() -> None:
    """Where normal values are the largest float32, a rate of 0 is out of reach, and what is in reach is said."""
    values, truth = [TOP - 2.0**124, TOP - 2.0**125, TOP, TOP - 2.0**123], [0, 1, 0, 0]
    with pytest.raises(CalibrationError, match=r"cannot reach fpr=0(.|\n)*1 of 3 (.|\n)*ask for fpr=0.3334 or more"):
        calibrated(values, truth, "fpr=0")
    assert calibrated(values, truth, "fpr=0.3334").threshold == TOP
    stats = calibrated(values, truth, "f1", compare=["fpr=0"], resamples=50)
    assert stats.details["policies"][0]["threshold"] is None
    assert np.isfinite(stats.details["threshold_interval"]["high"])


def test_a_row_that_cannot_be_reached_says_what_can() -> None:
    """The highest precision there is stands beside a policy that asks for more."""
    stats = calibrated([1.0, 2.0, 3.0, 4.0], [0, 1, 1, 0], "f1", compare=["precision=0.9", "recall=1"])
    unreached, reached = stats.details["policies"]
    assert unreached["reachable"] == {"precision": 2 / 3, "threshold": 2.0}
    assert "reachable" not in reached


ROUNDED = [
    pytest.param(Fraction(1) + Fraction(1, 2**24), 1.0, id="tie-down-to-even"),
    pytest.param(Fraction(1) + Fraction(3, 2**24), 1 + 2.0**-22, id="tie-up-to-even"),
    pytest.param(Fraction(1) + Fraction(1, 2**24) + Fraction(1, 2**70), 1 + 2.0**-23, id="no-double-rounding"),
    pytest.param(-Fraction(1, 2**151), 0.0, id="to-zero"),
    pytest.param(-(Fraction(1) + Fraction(3, 2**24)), -1 - 2.0**-22, id="negative"),
    pytest.param(Fraction(10) ** 60, float("inf"), id="overflow"),
]


@pytest.mark.parametrize(("exact", "rounded"), ROUNDED)
def test_rationals_round_once(exact: Fraction, rounded: float) -> None:
    """To nearest, ties to even, without a float64 in between."""
    assert nearest(exact) == rounded
