"""OpenVINO: on the CPU, or on another of its devices."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Self

import numpy as np

from graph_patterns.openvino import ELEMENT_TYPES
from postproc_export.errors import FileError, UsageError, require
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
    first_reason,
)

_TELEMETRY: Final = "openvino_telemetry"
_KNOWN_NAMES: Final = ("pred_score", "pred_label", "anomaly_map", "pred_mask", "output")
_VIRTUAL: Final = ("AUTO", "HETERO", "MULTI", "BATCH")
_DTYPES: Final = {short: name for name, short in ELEMENT_TYPES.items()}


def import_openvino(*, purpose: str) -> ModuleType:
    """Import OpenVINO without its telemetry, which would report this very import to a web service.

    OpenVINO falls back to a stub of its own where the telemetry package cannot be imported, so it is hidden for the
    duration of the import. A process that imported OpenVINO before has made its own choice, and is left alone.
    """
    with without_telemetry():
        return require("openvino", purpose=purpose)


def openvino_core(*, purpose: str) -> Any:
    """Return the `openvino.Core` of this process; all models are read and compiled in it.

    It lives as long as the process. The CPU plugin (2026.4.1) installs a signal stack when a core first compiles, and
    restores what was there before when that core goes: of two cores that overlap, the second one to go leaves a signal
    stack that is unmapped, and the next signal that Python handles ends the process.
    """
    return _core(import_openvino(purpose=purpose))


def devices() -> list[dict[str, Any]]:
    """Return what this machine could run on: ``name``, ``full_name``, ``capabilities``, and the default ``precision``.

    What a device does not tell is None.
    """
    core = openvino_core(purpose="finding devices")

    def told(name: str, key: str) -> Any:
        try:
            return core.get_property(name, key)
        except RuntimeError:
            return None

    return [
        {
            "name": name,
            "full_name": told(name, "FULL_DEVICE_NAME"),
            "capabilities": told(name, "OPTIMIZATION_CAPABILITIES"),
            "precision": None if (hint := told(name, "INFERENCE_PRECISION_HINT")) is None else _dtype(hint),
        }
        for name in core.available_devices
    ]


def read_model(core: Any, model: str | bytes | Path) -> Any:
    """Read a model; of what no frontend takes, the frontends for other formats would tell as well."""
    with quiet_natives():
        return core.read_model(model)


def save_ir(model: Any, path: Path, *, target: Path | None = None) -> None:
    """Write an IR with the weights as they are: compressing them here would round the constants of a tail.

    `target` is what the file is called in the end, for the message.
    """
    try:
        import_openvino(purpose="writing an OpenVINO IR").save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # a stream that failed, which does not say why
        fix = "make room, or choose another disk"
        raise FileError(f"cannot write {target or path}", found=first_reason(error), fix=fix) from error


@cache
def _core(openvino: ModuleType) -> Any:
    return openvino.Core()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoRunner(RuntimeRunner):
    """A model compiled for OpenVINO's CPU plugin, or for the device that is named; options are OpenVINO's properties.

    ``precision="float32"`` sets INFERENCE_PRECISION_HINT=f32 and EXECUTION_MODE_HINT=ACCURACY; without them the plugin
    takes bfloat16 where the processor has it, and raw scores move. A tensor may have several names: `PortInfo.name` is
    one of Anomalib's output names if that is among them, else the name that the output had in ONNX, else the first in
    alphabetical order; a tensor without a name is called ``input_<i>`` or ``output_<i>``.
    """

    _model: Any
    _openvino: ModuleType
    _problems: dict[tuple[tuple[int, ...], ...], RuntimeError | None] = field(default_factory=dict)
    _set: set[str] = field(default_factory=set)

    package: ClassVar[str] = "openvino"
    formats: ClassVar[tuple[str, ...]] = ("onnx", "openvino")
    adjusts: ClassVar[tuple[str, ...]] = ("openvino",)  # reading an ONNX model makes constants of its defaults

    @classmethod
    def refuse_missing(cls, target: Target) -> None:
        """Raise UsageError if the machine has none of the devices that are named."""
        there = openvino_core(purpose="finding devices").available_devices
        named = re.split("[:,]", target.device or "CPU")
        if missing := [name for name in named if name.split("(")[0] not in (*there, *_VIRTUAL)]:
            fix = "install the driver of the device: postproc-export doctor lists those that are found"
            if missing[0].upper() in (*there, *_VIRTUAL):
                fix = f"--runtime openvino:{target.device.upper()}"
            raise UsageError(f"OpenVINO finds no device {missing[0]}", found=", ".join(there), fix=fix)

    @classmethod
    def load(cls, model: Any, *, precision: Precision, optimize: bool, threads: int | None, target: Target) -> Self:
        """Compile an IR file, an ONNX file, the bytes of one or an `openvino.Model`; see `open_runner`."""
        openvino = import_openvino(purpose="running a model in OpenVINO")
        label = Path(model).name if isinstance(model, str) else "the model"
        exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
        properties: dict[str, str | int] = dict(exact) if precision == "float32" else {}
        device = target.device or "CPU"
        properties |= {} if threads is None or device != "CPU" else {"INFERENCE_NUM_THREADS": threads}
        properties |= dict(target.options)
        try:
            core = openvino_core(purpose="running a model in OpenVINO")
            parsed = read_model(core, model) if isinstance(model, (str, bytes)) else model
            compiled = core.compile_model(parsed, device, properties)
            request = compiled.create_infer_request()
            inputs = tuple(port_info(port, f"input_{index}") for index, port in enumerate(compiled.inputs))
            outputs = tuple(port_info(port, f"output_{index}") for index, port in enumerate(compiled.outputs))
        except (RuntimeError, UnicodeDecodeError) as error:  # names that are no text
            raise cannot_load(label, "OpenVINO", error) from error
        return cls(
            label=label,
            name="openvino-cpu" if device == "CPU" else f"openvino-{device}",
            version=openvino.__version__.split("-")[0],
            precision=precision,
            inference_precision=_computes_in(compiled, precision),
            inputs=inputs,
            optional=tuple(PortInfo(state.name, "float32", ()) for state in _scalars(request)),
            outputs=outputs,
            _model=parsed,
            _session=request,
            _openvino=openvino,
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, as `Runner` says."""
        arrays = checked_feeds(feeds, self.inputs, self.optional)
        problem = self._shape_problem(tuple(arrays[port.name].shape for port in self.inputs))
        if problem is not None:
            raise cannot_run(self.label, "OpenVINO", problem, arrays) from problem
        # The request holds no reference to the arrays, so they stay in this frame until it is done.
        tensors = [self._tensor(arrays[port.name]) for port in self.inputs]
        try:
            for index, tensor in enumerate(tensors):
                self._session.set_input_tensor(index, tensor)
            self._set_states(arrays)
            self._session.infer()
        except RuntimeError as error:
            raise cannot_run(self.label, "OpenVINO", error, arrays) from error
        return {port.name: self._array(index, port) for index, port in enumerate(self.outputs)}

    def reset(self) -> None:
        """Give all variables their first values again, those of the model's own body as well."""
        for state in self._session.query_state():
            state.reset()

    def _set_states(self, arrays: Mapping[str, Array]) -> None:
        """Set the variables that are fed, and give those that were fed before their default again."""
        given = {port.name for port in self.optional} & arrays.keys()
        for state in self._session.query_state() if given | self._set else ():
            if state.name in given:
                state.state = self._tensor(arrays[state.name])
            elif state.name in self._set:
                state.reset()
        self._set.clear()
        self._set.update(given)

    def _shape_problem(self, shapes: tuple[tuple[int, ...], ...]) -> RuntimeError | None:
        # The plugin does not compare sizes at run time: a Reshape to a fixed shape that does not fit its input reads
        # and writes beyond its buffers, which gives random numbers or ends the process. Shape inference does compare
        # them. Exports whose batch axis is declared dynamic and is not are common.
        # Of an axis that is no 1 where a Squeeze takes it, the rank that comes out tells.
        if shapes not in self._problems:
            graph = self._model.clone()
            try:
                graph.reshape({index: list(shape) for index, shape in enumerate(shapes)})
                pairs = zip(self._model.outputs, graph.outputs, strict=True)
                shown = ((old.partial_shape, new.partial_shape) for old, new in pairs)
                others = (f"an output {old} would be {new}" for old, new in shown if not old.compatible(new))
                self._problems[shapes] = next(map(RuntimeError, others), None)
            except RuntimeError as error:
                self._problems[shapes] = error.with_traceback(None)
        return self._problems[shapes]

    def _tensor(self, array: Array) -> Any:
        contiguous = np.require(array, requirements=["C", "W"])
        if array.dtype.name != "bfloat16":
            return self._openvino.Tensor(contiguous, shared_memory=True)
        tensor = self._openvino.Tensor(self._openvino.Type.bf16, list(array.shape))
        tensor.data.view(np.uint16)[...] = contiguous.view(np.uint16)
        return tensor

    def _array(self, index: int, port: PortInfo) -> Array:
        values: Array = np.array(self._session.get_output_tensor(index).data)
        if port.dtype != "bfloat16":
            return values
        return values.view(require("ml_dtypes", purpose="reading a bfloat16 output").bfloat16)


def _computes_in(compiled: Any, asked: Precision) -> str:
    try:
        return _dtype(compiled.get_property("INFERENCE_PRECISION_HINT"))
    except RuntimeError:  # a device that stands for others, which were told what was asked for
        return asked


def _scalars(request: Any) -> list[Any]:
    """Return the states that are one float32 number; before the first inference a scalar's shape is [1]."""
    states = request.query_state()
    return [state for state in states if state.state.element_type.get_type_name() == "f32" and state.state.size == 1]


def port_info(port: Any, made_up: str) -> PortInfo:
    """Return an `openvino.Output` as a port; `made_up` names a tensor without a name."""
    names = sorted(port.names)
    # Of an ONNX model, also after it was saved as IR, the output called y belongs to the result y/sink_port_0.
    node = port.get_node()
    original = node.get_friendly_name().removesuffix("/sink_port_0")
    known = () if node.get_type_name() == "Parameter" else _KNOWN_NAMES
    best = [name for name in (*known, original) if name in names]
    shape = port.partial_shape
    axes = None if shape.rank.is_dynamic else tuple(axis.get_length() if axis.is_static else None for axis in shape)
    dtype = _dtype(port.element_type)
    return PortInfo((best or names or [made_up])[0], dtype, axes, aliases=tuple(names))


def _dtype(element_type: Any) -> str:
    name: str = element_type.get_type_name()
    return _DTYPES.get(name, name)


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Hide the telemetry package from what OpenVINO and its tools import while the block runs."""
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's own way to make an import fail
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
