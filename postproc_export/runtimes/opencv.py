"""OpenCV's module dnn, on the CPU: it knows few operators, and needs a file that was attached for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import onnx

from postproc_export.errors import require
from postproc_export.process import quiet_natives
from postproc_export.runtimes import (
    Array,
    Precision,
    RuntimeRunner,
    Target,
    cannot_load,
    cannot_run,
    checked_feeds,
    ports_of,
)

_PURPOSE: Final = "running a model in OpenCV"


class _Net:
    """A model, read anew for other shapes: what OpenCV planned for the first ones may be wrong for them."""

    def __init__(self, opencv: Any, source: Any, *, optimize: bool) -> None:
        self._read, self._source, self._optimize = opencv.dnn.readNetFromONNX, source, optimize
        self._net, self._shapes = self._fresh(), list[tuple[int, ...]]()

    def run(self, arrays: Mapping[str, Array], names: list[str]) -> list[Array]:
        shapes = [array.shape for array in arrays.values()]
        if self._shapes not in ([], shapes):
            self._net = self._fresh()
        self._shapes = shapes
        for name, array in arrays.items():
            self._net.setInput(array, name)
        return [np.array(values) for values in self._net.forward(names)]

    def _fresh(self) -> Any:
        net = self._read(self._source)
        net.enableFusion(self._optimize)
        return net


class OpenCvRunner(RuntimeRunner):
    """A model in OpenCV, which computes in float32 and gives float32, whatever types the graph declares."""

    __slots__ = ()
    package: ClassVar[str] = "cv2"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    takes_empty: ClassVar[bool] = False

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Load an ONNX file or the bytes of one; see `open_runner`. The process has one number of threads for all."""
        opencv = require("cv2", purpose=_PURPOSE)
        label = Path(model).name if isinstance(model, str) else "the model"
        try:
            inputs, _, outputs = ports_of(model)
            with quiet_natives():
                session = _Net(opencv, _with_shapes(model), optimize=optimize)
        except Exception as error:
            fix = "write the tail for it: postproc-export update FILE --for opencv" if '"IsNaN"' in str(error) else None
            raise cannot_load(label, "OpenCV", _reason(error), fix=fix) from error
        return cls(
            label=label,
            name="opencv-cpu",
            version=opencv.__version__,
            precision=precision,
            inference_precision="float32",
            inputs=inputs,
            optional=(),
            outputs=outputs,
            _session=session,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        arrays, names = checked_feeds(feeds, self.inputs), [port.name for port in self.outputs]
        try:
            with quiet_natives():
                return dict(zip(names, self._session.run(arrays, names), strict=True))
        except Exception as error:
            raise cannot_run(self.label, "OpenCV", _reason(error), arrays) from error


def _with_shapes(model: str | bytes) -> Any:
    """Return a file, or the bytes of a model whose outputs have shapes and whose open axes have names.

    OpenCV does not load a model without; those that a check cuts out of a file, and taps, may have neither.
    """
    proto = onnx.load(model) if isinstance(model, str) else onnx.load_model_from_string(model)
    shapes = [each.type.tensor_type.shape for each in proto.graph.input]
    open_axes = [axis for shape in shapes for axis in shape.dim if axis.WhichOneof("value") is None]
    has_shapes = all(output.type.tensor_type.HasField("shape") for output in proto.graph.output)
    if isinstance(model, str) and has_shapes:
        return model
    for index, axis in enumerate(open_axes):
        axis.dim_param = f"axis_{index}"
    return np.frombuffer(onnx.shape_inference.infer_shapes(proto).SerializeToString(), np.uint8)


def _reason(error: Exception) -> Exception:
    """Return an error with the innermost reason that OpenCV gives, in one line."""
    return RuntimeError(" ".join(str(error).split("error: ")[-1].split()))
