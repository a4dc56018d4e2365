"""Calibrate, attach and check the post-processing of exported anomaly-detection models.

The public names are imported when they are first used, so that `import postproc_export` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from postproc_export.attach import attach_postprocessing
    from postproc_export.calibration import Calibrator, calibrate
    from postproc_export.check import check_parity
    from postproc_export.check.judge import judge_outputs
    from postproc_export.check.vectors import write_vectors
    from postproc_export.detach import detach_postprocessing
    from postproc_export.eager import PostProcessor
    from postproc_export.errors import PostprocError
    from postproc_export.export import export_model
    from postproc_export.inspect import inspect_model
    from postproc_export.integrations.memory import attach_to_onnx, attach_to_openvino
    from postproc_export.prediction import predict
    from postproc_export.report import write_report
    from postproc_export.stats import CalibrationStats, LevelStats, decision_boundary
    from postproc_export.update import update_postprocessing

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
    "judge_outputs",
    "predict",
    "update_postprocessing",
    "write_report",
    "write_vectors",
]

__version__: Final = "0.2.0.dev0"

_HOMES: Final = {
    "CalibrationStats": "postproc_export.stats",
    "Calibrator": "postproc_export.calibration",
    "LevelStats": "postproc_export.stats",
    "PostProcessor": "postproc_export.eager",
    "PostprocError": "postproc_export.errors",
    "attach_postprocessing": "postproc_export.attach",
    "attach_to_onnx": "postproc_export.integrations.memory",
    "attach_to_openvino": "postproc_export.integrations.memory",
    "calibrate": "postproc_export.calibration",
    "check_parity": "postproc_export.check",
    "decision_boundary": "postproc_export.stats",
    "detach_postprocessing": "postproc_export.detach",
    "export_model": "postproc_export.export",
    "inspect_model": "postproc_export.inspect",
    "judge_outputs": "postproc_export.check.judge",
    "predict": "postproc_export.prediction",
    "update_postprocessing": "postproc_export.update",
    "write_report": "postproc_export.report",
    "write_vectors": "postproc_export.check.vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'postproc_export' has no attribute {name!r}")
    if name == "PostProcessor":  # a torch module: its file imports torch
        from postproc_export.errors import require

        require("torch", purpose=f"postproc_export.{name}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
