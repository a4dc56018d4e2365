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
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

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


def keras() -> ModelProto:
    """Return a detector as tf2onnx writes it: channels last outside, transposed inside, nodes named after outputs."""
    weights = ", ".join(map(str, CHANNEL_WEIGHTS))
    return parse(
        f"""keras (float[N,32,32,3] input_1) => (float[N,32,32,1] conv2d, float[N,1] dense)
        <float[1,3,1,1] weight = {{{weights}}}, float[1] bias = {{{BIAS}}}> {{
        [Transpose_0] planes = Transpose<perm = [0,3,1,2]>(input_1) [conv2d_1] maps = Conv(planes, weight, bias)
        [conv2d] conv2d = Transpose<perm = [0,2,3,1]>(maps)
        [pooling] pooled = GlobalMaxPool(maps) [dense] dense = Flatten<axis = 1>(pooled) }}"""
    )


def draem() -> ModelProto:
    """Return a detector of two classes for each pixel, by softmax, and for each image; the second is the anomaly."""
    weights = ", ".join(str(sign * weight) for sign in (-1, 1) for weight in CHANNEL_WEIGHTS)
    return parse(
        f"""draem (float[N,3,32,32] input) => (float[N,2,32,32] probabilities, float[N,2] score)
        <float[2,3,1,1] weight = {{{weights}}}, float[2] bias = {{{-BIAS}, {BIAS}}}> {{
        maps = Conv(input, weight, bias) probabilities = Softmax<axis = 1>(maps)
        pooled = GlobalMaxPool(probabilities) score = Flatten<axis = 1>(pooled) }}"""
    )


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


LARGE = 4000  # float32 values; a payload of this size is not in a skeleton


def rich_model() -> onnx.ModelProto:
    """Return a detector whose outputs bear the tail's names, so that attaching has to rename, inside a branch too."""
    nodes = [
        helper.make_node("Scale", ["input"], ["scaled"], name="scale", domain="own"),
        helper.make_node("Mul", ["scaled", "large"], ["weighted"], name="weigh"),
        helper.make_node("Constant", [], ["zero"], name="zero", value=_tensor("", [0.0])),
        helper.make_node("Add", ["weighted", "zero"], ["anomaly_map"], name="add", doc_string="adds nothing"),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pooled"], name="pool", axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["pooled", "sparse"], ["shifted"], name="shift"),
        helper.make_node("If", ["condition"], ["chosen"], name="choose", then_branch=_branch(), else_branch=_branch()),
        helper.make_node("Identity", ["shifted"], ["pred_score"], name="score"),
    ]
    nodes[3].metadata_props.add(key="namespace", value="head")
    graph = helper.make_graph(
        nodes,
        "rich",
        [_info("input", ["N", 1, 8, LARGE // 8])],
        [_info("anomaly_map", ["N", 1, 8, LARGE // 8]), _info("chosen", None), _info("pred_score", ["N", 1])],
        doc_string="a graph",
        initializer=[
            numpy_helper.from_array(np.linspace(0, 1, LARGE, dtype=np.float32).reshape(1, 1, 8, -1), "large"),
            helper.make_tensor("condition", TensorProto.BOOL, [], [True]),
        ],
        value_info=[_info("weighted", ["N", 1, 8, LARGE // 8]), _info("anomaly_map", None)],
        sparse_initializer=[
            helper.make_sparse_tensor(_tensor("sparse", [0.25]), numpy_helper.from_array(np.array([0]), "at"), [1])
        ],
    )
    annotation = graph.quantization_annotation.add(tensor_name="anomaly_map")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="pred_score")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[_scale()], ir_version=10)
    model.producer_name, model.model_version, model.doc_string = "somebody", 7, "a model"
    model.metadata_props.add(key="vendor", value="pred_score")
    training = model.training_info.add()
    training.algorithm.CopyFrom(
        helper.make_graph([helper.make_node("Neg", ["pred_score"], ["loss"])], "step", [], [_info("loss", None)])
    )
    training.update_binding.add(key="anomaly_map", value="loss")
    return model


def _scale() -> onnx.FunctionProto:
    body = helper.make_node("Mul", ["pred_score", "pred_score"], ["y"])
    return helper.make_function("own", "Scale", ["pred_score"], ["y"], [body], [helper.make_opsetid("", 17)])


def _branch() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Neg", ["anomaly_map"], ["inside"])], "b", [], [_info("inside", None)])


def _tensor(name: str, values: list[float]) -> onnx.TensorProto:
    tensor: onnx.TensorProto = numpy_helper.from_array(np.array(values, np.float32), name)
    return tensor


def _info(name: str, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
