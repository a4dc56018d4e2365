"""Tiny host models for all tests: raw models with a score, a map or both, written as ONNX text.

Two kinds. Detectors take images `input` float[N,3,H,W] and give ``anomaly_map`` (a 1x1 convolution) and ``pred_score``
(its maximum). Identity hosts give back what they are fed (`score` and `map`), so that a test decides about every value.
Common arguments: `dynamic` leaves N, H and W open (else 1 and `size`), `batch` overrides N, `flat` drops the axes of
size 1 ([N] and [N,H,W]), `dtype` is the outputs' (ONNX text: float, float16, double, bfloat16 from opset 13).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, parser

from postproc_export import CalibrationStats, attach_postprocessing

Array = npt.NDArray[Any]

CHANNEL_WEIGHTS = (0.5, 0.25, 0.125)
BIAS = -0.25

_CODES = {"float": 1, "float16": 10, "double": 11, "bfloat16": 16}


def score_and_map(
    *,
    opset: int = 17,
    ir_version: int = 8,
    dtype: str = "float",
    dynamic: bool = True,
    batch: int | str | None = None,
    size: tuple[int, int] = (8, 8),
    names: tuple[str, str] = ("pred_score", "anomaly_map"),
    flat: bool = False,
) -> ModelProto:
    """Return a detector with a score [N,1] and a map [N,1,H,W]."""
    score, anomaly_map = names
    n, h, w = _axes(dynamic, batch, size)
    score_shape, map_shape = (f"{n}", f"{n},{h},{w}") if flat else (f"{n},1", f"{n},1,{h},{w}")
    outputs = [f"{dtype}[{score_shape}] {score}", f"{dtype}[{map_shape}] {anomaly_map}"]
    nodes = [*_map_nodes(flat), *_score_nodes(flat), *_casts({"host_score": score, "host_map": anomaly_map}, dtype)]
    return _detector((n, h, w), outputs, nodes, opset=opset, ir_version=ir_version, flat=flat)


def score_only(
    *,
    opset: int = 17,
    ir_version: int = 8,
    dtype: str = "float",
    dynamic: bool = True,
    batch: int | str | None = None,
    size: tuple[int, int] = (8, 8),
    name: str = "pred_score",
    flat: bool = False,
) -> ModelProto:
    """Return a detector with only a score [N,1]."""
    n, h, w = _axes(dynamic, batch, size)
    outputs = [f"{dtype}[{n}] {name}" if flat else f"{dtype}[{n},1] {name}"]
    nodes = [*_map_nodes(False), *_score_nodes(flat), *_casts({"host_score": name}, dtype)]
    return _detector((n, h, w), outputs, nodes, opset=opset, ir_version=ir_version, flat=flat)


def map_only(
    *,
    opset: int = 17,
    ir_version: int = 8,
    dtype: str = "float",
    dynamic: bool = True,
    batch: int | str | None = None,
    size: tuple[int, int] = (8, 8),
    name: str = "anomaly_map",
    flat: bool = False,
) -> ModelProto:
    """Return a detector with only a map [N,1,H,W]."""
    n, h, w = _axes(dynamic, batch, size)
    outputs = [f"{dtype}[{n},{h},{w}] {name}" if flat else f"{dtype}[{n},1,{h},{w}] {name}"]
    nodes = [*_map_nodes(flat), *_casts({"host_map": name}, dtype)]
    return _detector((n, h, w), outputs, nodes, opset=opset, ir_version=ir_version, flat=flat)


def identity(
    *,
    score: str | None = "N,1",
    map: str | None = "N,1,H,W",  # noqa: A002
    opset: int = 17,
    ir_version: int = 8,
    dtype: str = "float",
    names: tuple[str, str] = ("pred_score", "anomaly_map"),
) -> ModelProto:
    """Return a host whose outputs equal its inputs `score` and `map`; shape None leaves a level out, "" is a scalar."""
    levels = [
        (source, name, shape)
        for source, name, shape in zip(("score", "map"), names, (score, map), strict=True)
        if shape is not None
    ]
    inputs = ", ".join(f"{_type(dtype, shape)} {source}" for source, _, shape in levels)
    outputs = ", ".join(f"{_type(dtype, shape)} {name}" for _, name, shape in levels)
    nodes = "\n".join(f"{name} = Identity({source})" for source, name, _ in levels)
    return parse(f"identity_host ({inputs}) => ({outputs}) {{\n{nodes}\n}}", opset=opset, ir_version=ir_version)


def parse(graph: str, *, opset: int = 17, ir_version: int = 8) -> ModelProto:
    """Return a checked model of a graph in ONNX text."""
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{graph}')
    onnx.checker.check_model(model)
    return model


def expected(images: Array, *, flat: bool = False) -> dict[str, Array]:
    """Return what a float32 detector gives for images [N,3,H,W]; exact where these are multiples of 2^-8."""
    weights = np.array(CHANNEL_WEIGHTS, np.float32)[None, :, None, None]
    anomaly_map = (images * weights).sum(axis=1, keepdims=True, dtype=np.float32) + np.float32(BIAS)
    score = anomaly_map.max(axis=(2, 3))
    return {"pred_score": score[:, 0] if flat else score, "anomaly_map": anomaly_map[:, 0] if flat else anomaly_map}


def write(model: ModelProto, path: Path) -> Path:
    """Write the model in the format of the suffix, ONNX or an OpenVINO IR (.xml), and return the path."""
    if path.suffix == ".xml":
        return to_ir(model, path)
    onnx.save(model, path)
    return path


def raw_file(model: ModelProto, folder: Path, name: str = "raw", *, ir: bool = False) -> Path:
    """Write the model into a folder, as an OpenVINO IR or as ONNX, and return the path."""
    return write(model, folder / f"{name}{'.xml' if ir else '.onnx'}")


def attached(
    model: ModelProto, folder: Path, *, stats: CalibrationStats, ir: bool = False, **options: Any
) -> tuple[Path, Path]:
    """Write the model as a raw file and attach to it; return the raw file and the attached one."""
    raw = raw_file(model, folder, ir=ir)
    return raw, attach_postprocessing(raw, stats, **options).output


def to_ir(model: ModelProto, path: Path, *, compress_to_fp16: bool = False) -> Path:
    """Write the model as an OpenVINO IR (`path` is the .xml) and return the path."""
    from postproc_export.runtimes.openvino import import_openvino, openvino_core

    openvino = import_openvino(purpose="writing a test's IR")
    converted = openvino_core(purpose="writing a test's IR").read_model(model.SerializeToString())
    openvino.save_model(converted, path, compress_to_fp16=compress_to_fp16)
    return path


def _axes(dynamic: bool, batch: int | str | None, size: tuple[int, int]) -> tuple[int | str, int | str, int | str]:
    n, h, w = ("N", "H", "W") if dynamic else (1, *size)
    return (n if batch is None else batch), h, w


def _type(dtype: str, shape: str) -> str:
    return f"{dtype}[{shape}]" if shape else dtype


def _map_nodes(flat: bool) -> list[str]:
    nodes = ["map4 = Conv(input, weight, bias)"]
    return [*nodes, "host_map = Reshape(map4, flat_shape)"] if flat else [*nodes, "host_map = Identity(map4)"]


def _score_nodes(flat: bool) -> list[str]:
    nodes = ["pooled = GlobalMaxPool(map4)"]
    return (
        [*nodes, "host_score = Reshape(pooled, one_axis)"]
        if flat
        else [*nodes, "host_score = Flatten<axis = 1>(pooled)"]
    )


def _casts(values: dict[str, str], dtype: str) -> list[str]:
    if dtype == "float":
        return [f"{name} = Identity({value})" for value, name in values.items()]
    return [f"{name} = Cast<to = {_CODES[dtype]}>({value})" for value, name in values.items()]


def _detector(
    axes: tuple[int | str, int | str, int | str],
    outputs: Sequence[str],
    nodes: Sequence[str],
    *,
    opset: int,
    ir_version: int,
    flat: bool,
) -> ModelProto:
    n, h, w = axes
    weights = ", ".join(map(str, CHANNEL_WEIGHTS))
    constants = {"weight": f"float[1,3,1,1] {{{weights}}}", "bias": f"float[1] {{{BIAS}}}"}
    body = [*_flat_shapes(nodes, constants), *nodes] if flat else list(nodes)
    if ir_version < 4:  # an initializer had to be a graph input then
        body = [f"{name} = Constant<value = {value}>()" for name, value in constants.items()] + body
        initializers = ""
    else:
        listed = ", ".join(value.replace("]", f"] {name} =", 1) for name, value in constants.items())
        initializers = f"\n<{listed}>"
    text = "\n".join(body)
    graph = f"detector (float[{n},3,{h},{w}] input) => ({', '.join(outputs)}){initializers} {{\n{text}\n}}"
    return parse(graph, opset=opset, ir_version=ir_version)


def _flat_shapes(nodes: Sequence[str], constants: dict[str, str]) -> list[str]:
    made = []
    if any("flat_shape" in node for node in nodes):
        constants |= {"batch_axis": "int64[1] {0}", "size_axes": "int64[2] {2, 3}"}
        made += ["shape = Shape(input)", "n_axis = Gather(shape, batch_axis)", "hw_axes = Gather(shape, size_axes)"]
        made += ["flat_shape = Concat<axis = 0>(n_axis, hw_axes)"]
    if any("one_axis" in node for node in nodes):
        constants["one_axis"] = "int64[1] {-1}"
    return made
