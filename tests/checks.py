"""A check that is quick, for tests of what does not depend on the runtime, and runtimes that may not be there."""

from pathlib import Path
from typing import Any

import pytest

from postproc_export import check_parity
from postproc_export.check import ParityReport
from postproc_export.errors import MissingDependencyError
from postproc_export.runtimes import Target


def runtime_of(path: Path) -> str:
    """Return one runtime that reads a file: ONNX Runtime, or OpenVINO for an IR."""
    return "onnxruntime" if path.suffix == ".onnx" else "openvino"


def check_briefly(path: Path, **options: Any) -> ParityReport:
    """Check a file on few values, in one runtime."""
    return check_parity(path, **{"count": 500, "threads": 1, "runtimes": [runtime_of(path)], **options})


def there(asked: str) -> str:
    """Return the name of a runtime; where it is not installed the test is skipped, and says what would bring it."""
    try:
        return Target.parse(asked).text
    except MissingDependencyError as error:
        pytest.skip(str(error))
