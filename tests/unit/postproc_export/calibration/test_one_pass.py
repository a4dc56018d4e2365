"""One pass without a spool: what it knows, and how far it says it can be off."""

import numpy as np
import pytest

from postproc_export.calibration import Calibrator
from postproc_export.errors import CalibrationError


def test_one_pass_does_not_claim_counts_within_a_bucket(tiny_spool: None) -> None:
    """Without a spool the counts at a threshold inside a bucket are not known, only how far F1 can be off."""
    calibrator = Calibrator(image_policy="value=1.001", exact=False, resamples=0)
    calibrator.update(1 + np.arange(8) / 2048, np.arange(8) % 2)
    stats = calibrator.compute().image
    assert stats is not None
    assert (stats.details["at_threshold"], stats.details["exact"]) == (None, False)
    assert stats.details["f1_gap"] == 1.0  # all eight share a bucket: the best could be 1, and this one 0


@pytest.mark.parametrize("policy", ["value=-5", "value=99", "fpr=0", "recall=0.5", "quantile=0.5"])
def test_one_pass_knows_how_far_f1_can_be_off_whatever_the_policy(tiny_spool: None, policy: str) -> None:
    """The gap is there at every threshold, inside a bucket or not, and holds against the best of all thresholds."""
    values, truth = np.linspace(-1, 3, 301).astype(np.float32), np.arange(301) % 3 == 0
    calibrator = Calibrator(image_policy=policy, exact=False, resamples=0)
    calibrator.update(values, truth)
    stats = calibrator.compute().image
    assert stats is not None
    at = [*np.unique(values), np.float32(stats.threshold)]
    f1 = [2 * (truth & (values >= t)).sum() / ((values >= t).sum() + truth.sum()) for t in at]
    assert max(f1) - f1[-1] <= stats.details["f1_gap"] + 1e-12


def test_one_pass_does_not_call_out_of_reach_what_a_bucket_may_hold(tiny_spool: None) -> None:
    """Where only the edges of buckets keep below the precision asked for, one pass says what it does not know."""
    values, truth = np.array([-1, 1, 1.001, 1.002]), np.array([0, 0, 0, 1])
    calibrator = Calibrator(image_policy="precision=0.9", exact=False, resamples=0)
    calibrator.update(values, truth)
    with pytest.raises(CalibrationError, match=r"what one pass can tell\n.*at least 0.333(.|\n)*may be 1\n"):
        calibrator.compute()
    exact = Calibrator(image_policy="precision=0.9", resamples=0)
    exact.update(values, truth)
    assert exact.compute().image.threshold == np.float32(1.002)
