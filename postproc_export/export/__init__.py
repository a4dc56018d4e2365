"""From a PyTorch module to an ONNX model and an OpenVINO IR with their post-processing, checked against the module."""

from postproc_export.export.model import export_model
from postproc_export.export.raw_module import load_example
from postproc_export.export.request import Calibration
from postproc_export.export.result import ExportedFile, ExportResult

__all__ = ["Calibration", "ExportResult", "ExportedFile", "export_model", "load_example"]
