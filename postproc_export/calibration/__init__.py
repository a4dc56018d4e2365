"""Calibration: the threshold and range of both levels from raw validation outputs, exact at any scale."""

from postproc_export.calibration.calibrator import Calibrator
from postproc_export.calibration.shards.reading import Progress
from postproc_export.calibration.sources import calibrate
from postproc_export.calibration.statistics.level import CalibrationWarning
from postproc_export.calibration.thresholds.policies import COMPARED, Policy

__all__ = ["COMPARED", "CalibrationWarning", "Calibrator", "Policy", "Progress", "calibrate"]
