"""Every way to run a whole file."""

from collections.abc import Sequence
from typing import Final

from postproc_export.parity.models.configuration import Configuration
from postproc_export.parity.models.model_file import Format
from postproc_export.parity.models.variants import has_nncf
from postproc_export.runtimes import RuntimeName

_WAYS: Final = (
    Configuration(runtime="onnxruntime", optimize=False),
    Configuration(runtime="onnxruntime"),
    Configuration(runtime="openvino"),
    Configuration(runtime="openvino", precision="default"),
    Configuration(runtime="openvino", weights="fp16"),
    Configuration(runtime="openvino", weights="int8"),
)


def whole_configurations(
    file_format: Format, runtimes: Sequence[RuntimeName], *, int8: bool | None = None
) -> list[Configuration]:
    """Return every way to run a whole file of a format on the runtimes at hand; INT8 by default where nncf is there."""
    wants_int8 = has_nncf() if int8 is None else int8
    return [
        way
        for way in _WAYS
        if way.runtime in runtimes
        and (file_format == "onnx" or way.runtime == "openvino")
        and (wants_int8 or way.weights != "int8")
    ]
