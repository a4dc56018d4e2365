"""Calibration: the threshold and range of both levels from raw validation outputs, exact at any scale."""

from postproc_export.calibration.calibrator import Calibrator, calibrate
from postproc_export.calibration.shards import Progress
from postproc_export.calibration.statistics import CalibrationWarning
from postproc_export.policies import COMPARED, Policy

__all__ = ["COMPARED", "CalibrationWarning", "Calibrator", "Policy", "Progress", "calibrate"]
