"""The first pass counts buckets in two ways, which give the same table."""

from collections.abc import Callable

import numpy as np
import pytest

from postproc_export.calibration import counting
from postproc_export.calibration.counting import CoarseHistogram

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


@pytest.mark.parametrize("draw", NARROW)
def test_comparing_with_edges_counts_what_a_table_counts(
    draw: Callable[[np.random.Generator], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values in few buckets are compared with their edges; the counts are those of the table over all buckets."""
    rng = np.random.default_rng(3)
    values, truth = draw(rng).astype(np.float32), rng.random(5000) < 0.1
    tables = []
    for few in (1 << 16, -1):
        monkeypatch.setattr(counting, "FEW", few)
        counted = CoarseHistogram()
        counted.add(values, truth, low=float(values.min()), high=float(values.max()))
        tables.append(counted.table(low=0, high=2**32 - 1))
    compared, plain = tables
    for name in ("starts", "widths", "normal", "anomalous"):
        np.testing.assert_array_equal(getattr(compared, name), getattr(plain, name))
