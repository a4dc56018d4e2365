"""Statistics for tests of the report: of random values, of heavy tails, of one class."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from postproc_export.calibration import Calibrator
from postproc_export.stats import CalibrationStats


def stats_of(normal: Sequence[float], anomalous: Sequence[float], *, level: str = "image") -> CalibrationStats:
    """Calibrate on raw values of one level by class."""
    values = np.array([*normal, *anomalous], np.float32)
    truth = np.array([0] * len(normal) + [1] * len(anomalous))
    with Calibrator(resamples=20) as calibrator:
        if level == "image":
            calibrator.update(pred_score=values, gt_label=truth)
        else:
            calibrator.update(anomaly_map=values[None, None], gt_mask=truth[None, None])
        return calibrator.compute()


def two_bells(count: int = 40, *, seed: int = 7, level: str = "image") -> CalibrationStats:
    """Calibrate on two normal distributions that overlap; above 1,999 values the curve is thinned."""
    generator = np.random.default_rng(seed)
    return stats_of(generator.normal(2, 0.5, count).tolist(), generator.normal(3, 0.8, count).tolist(), level=level)


def heavy_tails() -> CalibrationStats:
    """Calibrate on values of which a few are a thousand times as large as most."""
    generator = np.random.default_rng(3)
    return stats_of(generator.lognormal(0, 2, 200).tolist(), generator.lognormal(2, 2, 100).tolist())


@cache
def thinned() -> CalibrationStats:
    """Return statistics of pixels whose curve keeps every twentieth threshold, and the highest one."""
    stats = two_bells(1050, level="pixel")
    assert stats.pixel is not None
    curve = stats.pixel.details["curve"]
    kept = {name: [*row[:-1:20], row[-1]] for name, row in curve.items()}
    return replace(stats, pixel=replace(stats.pixel, details={**stats.pixel.details, "curve": kept}))
