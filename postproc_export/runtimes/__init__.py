"""ONNX Runtime and OpenVINO behind one protocol, and the arrays that they are fed."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from postproc_export.errors import PostprocError, UnsupportedModelError, UsageError
from postproc_export.files import check_model
from postproc_export.ports import Axis, PortInfo
from postproc_export.validation import check_file

__all__ = ["Array", "Axis", "PortInfo", "Precision", "Runner", "RuntimeName", "as_float32", "open_runner"]


Array = npt.NDArray[Any]
Precision = Literal["float32", "default"]
RuntimeName = Literal["onnxruntime", "openvino"]

RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino")
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "default")


def installed_runtimes() -> tuple[RuntimeName, ...]:
    """Return the runtimes that can be imported."""
    return tuple(name for name in RUNTIMES if find_spec(name) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner(ABC):
    """A model that is loaded and ready to run on one runtime, in one precision."""

    label: str  # what errors call the model
    name: str  # runtime and device: "onnxruntime-cpu" or "openvino-cpu"
    version: str  # of the runtime
    precision: Precision  # the one that was asked for; "default" is the machine's own
    inference_precision: str  # what the runtime computes float32 operators in, such as "float32" or "bfloat16"
    inputs: tuple[PortInfo, ...]  # those that have to be fed; all ports are in the model's order
    optional: tuple[PortInfo, ...]  # inputs that need not be fed: with a default in ONNX, state variables of an IR
    outputs: tuple[PortInfo, ...]

    @abstractmethod
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once and return its outputs by name, in the model's order, as copies that the caller owns.

        Feeds have the dtype and shape of their inputs; one that need not be fed may be left out. bfloat16 is
        `ml_dtypes.bfloat16`. Raises UnsupportedModelError if the runtime fails on these inputs.
        """


def as_float32(array: Array) -> npt.NDArray[np.float32]:
    """Return a float array rounded to float32, whatever its element type; without a copy where it is float32."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


_MAX_REASON: Final = 500
_CHECK: Final = re.compile("Check '.* failed at ")  # where in OpenVINO's source


def checked_feeds(
    feeds: Mapping[str, Array], ports: Sequence[PortInfo], optional: Sequence[PortInfo] = ()
) -> dict[str, Array]:
    """Return the feeds by the name of their port, and refuse names, element types or static sizes that are not its own.

    A feed may go by any name of its input's tensor. The element type is checked because OpenVINO converts silently: a
    float32 array fed to a float16 input loses digits.
    """
    ports = [*ports, *(port for port in optional if any(port.answers_to(name) for name in feeds))]
    found = {port.name: [name for name in feeds if port.answers_to(name)] for port in ports}
    if len(feeds) != len(ports) or any(len(names) != 1 for names in found.values()):
        raise UsageError("the model's inputs are others", found=str(sorted(feeds)), needed=str(list(found)))
    matched = {port.name: np.asarray(feeds[found[port.name][0]]) for port in ports}
    for port in ports:
        array = matched[port.name]
        fits = port.shape is None or (
            len(port.shape) == array.ndim
            and all(
                not isinstance(axis, int) or axis == size for axis, size in zip(port.shape, array.shape, strict=True)
            )
        )
        other = "element type" if array.dtype.name != port.dtype else None if fits else "shape"
        if other:
            fed = f"{array.dtype.name} {list(array.shape)}"
            raise UsageError(f"input '{port.name}' has another {other}", found=fed, needed=port.describe())
    return matched


def cannot_load(label: str, runtime: str, error: Exception) -> UnsupportedModelError:
    """Return the error for a model that a runtime does not load."""
    fix = f"export or convert the model again, or use another version of {runtime}"
    return UnsupportedModelError(f"{runtime} cannot load {label}", found=first_reason(error), fix=fix)


def cannot_run(label: str, runtime: str, error: Exception, feeds: Mapping[str, Array]) -> UnsupportedModelError:
    """Return the error for a run that failed, with the shapes that were fed."""
    fed = ", ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in feeds.items())
    return UnsupportedModelError(f"{runtime} failed to run {label} on {fed}", found=first_reason(error))


def first_reason(error: Exception) -> str:
    """Return the first line of an error's text that says why, not where in the runtime's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("Exception from ") or _CHECK.match(line)]
    text = ([line for line in lines if line not in places] or lines or [type(error).__name__])[0]
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."


_RUNTIME_OF_SUFFIX: dict[str, RuntimeName] = {".onnx": "onnxruntime", ".xml": "openvino"}


def open_runner(
    model: str | Path | bytes | Any,
    *,
    runtime: RuntimeName | None = None,
    precision: Precision = "float32",
    optimize: bool = True,
    threads: int | None = None,
) -> Runner:
    """Load a model for the CPU: an ``.onnx`` or ``.xml`` file, the bytes of an ONNX model, or an `openvino.Model`.

    The runtime is by default the one of the format; OpenVINO runs ONNX files too. Precision ``"default"`` is what the
    runtime takes by itself on this machine (OpenVINO: maybe bfloat16). `optimize` concerns ONNX Runtime; OpenVINO
    always rewrites the graph. Raises UnsupportedModelError with the first line of the runtime's reason if it does not
    load.
    """
    if runtime not in (None, *get_args(RuntimeName)):
        raise UsageError(f"unknown runtime {runtime!r}", needed=" or ".join(get_args(RuntimeName)))
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision {precision!r}", needed=" or ".join(get_args(Precision)))
    native = _native_runtime(model)
    if native == "openvino" and runtime == "onnxruntime":
        raise UsageError("ONNX Runtime does not read OpenVINO models", fix="choose the runtime openvino")
    source = str(model) if isinstance(model, (str, Path)) else model
    try:
        if (runtime or native) == "openvino":
            from postproc_export.runtimes.openvino import OpenVinoRunner

            return OpenVinoRunner.load(source, precision=precision, threads=threads)
        from postproc_export.runtimes.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner.load(source, precision=precision, optimize=optimize, threads=threads)
    except UnsupportedModelError:
        if isinstance(source, str) and native == "onnxruntime":
            _refuse_damaged(Path(source))  # in words, where the file is at fault
        raise


def _native_runtime(model: str | Path | bytes | Any) -> RuntimeName:
    """Return the runtime of a model's format, after checking the files that it is in."""
    if not isinstance(model, (str, Path)):
        return "onnxruntime" if isinstance(model, bytes) else "openvino"
    path, binary = Path(model), Path(model).with_suffix(".bin")
    check_model(path)
    runtime = _RUNTIME_OF_SUFFIX[path.suffix]
    for weights in [binary] if runtime == "openvino" else _external_data(path):
        if weights.exists():  # else the runtime says what is missing
            check_file(weights, what="the weights")
    return runtime


def _refuse_damaged(path: Path) -> None:
    """Raise ModelFileError for an ONNX file that is no model, a damaged one, or misses its weights."""
    from graph_patterns.onnx.file import external_files, load_skeleton

    with load_skeleton(path) as file:
        external_files(file.model, path.parent)


def _external_data(path: Path) -> list[Path]:
    from graph_patterns.onnx.file import external_data_locations, load_skeleton

    try:
        with load_skeleton(path) as file:
            return [path.parent / location for _, location, _ in external_data_locations(file.model)]
    except PostprocError:  # the runtime says what is wrong with it
        return []
