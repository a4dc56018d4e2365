"""The evaluator of the package onnx, in NumPy: what the standard says, operator by operator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnx

from postproc_export.errors import PostprocError
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


class OnnxReferenceRunner(RuntimeRunner):
    """A model in ``onnx.reference.ReferenceEvaluator``, which computes in the types that the graph says, on the CPU."""

    __slots__ = ()
    package: ClassVar[str] = "onnx"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    adjusts: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Load an ONNX file or the bytes of one; see `open_runner`. Threads and optimisation there are none."""
        from onnx.reference import ReferenceEvaluator

        label = Path(model).name if isinstance(model, str) else "the model"
        try:
            inputs, optional, outputs = ports_of(model)
            proto = onnx.load(model) if isinstance(model, str) else onnx.load_model_from_string(model)
            evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise cannot_load(label, "onnx.reference", error) from error
        return cls(
            label=label,
            name="onnx.reference",
            version=onnx.__version__,
            precision=precision,
            inference_precision="float32",
            inputs=inputs,
            optional=optional,
            outputs=outputs,
            _session=evaluator,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        arrays = checked_feeds(feeds, self.inputs, self.optional)
        names = [port.name for port in self.outputs]
        try:
            with np.errstate(all="ignore"):
                results = self._session.run(names, arrays)
        except PostprocError:
            raise
        except Exception as error:
            raise cannot_run(self.label, "onnx.reference", error, arrays) from error
        return {name: np.array(values) for name, values in zip(names, results, strict=True)}
