"""ONNX Runtime and OpenVINO behind one protocol."""

from pathlib import Path
from typing import Any, get_args

from graph_patterns.errors import ExplainedError
from postproc_export.errors import UsageError
from postproc_export.runtimes.protocol import Array, PortInfo, Precision, Runner, RuntimeName, as_float32
from postproc_export.validation import check_file, refuse_backups

__all__ = ["Array", "PortInfo", "Precision", "Runner", "RuntimeName", "as_float32", "open_runner"]

_RUNTIME_OF_SUFFIX: dict[str, RuntimeName] = {".onnx": "onnxruntime", ".xml": "openvino"}


def open_runner(
    model: str | Path | bytes | Any,
    *,
    runtime: RuntimeName | None = None,
    precision: Precision = "float32",
    optimize: bool = True,
    threads: int | None = None,
) -> Runner:
    """Load a model and return it ready to run on the CPU.

    Parameters
    ----------
    model
        Path of an ``.onnx`` or ``.xml`` file, the bytes of an ONNX model, or an `openvino.Model`.
    runtime
        ``"onnxruntime"`` or ``"openvino"``; by default the one of the format. OpenVINO runs ONNX files too.
    precision
        ``"float32"``, or ``"default"`` for what the runtime takes by itself on this machine (OpenVINO: maybe bfloat16).
    optimize
        Whether ONNX Runtime may rewrite the graph; OpenVINO always does.
    threads
        Threads inside an operator; by default the runtime's choice.

    Raises
    ------
    FileError
        If the file is not there.
    UsageError
        If the runtime does not read this format.
    UnsupportedModelError
        If the runtime cannot load the model; the first line of its reason is in the message.
    MissingDependencyError
        If the runtime is not installed.
    """
    if runtime not in (None, *get_args(RuntimeName)):
        raise UsageError(f"unknown runtime {runtime!r}", needed=" or ".join(get_args(RuntimeName)))
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision {precision!r}", needed=" or ".join(get_args(Precision)))
    native = _native_runtime(model)
    if native == "openvino" and runtime == "onnxruntime":
        raise UsageError("ONNX Runtime does not read OpenVINO models", fix="choose the runtime openvino")
    source = str(model) if isinstance(model, (str, Path)) else model
    if (runtime or native) == "openvino":
        from postproc_export.runtimes.openvino import OpenVinoRunner

        return OpenVinoRunner.load(source, precision=precision, threads=threads)
    from postproc_export.runtimes.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner.load(source, precision=precision, optimize=optimize, threads=threads)


def _native_runtime(model: str | Path | bytes | Any) -> RuntimeName:
    if isinstance(model, bytes):
        return "onnxruntime"
    if not isinstance(model, (str, Path)):
        return "openvino"
    path = Path(model)
    runtime = _RUNTIME_OF_SUFFIX.get(path.suffix.lower())
    if runtime is None:
        raise UsageError(f"{path} is no model file", found=f"suffix '{path.suffix}'", needed=".onnx or .xml")
    check_file(path, what="the model")
    refuse_backups([path, path.with_suffix(".bin")], verb="read")
    for weights in _weights_of(path):
        if weights.exists():  # else the runtime says what is missing
            check_file(weights, what="the weights")
    return runtime


def _weights_of(path: Path) -> list[Path]:
    if path.suffix.lower() == ".xml":
        return [path.with_suffix(".bin")]
    from graph_patterns.onnx.container import load_skeleton
    from graph_patterns.onnx.external import external_data_locations

    try:
        with load_skeleton(path) as file:
            return [path.parent / data.location for data in external_data_locations(file.model)]
    except ExplainedError:  # the runtime says what is wrong with it
        return []
