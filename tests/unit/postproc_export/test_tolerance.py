"""`comparison`: every entry has a reason, follows from the statistics, and holds against the real formulas."""

import numpy as np
import pytest

from postproc_export.check.inputs import raw_values
from postproc_export.comparison import EXACT, TOLERANCES, fused
from postproc_export.stats import LevelStats, choose_form, unit_constants, unit_scores

LEVELS = {
    "plain": LevelStats(threshold=2.5, min=-1.0, max=7.0),
    "negative": LevelStats(threshold=-13.7, min=-20.1, max=-9.3),
    "outside": LevelStats(threshold=9.0, min=-1.0, max=7.0),
    "large-ratio": LevelStats(threshold=1000.0, min=995.0, max=1003.0),
    "smallest-span": LevelStats(threshold=2.0**-75, min=0.0, max=2.0**-75),
    "largest-span": LevelStats(threshold=2.0**125, min=0.0, max=2.0**126),
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_tolerance_has_a_reason_and_can_fail(name: str) -> None:
    """A tolerance is small against the scale of what it compares, and says why it is not zero."""
    tolerance = TOLERANCES[name](LEVELS["plain"])
    assert len(tolerance.reason) > 20
    assert 0 < tolerance.atol <= 1e-4 * LEVELS["plain"].span


def test_the_default_is_exact() -> None:
    """What is not in the table is compared exactly."""
    assert EXACT.atol == 0


def test_the_fused_tolerance_is_the_documented_bound() -> None:
    """(3 r + 5) 2^-24 with r = |threshold| / span."""
    level = LEVELS["plain"]
    assert fused(level).atol == (3 * 2.5 / 8.0 + 5) * 2.0**-24


@pytest.mark.parametrize("name", LEVELS)
def test_the_tolerance_of_the_chosen_form_holds(name: str) -> None:
    """Computed step by step in float32, the exported form stays within its tolerance on adversarial values."""
    level = LEVELS[name]
    form = choose_form(level)
    alpha, beta, offset = unit_constants(level, form)
    values = raw_values(level, float(level.threshold or 0.0)).all
    with np.errstate(all="ignore"):
        exported = np.clip((values - np.float32(offset)) * np.float32(alpha) + np.float32(beta), 0, 1)
        error = np.abs(exported.astype(np.float64) - unit_scores(values, level))
    assert np.nanmax(error) <= TOLERANCES[form](level).atol
