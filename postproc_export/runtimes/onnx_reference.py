"""The evaluator of the package onnx, in NumPy: what the standard says, operator by operator."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from postproc_export.errors import PostprocError, require
from postproc_export.runtimes import (
    Array,
    PortInfo,
    Precision,
    RuntimeRunner,
    Target,
    cannot_load,
    cannot_run,
    checked_feeds,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxReferenceRunner(RuntimeRunner):
    """A model in ``onnx.reference.ReferenceEvaluator``, which computes in the types that the graph says, on the CPU."""

    _evaluator: Any
    package: ClassVar[str] = "onnx"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Load an ONNX file or the bytes of one; see `open_runner`. Threads and optimisation there are none."""
        onnx = require("onnx", purpose="running an ONNX model in onnx.reference")
        from onnx.reference import ReferenceEvaluator

        label = Path(model).name if isinstance(model, str) else "the model"
        try:
            proto = onnx.load(model) if isinstance(model, str) else onnx.load_model_from_string(model)
            evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise cannot_load(label, "onnx.reference", error) from error
        defaults = {each.name for each in proto.graph.initializer}
        inputs = [_port(each) for each in proto.graph.input]
        return cls(
            label=label,
            name="onnx.reference",
            version=onnx.__version__,
            precision=precision,
            inference_precision="float32",
            inputs=tuple(port for port in inputs if port.name not in defaults),
            optional=tuple(port for port in inputs if port.name in defaults),
            outputs=tuple(map(_port, proto.graph.output)),
            _evaluator=evaluator,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        import numpy as np

        arrays = checked_feeds(feeds, self.inputs, self.optional)
        names = [port.name for port in self.outputs]
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(names, arrays)
        except PostprocError:
            raise
        except Exception as error:
            raise cannot_run(self.label, "onnx.reference", error, arrays) from error
        return {name: np.array(values) for name, values in zip(names, results, strict=True)}


def _port(value: Any) -> PortInfo:
    from onnx import helper

    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in tensor.shape.dim)
    return PortInfo(value.name, dtype, axes if tensor.HasField("shape") else None)
