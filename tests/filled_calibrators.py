"""A calibrator that has seen a few images and maps, for tests of what it does then."""

from typing import Any

import numpy as np

from postproc_export.calibration import Calibrator

SCORES = np.array([0.1, 0.4, 0.35, 0.8], dtype=np.float32)
LABELS = np.array([0, 0, 1, 1])
MAPS = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
MASKS = (MAPS[:, 0] > 20).astype(np.uint8)


def filled(**options: Any) -> Calibrator:
    """Return a calibrator that has seen four images and two maps."""
    calibrator = Calibrator(resamples=0, **options)
    calibrator.update(SCORES, LABELS)
    calibrator.update(anomaly_map=MAPS, gt_mask=MASKS)
    return calibrator
