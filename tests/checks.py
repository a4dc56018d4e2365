"""A check that is quick, for tests of what does not depend on the runtime."""

from pathlib import Path
from typing import Any

from postproc_export import check_parity
from postproc_export.check import ParityReport


def check_briefly(path: Path, **options: Any) -> ParityReport:
    """Check a file on few values, in one runtime: ONNX Runtime, or OpenVINO for an IR."""
    runtime = "onnxruntime" if path.suffix == ".onnx" else "openvino"
    return check_parity(path, **{"count": 500, "threads": 1, "runtimes": [runtime], **options})
