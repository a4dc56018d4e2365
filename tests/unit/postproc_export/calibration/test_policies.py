"""The text form of operating points, and thresholds that follow without a search."""

from fractions import Fraction

import numpy as np
import pytest

from postproc_export.calibration import COMPARED, Calibrator, Policy
from postproc_export.calibration.thresholds.operating import nearest_float32
from postproc_export.errors import CalibrationError, UsageError

LEGAL = [
    pytest.param("f1", "f1", Fraction(1), id="f1"),
    pytest.param(" FBeta = 2 ", "fbeta", Fraction(2), id="spaces"),
    pytest.param("recall=0.99", "recall", Fraction(99, 100), id="exact-decimal"),
    pytest.param("fpr=1e-3", "fpr", Fraction(1, 1000), id="exponent"),
    pytest.param("value=-.5", "value", Fraction(-1, 2), id="negative"),
    pytest.param("range=1.25", "range", Fraction(5, 4), id="beyond"),
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


def test_a_threshold_beyond_float32_is_refused() -> None:
    """No infinite threshold is made."""
    calibrator = Calibrator(image_policy="value=1e39")
    calibrator.update([0.0, 1.0], [0, 1])
    with pytest.raises(CalibrationError, match="gives no finite float32"):
        calibrator.compute()


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
    assert nearest_float32(exact) == rounded
