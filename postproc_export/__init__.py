"""Calibrate, attach and check the post-processing of exported anomaly-detection models.

The public names are imported when they are first used, so that `import postproc_export` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from postproc_export.version import __version__

if TYPE_CHECKING:
    from postproc_export.boundary import decision_boundary
    from postproc_export.calibration import Calibrator, calibrate
    from postproc_export.eager import PostProcessor
    from postproc_export.errors import PostprocError
    from postproc_export.export import export_model
    from postproc_export.integrations.in_memory import attach_to_onnx, attach_to_openvino
    from postproc_export.parity import check_parity
    from postproc_export.rewrite.attach import attach_postprocessing
    from postproc_export.rewrite.detach import detach_postprocessing
    from postproc_export.rewrite.inspect import inspect_model
    from postproc_export.rewrite.update import update_postprocessing
    from postproc_export.stats import CalibrationStats, LevelStats

_HOMES: Final = {
    "CalibrationStats": "postproc_export.stats",
    "Calibrator": "postproc_export.calibration",
    "LevelStats": "postproc_export.stats",
    "PostProcessor": "postproc_export.eager",
    "PostprocError": "postproc_export.errors",
    "attach_postprocessing": "postproc_export.rewrite.attach",
    "attach_to_onnx": "postproc_export.integrations.in_memory",
    "attach_to_openvino": "postproc_export.integrations.in_memory",
    "calibrate": "postproc_export.calibration",
    "check_parity": "postproc_export.parity",
    "decision_boundary": "postproc_export.boundary",
    "detach_postprocessing": "postproc_export.rewrite.detach",
    "export_model": "postproc_export.export",
    "inspect_model": "postproc_export.rewrite.inspect",
    "update_postprocessing": "postproc_export.rewrite.update",
}

__all__ = [
    "CalibrationStats",
    "Calibrator",
    "LevelStats",
    "PostProcessor",
    "PostprocError",
    "__version__",
    "attach_postprocessing",
    "attach_to_onnx",
    "attach_to_openvino",
    "calibrate",
    "check_parity",
    "decision_boundary",
    "detach_postprocessing",
    "export_model",
    "inspect_model",
    "update_postprocessing",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'postproc_export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
