"""ONNX Runtime: on the CPU, or by another of its execution providers."""

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Self

import numpy as np

from postproc_export.errors import PostprocError, UnsupportedModelError, UsageError, require
from postproc_export.process import quiet_natives
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

_BFLOAT16_CODE: Final = 16  # onnx.TensorProto.BFLOAT16
_FATAL_ONLY: Final = 4  # what fails is raised; ONNX Runtime would print it to stderr as well
_NO_SPINNING: Final = ("session.intra_op.allow_spinning", "0")  # waiting threads would take cores from decoding images
_DTYPES: Final = {"float": "float32", "double": "float64"}
_PURPOSE: Final = "running an ONNX model"
_CPU: Final = "CPUExecutionProvider"
_BROUGHT: Final = {  # by what pip knows
    "CUDA": "onnxruntime-gpu",
    "Tensorrt": "onnxruntime-gpu",
    "Dml": "onnxruntime-directml",
    "OpenVINO": "onnxruntime-openvino",
    "QNN": "onnxruntime-qnn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeRunner(RuntimeRunner):
    """A model in ONNX Runtime, whose CPU provider computes every operator in the type that the graph says.

    A device is an execution provider; what that does not take runs on the CPU. Options are attributes of the session's
    options such as ``intra_op_num_threads``, else options of the provider.

    ONNX Runtime reports an output of unknown rank like a scalar, so such a port has the shape ``()`` here. ONNX Runtime
    has no way to hand bfloat16 to NumPy; such values are read from memory as `ml_dtypes.bfloat16`.
    """

    _onnxruntime: ModuleType
    package: ClassVar[str] = "onnxruntime"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    adjusts: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def refuse_missing(cls, target: Target) -> None:
        """Raise UsageError if ONNX Runtime was built without a provider, or an option is none of the session's."""
        onnxruntime = require("onnxruntime", purpose=_PURPOSE)
        there, known = onnxruntime.get_available_providers(), onnxruntime.SessionOptions()
        if target.device and target.device not in there:
            package = _BROUGHT.get(target.device.removesuffix("ExecutionProvider"))
            near = [name for name in there if name.lower().startswith(target.device.lower())]
            fix = f"--runtime onnxruntime:{near[0]}" if near else "one of those found"
            fix = fix if package is None else f"pip install {package} in place of onnxruntime"
            what = f"ONNX Runtime has no {target.device} here"
            raise UsageError(what, found=", ".join(there), needed="an execution provider that is installed", fix=fix)
        for key, value in target.options:
            own = getattr(known, key, None)
            if own is None and target.device not in ("", _CPU):
                continue  # the provider judges it
            setting = _setting(own, value)
            try:
                setattr(known, key, setting)
            except (AttributeError, TypeError):  # no option, or a number that is too large for one
                setting = None
            if setting is None:
                needed = "a session option with a whole number or a name, such as intra_op_num_threads=1"
                raise UsageError(f"ONNX Runtime does not take {key}={value}", needed=needed)

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Load an ONNX file or the bytes of one; see `postproc_export.runtimes.open_runner`."""
        onnxruntime = require("onnxruntime", purpose=_PURPOSE)
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry(*_NO_SPINNING)
        if threads is not None:
            options.intra_op_num_threads = threads
        provider, of_provider = target.device or _CPU, dict[str, str]()
        for key, value in target.options:
            if hasattr(options, key):
                setattr(options, key, _setting(getattr(options, key), value))
            else:
                of_provider[key] = value
        label = Path(model).name if isinstance(model, str) else "the model"
        try:
            with quiet_natives():
                session = onnxruntime.InferenceSession(model, options, providers=[(provider, of_provider)])
            lists = (session.get_inputs(), session.get_overridable_initializers(), session.get_outputs())
            inputs, optional, outputs = (tuple(_port(node) for node in nodes) for nodes in lists)
        except Exception as error:  # names that are no text as well
            raise cannot_load(label, "ONNX Runtime", error) from error
        if session.get_providers()[0] != provider:  # it goes on with another one by itself
            found = f"it runs by {session.get_providers()[0]} instead"
            raise UnsupportedModelError(f"ONNX Runtime cannot load {label} by {provider}", found=found)
        return cls(
            label=label,
            name="onnxruntime-cpu" if provider == _CPU else f"onnxruntime-{provider}",
            version=onnxruntime.__version__,
            precision=precision,
            inference_precision="float32",
            inputs=inputs,
            optional=optional,
            outputs=outputs,
            _session=session,
            _onnxruntime=onnxruntime,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says; outputs that are no tensors are left out."""
        # The values of a run only point at the arrays, so these stay in this frame until it is over.
        checked = checked_feeds(feeds, self.inputs, self.optional)
        arrays = {name: np.require(array, requirements="C") for name, array in checked.items()}
        names = [port.name for port in self.outputs if not port.dtype.endswith(")")]
        with_bfloat16 = any(port.dtype == "bfloat16" for port in (*self.inputs, *self.outputs))
        try:
            results = self._run_values(names, arrays) if with_bfloat16 else self._session.run(names, arrays)
        except PostprocError:
            raise
        except Exception as error:
            raise cannot_run(self.label, "ONNX Runtime", error, arrays) from error
        return dict(zip(names, results, strict=True))

    def _run_values(self, names: list[str], arrays: Mapping[str, Array]) -> list[Array]:
        values = {name: self._value(array) for name, array in arrays.items()}
        return [_array(value) for value in self._session.run_with_ort_values(names, values)]

    def _value(self, array: Array) -> Any:
        value_type = self._onnxruntime.OrtValue
        if array.dtype.name != "bfloat16":
            return value_type.ortvalue_from_numpy(array)
        make = getattr(value_type, "ortvalue_from_numpy_with_onnx_type", None)
        if make is None:
            found = f"ONNX Runtime {self.version}, which cannot be fed bfloat16"
            raise UnsupportedModelError(
                f"{self.label} has a bfloat16 input", found=found, fix="pip install 'onnxruntime>=1.20'"
            )
        return make(array.view(np.uint16), _BFLOAT16_CODE)


def _setting(own: Any, value: str) -> Any:
    """Return a text as the value of a session option: a number, or a name such as ORT_ENABLE_EXTENDED; else None."""
    names: Mapping[str, Any] = getattr(type(own), "__members__", {})
    if isinstance(own, int) and not names:
        return int(value) if value.removeprefix("-").isdecimal() else None
    return names.get(value)


def _port(node: Any) -> PortInfo:
    element = node.type.removeprefix("tensor(").removesuffix(")") if node.type.startswith("tensor(") else node.type
    axes = tuple(axis if isinstance(axis, (int, str)) else None for axis in node.shape)
    return PortInfo(node.name, _DTYPES.get(element, element), axes)


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.array(value.numpy())
    shape = tuple(value.shape())
    bfloat16 = require("ml_dtypes", purpose="reading a bfloat16 output").bfloat16
    size = 2 * math.prod(shape)
    words = bytearray(ctypes.string_at(value.data_ptr(), size) if size else b"")
    values: Array = np.frombuffer(words, np.uint16).view(bfloat16).reshape(shape)
    return values
