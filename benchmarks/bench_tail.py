"""The tail against the chain of elementwise operators that it stands for, and against a copy of the map.

One thread, float32 maps, outputs preallocated, the alternatives in turn. Usage: python benchmarks/bench_tail.py
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import openvino.opset13 as opset
from harness import Call, environment, interleaved, publish, ratio, summary
from onnx import TensorProto, helper

from graph_patterns.expr import Expr
from graph_patterns.onnx.graph import OnnxTarget, emit
from graph_patterns.openvino import emit as emit_openvino
from postproc_export.options import TailOptions
from postproc_export.ports import Selection
from postproc_export.runtimes import PortInfo
from postproc_export.stats import CalibrationStats, LevelStats
from postproc_export.tail import build_tail

SHAPES = ((8, 1, 512, 512), (4, 1, 2048, 2048))
ROUNDS = 41
THRESHOLD, LOW, HIGH = 0.6, -2.0, 3.0
TARGET = OnnxTarget(17, 8)


def tail(shape: tuple[int, ...], *, nan_guard: bool, nan_test: str, mask_dtype: str) -> dict[str, Expr]:
    """Return the map's two outputs, or with the guard the score's too."""
    level = LevelStats(threshold=THRESHOLD, min=LOW, max=HIGH)
    stats = CalibrationStats(image=level if nan_guard else None, pixel=level)
    selection = Selection(PortInfo("s", "float32", (shape[0], 1)), PortInfo("m", "float32", shape))
    built = build_tail(
        stats,
        TailOptions(),
        selection,
        nan_test=nan_test,
        default_mask_dtype=mask_dtype,  # type: ignore[arg-type]
    )
    return {output.name: output.expr for output in built.outputs}


def onnx_chain() -> list[onnx.NodeProto]:
    """Return the chain as Anomalib exports it: Sub, Div, Add, Clip, and Greater on the result."""
    return [
        helper.make_node("Sub", ["raw_map", "threshold"], ["centred"]),
        helper.make_node("Div", ["centred", "span"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "zero", "one"], ["anomaly_map"]),
        helper.make_node("Greater", ["anomaly_map", "half"], ["pred_mask"]),
    ]


def onnx_session(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], shape: tuple[int, ...], outputs: list[str]
) -> onnxruntime.InferenceSession:
    """Return a session of one thread for a graph of these nodes."""
    score = helper.make_tensor_value_info("raw_score", TensorProto.FLOAT, [shape[0], 1])
    maps = helper.make_tensor_value_info("raw_map", TensorProto.FLOAT, list(shape))
    kinds = {"pred_mask": TensorProto.BOOL, "pred_label": TensorProto.BOOL}
    infos = [
        helper.make_tensor_value_info(
            name,
            kinds.get(name, TensorProto.FLOAT),
            [shape[0], 1] if name in ("pred_score", "pred_label") else list(shape),
        )
        for name in outputs
    ]
    graph = helper.make_graph(nodes, "g", [maps, score], infos, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", TARGET.opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound(session: onnxruntime.InferenceSession, maps: np.ndarray) -> Call:
    """Return a run with inputs and outputs that are allocated once."""
    binding = session.io_binding()
    values = {"raw_map": maps, "raw_score": np.zeros((maps.shape[0], 1), np.float32)}
    for item in session.get_inputs():
        binding.bind_ortvalue_input(item.name, onnxruntime.OrtValue.ortvalue_from_numpy(values[item.name]))
    for item in session.get_outputs():
        kind = bool if item.type == "tensor(bool)" else np.float32
        binding.bind_ortvalue_output(item.name, onnxruntime.OrtValue.ortvalue_from_shape_and_type(item.shape, kind))
    return lambda: session.run_with_iobinding(binding)


def onnx_calls(maps: np.ndarray) -> dict[str, Call]:
    """Return the alternatives in ONNX Runtime."""
    shape = maps.shape
    numbers = {"threshold": THRESHOLD, "span": HIGH - LOW, "half": 0.5, "zero": 0.0, "one": 1.0}
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in numbers.items()]
    inputs = {"raw_map": "raw_map", "raw_score": "raw_score"}
    calls = {
        "chain": bound(onnx_session(onnx_chain(), constants, shape, ["anomaly_map", "pred_mask"]), maps),
        "identity": bound(
            onnx_session([helper.make_node("Identity", ["raw_map"], ["anomaly_map"])], [], shape, ["anomaly_map"]), maps
        ),
    }
    for name, guard in (("tail", False), ("tail with NaN guard", True)):
        outputs = tail(shape, nan_guard=guard, nan_test="sum", mask_dtype="bool")
        fragment = emit(outputs, inputs=inputs, target=TARGET, prefix="postproc/")
        session = onnx_session(list(fragment.node), list(fragment.initializer), shape, list(outputs))
        calls[name] = bound(session, maps)
    return calls


def openvino_call(model: Any, maps: np.ndarray) -> Call:
    """Return a run of one thread with inputs and outputs that are allocated once."""
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    values = [maps, np.zeros((maps.shape[0], 1), np.float32)]
    for index in range(len(compiled.inputs)):
        request.set_input_tensor(index, openvino.Tensor(values[index], shared_memory=True))
    return request.infer


def openvino_calls(maps: np.ndarray) -> dict[str, Call]:
    """Return the alternatives in OpenVINO."""
    calls: dict[str, Call] = {}
    raw = opset.parameter(list(maps.shape), np.float32, name="raw_map")
    half = opset.constant(np.float32(0.5))
    centred = opset.subtract(raw, opset.constant(np.float32(THRESHOLD)))
    scaled = opset.divide(centred, opset.constant(np.float32(HIGH - LOW)))
    unit = opset.clamp(opset.add(scaled, half), 0.0, 1.0)
    chain = openvino.Model([opset.result(unit), opset.result(opset.greater(unit, half))], [raw], "chain")
    calls["chain, boolean mask"] = openvino_call(chain, maps)
    copied = opset.parameter(list(maps.shape), np.float32, name="raw_map")
    copy = openvino.Model([opset.result(opset.relu(copied))], [copied], "copy")
    calls["relu"] = openvino_call(copy, maps)
    for name, guard in (("tail", False), ("tail with NaN guard", True)):
        raw_map = opset.parameter(list(maps.shape), np.float32, name="raw_map")
        raw_score = opset.parameter([maps.shape[0], 1], np.float32, name="raw_score")
        outputs = tail(maps.shape, nan_guard=guard, nan_test="l1", mask_dtype="uint8")
        inputs = {"raw_map": raw_map.output(0), "raw_score": raw_score.output(0)}
        emitted = emit_openvino(outputs, inputs=inputs, prefix="postproc/")
        parameters = [raw_map, raw_score] if guard else [raw_map]
        model = openvino.Model([opset.result(item) for item in emitted.values()], parameters, "tail")
        calls[name] = openvino_call(model, maps)
    return calls


def ratios(shape: tuple[int, ...], ort: Mapping[str, list[float]], ov: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the ratios that the README quotes, for one shape."""
    label = "x".join(map(str, shape))
    guard = [
        (with_guard - without) / copy
        for with_guard, without, copy in zip(ort["tail with NaN guard"], ort["tail"], ort["identity"], strict=True)
    ]
    return {
        f"ONNX Runtime {label}: chain / tail": ratio(ort, "chain", "tail"),
        f"ONNX Runtime {label}: tail / identity": ratio(ort, "tail", "identity"),
        f"ONNX Runtime {label}: NaN guard / identity": float(np.median(guard)),
        f"OpenVINO {label}: chain with boolean mask / tail": ratio(ov, "chain, boolean mask", "tail"),
        f"OpenVINO {label}: tail / relu": ratio(ov, "tail", "relu"),
        f"OpenVINO {label}: tail with NaN guard / tail": ratio(ov, "tail with NaN guard", "tail"),
    }


def main() -> None:
    """Measure both runtimes at both shapes."""
    figures: dict[str, Any] = {}
    quoted: dict[str, float] = {}
    for shape in SHAPES:
        maps = np.random.default_rng(0).normal(0.0, 1.0, shape).astype(np.float32)
        ort, ov = interleaved(onnx_calls(maps), rounds=ROUNDS), interleaved(openvino_calls(maps), rounds=ROUNDS)
        figures["x".join(map(str, shape))] = {"onnxruntime": summary(ort), "openvino": summary(ov)}
        quoted |= {name: round(value, 2) for name, value in ratios(shape, ort, ov).items()}
    machine = environment("onnxruntime", "openvino", "numpy", "onnx")
    publish("tail", {"rounds": ROUNDS, "ratios": quoted, "figures": figures, "environment": machine})


if __name__ == "__main__":
    main()
