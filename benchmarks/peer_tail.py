"""The tail beside those of others: in the graph as Anomalib exports it, behind the model in NumPy, OpenCV and PyTorch.

Anomalib's tails are its real exports (`tests/data/postprocessor_only`), put behind the same raw model as ours. One
thread; the time of a graph is that of the whole graph, less that of the raw model where that computes anything.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from harness import Call
from onnx import compose, parser
from peer_rows import OURS, Row, Wanted, in_turn, installed, not_installed, rows_of

from postproc_export import CalibrationStats, LevelStats, PostProcessor, attach_to_onnx, attach_to_openvino

EXPORTS = Path(__file__).parents[1] / "tests" / "data" / "postprocessor_only"
ANOMALIB = {"Anomalib 2.6": "262_default_legacy", "Anomalib 2.7": "270_default_dynamo"}
STATS = CalibrationStats(  # those of the exports
    image=LevelStats(threshold=5.344675064086914, min=3.2433979511260986, max=12.298707962036133),
    pixel=LevelStats(threshold=4.661016464233398, min=0.6696368455886841, max=12.298707962036133),
)
SHAPES = ((1, 256), (32, 256), (1, 512), (8, 512), (1, 1024), (32, 1024), (4, 2048), (1, 4096))
HOSTS = {"nothing": "Identity(amap)", "Conv 3x3": "Conv<pads = [1, 1, 1, 1]>(amap, weight)"}
NAMES = ("pred_score", "anomaly_map")


def raw_model(behind: str, opset: int) -> onnx.ModelProto:
    """Return a model whose raw score is its first input and whose raw map comes from the second."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        raw (float[b] score, float[b,1,h,w] amap) => (float[b] pred_score, float[b,1,h,w] anomaly_map)
        <float[1,1,3,3] weight = {{0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1}}>
        {{ pred_score = Identity(score) anomaly_map = {HOSTS[behind]} }}"""
    )
    if behind == "nothing":
        del model.graph.initializer[:]
    return model


def anomalib_tail(version: str) -> onnx.ModelProto:
    """Return Anomalib's post-processor as it was exported, open to every size, without what was put in front of it."""
    model = onnx.load(EXPORTS / f"{ANOMALIB[version]}.onnx")
    graph = model.graph
    for port in (*graph.input, *graph.output):
        for axis, name in zip(port.type.tensor_type.shape.dim[2:], ("h", "w"), strict=False):
            axis.dim_param = name
    front = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Mul"}  # by 1: no part of it
    for node in graph.node:
        node.input[:] = [front.get(name, name) for name in node.input]
    kept = [node for node in graph.node if node.op_type != "Mul"]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    return model


def with_anomalib(version: str, behind: str) -> onnx.ModelProto:
    """Return a raw model with Anomalib's tail behind it."""
    tail = anomalib_tail(version)
    host = raw_model(behind, tail.opset_import[0].version)
    host.ir_version = tail.ir_version
    joins = list(zip((f"host/{name}" for name in NAMES), ("score", "amap"), strict=True))
    return compose.merge_models(compose.add_prefix(host, "host/"), tail, io_map=joins)


def with_ours(behind: str) -> onnx.ModelProto:
    """Return a raw model with our tail behind it."""
    model = raw_model(behind, 18)
    attach_to_onnx(model, STATS)
    return model


def inputs(shape: tuple[int, int]) -> list[np.ndarray]:
    """Return scores [N] and maps [N,1,H,W], some above the thresholds."""
    rng, (count, size) = np.random.default_rng(0), shape
    maps = rng.standard_normal((count, 1, size, size), dtype=np.float32)
    maps += np.float32(4)
    return [maps.max(axis=(1, 2, 3)), maps]


def onnxruntime_call(model: onnx.ModelProto, values: list[np.ndarray]) -> Call:
    """Return a run of one thread in ONNX Runtime with inputs and outputs that are allocated once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, ort = session.io_binding(), onnxruntime.OrtValue
    for item, value in zip(session.get_inputs(), values, strict=True):
        binding.bind_ortvalue_input(item.name, ort.ortvalue_from_numpy(value))
    for item in session.get_outputs():
        like = values[1] if item.name.endswith(("map", "mask")) else values[0]
        kind = bool if item.type == "tensor(bool)" else np.float32
        binding.bind_ortvalue_output(item.name, ort.ortvalue_from_shape_and_type(like.shape, kind))
    return lambda: session.run_with_iobinding(binding)


def openvino_call(model: openvino.Model, values: list[np.ndarray]) -> Call:
    """Return a run of one thread in OpenVINO, of static shapes, at float32."""
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    request = compiled.create_infer_request()
    for index, value in enumerate(values):
        request.set_input_tensor(index, openvino.Tensor(value, shared_memory=True))
    return request.infer


def openvino_model(model: onnx.ModelProto, values: list[np.ndarray]) -> openvino.Model:
    """Return a model as OpenVINO reads it, at the shapes of the values."""
    read = openvino.Core().read_model(model.SerializeToString())
    read.reshape({item.any_name: list(value.shape) for item, value in zip(read.inputs, values, strict=True)})
    return read


def in_graph(runtime: str, behind: str, values: list[np.ndarray]) -> dict[str, Call]:
    """Return the runs of a raw model with each tail, and of the raw model alone where it computes anything."""
    models = {version: with_anomalib(version, behind) for version in ANOMALIB}
    alone = {} if behind == "nothing" else {"raw": raw_model(behind, 18)}
    if runtime == "ONNX Runtime":
        models = {OURS: with_ours(behind), **models, **alone}
        return {who: onnxruntime_call(model, values) for who, model in models.items()}
    ours = openvino_model(raw_model(behind, 18), values)
    attach_to_openvino(ours, STATS)
    read = {who: openvino_model(model, values) for who, model in {**models, **alone}.items()}
    return {who: openvino_call(model, values) for who, model in {OURS: ours, **read}.items()}


def numpy_call(values: list[np.ndarray]) -> Call:
    """Return the steps in NumPy, with outputs that are allocated once."""
    levels = [
        (
            value,
            np.empty_like(value),
            np.empty(value.shape, np.bool_),
            np.float32(level.threshold),
            np.float32(level.max - level.min),
        )
        for value, level in zip(values, (STATS.image, STATS.pixel), strict=True)
    ]

    def call() -> None:
        for value, unit, label, threshold, span in levels:
            np.greater_equal(value, threshold, out=label)
            np.subtract(value, threshold, out=unit)
            np.divide(unit, span, out=unit)
            np.add(unit, np.float32(0.5), out=unit)
            np.clip(unit, np.float32(0), np.float32(1), out=unit)

    return call


def opencv_call(values: list[np.ndarray]) -> Call:
    """Return the steps of the map in OpenCV, with outputs that are allocated once; the score costs nothing there."""
    import cv2

    cv2.setNumThreads(1)
    maps, pixel = values[1].reshape(-1, values[1].shape[-1]), STATS.pixel
    unit, label = np.empty_like(maps), np.empty(maps.shape, np.uint8)
    slope = 1 / (pixel.max - pixel.min)

    def call() -> None:
        cv2.compare(maps, pixel.threshold, cv2.CMP_GE, dst=label)
        cv2.addWeighted(maps, slope, maps, 0.0, 0.5 - pixel.threshold * slope, dst=unit)
        cv2.threshold(unit, 1.0, 1.0, cv2.THRESH_TRUNC, dst=unit)
        cv2.threshold(unit, 0.0, 0.0, cv2.THRESH_TOZERO, dst=unit)

    return call


def torch_call(module: Any, values: list[np.ndarray]) -> Call:
    """Return a run of a PyTorch module on score and map."""
    import torch

    torch.set_num_threads(1)
    score, maps = map(torch.from_numpy, values)

    def call() -> None:
        with torch.inference_mode():
            module(score, maps)

    return call


def anomalib_call(values: list[np.ndarray]) -> Call:
    """Return a run of Anomalib's post-processor in PyTorch."""
    import torch
    from anomalib.data import InferenceBatch
    from anomalib.post_processing import PostProcessor as Theirs

    module = Theirs().eval()
    for level, stats in (("image", STATS.image), ("pixel", STATS.pixel)):
        for name, value in (
            (f"_{level}_threshold", stats.threshold),
            (f"{level}_min", stats.min),
            (f"{level}_max", stats.max),
        ):
            getattr(module, name).copy_(torch.tensor(value))
    return torch_call(lambda score, maps: module(InferenceBatch(pred_score=score, anomaly_map=maps)), values)


def model_api_call(values: list[np.ndarray]) -> Call:
    """Return Model API's own post-processing of a raw map, an image at a time as it takes them.

    It also rounds the map to a byte and resizes map and mask to the image's size, which is the map's here.
    """
    from model_api.adapters import OpenvinoAdapter
    from model_api.models import AnomalyDetection

    maps = values[1]
    host = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        raw (float[1,3,8,8] image) => (float[1,1,8,8] output) { output = ReduceMax<axes = [1]>(image) }"""
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.onnx"
        onnx.save(host, path)
        pixel = STATS.pixel
        wrapper = AnomalyDetection(
            OpenvinoAdapter(openvino.Core(), str(path)),
            {
                "image_threshold": STATS.image.threshold,
                "pixel_threshold": pixel.threshold,
                "normalization_scale": pixel.max - pixel.min,
                "labels": ["Normal", "Anomaly"],
                "task": "segmentation",
            },
        )
    meta = {"original_shape": (*maps.shape[2:], 3)}

    def call() -> None:
        for index in range(len(maps)):
            wrapper.postprocess({"output": maps[index : index + 1]}, meta)

    return call


def behind_the_model(values: list[np.ndarray]) -> dict[str, Call]:
    """Return what is done to raw outputs outside the graph, by who does it; those that are installed."""
    import torch

    module = PostProcessor(STATS)
    calls = {"NumPy": numpy_call(values), "PyTorch": torch_call(module, values)}
    torch._dynamo.reset()  # each shape is compiled for itself
    calls["torch.compile"] = torch_call(torch.compile(module, dynamic=False), values)
    for who, (name, make) in OUTSIDE.items():
        if installed(name):
            calls[who] = make(values)
    return calls


OUTSIDE = {
    "OpenCV": ("cv2", opencv_call),
    "Model API": ("model_api", model_api_call),
    "Anomalib 2.7 in PyTorch": ("anomalib", anomalib_call),
}
NOTES = {
    "Model API": "rounds the map to a byte and resizes it, too",
    "NumPy": "outputs allocated once",
    "OpenCV": "outputs allocated once; a NaN is normal",
}


def less_raw(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the times of the tails alone: less that of the raw model in the same round, if there was one."""
    raw = seconds.pop("raw", None)
    if raw is None:
        return seconds
    return {who: [a - b for a, b in zip(values, raw, strict=True)] for who, values in seconds.items()}


def rows(wanted: Wanted) -> Iterator[Row]:
    """Measure every shape, runtime and raw model."""
    for count, size in SHAPES:
        values = inputs((count, size))
        for behind in HOSTS:
            for runtime in ("ONNX Runtime", "OpenVINO"):
                case = f"{count}x{size}² behind {behind}, {runtime}"
                if not wanted(case):
                    continue
                calls = in_graph(runtime, behind, values)
                if behind == "nothing" and runtime == "ONNX Runtime":
                    calls |= behind_the_model(values)
                seconds = less_raw(in_turn(calls, seconds=5))
                yield from rows_of("tail", case, seconds, NOTES)
    for who, (name, _) in OUTSIDE.items():
        if not installed(name):
            yield not_installed("tail", "all", who, PACKAGES[name])


PACKAGES = {"cv2": "opencv-python-headless", "model_api": "openvino-model-api", "anomalib": "anomalib"}
