"""The cells of values that are not picked out first, above zero and around it."""

import numpy as np
import pytest

from postproc_export.calibration.counting import Divide, Locator
from postproc_export.calibration.table import key_of, ordered_keys

EXTREMES = np.array([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1000.0, -1000.0, 1.0, -1.0], np.float32)


@pytest.mark.parametrize("first", [1e-38, 1.0, 1000.0, 3.3e38, 0.0, -1.0])
@pytest.mark.parametrize("count", [1, 4])
def test_cells_of_a_run_are_those_of_the_ordered_keys(first: float, count: int) -> None:
    """Every value of the run has its cell, and every other one, of either sign, the cell behind the last."""
    start = key_of(first) >> 16 << 16
    starts = np.minimum(start + (np.arange(count, dtype=np.int64) << 16), key_of(3.4028235e38) >> 16 << 16)
    starts = np.unique(starts).astype(np.uint32)
    locator = Locator(Divide(starts=starts, width=16, bits=16, low=0, high=2**32 - 1, is_run=True))
    rng = np.random.default_rng(0)
    values = np.concatenate([EXTREMES, rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)])
    values = np.concatenate([values, first + rng.normal(0, abs(first) / 1e3 + 1e-3, 50_000).astype(np.float32)])
    values = np.ascontiguousarray(values[np.isfinite(values)], dtype=np.float32)
    keys = ordered_keys(values + np.float32(0)).astype(np.int64) - int(starts[0])
    inside = (keys >= 0) & (keys < starts.size << 16)
    expected = np.where(inside, keys, starts.size << 16)
    assert np.array_equal(locator.clipped_cells(values), expected)
    assert inside.any()
