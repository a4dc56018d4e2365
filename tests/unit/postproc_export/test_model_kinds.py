"""Copies of a model are taken for it, others of its architecture are not: benchmarks/belonging.py in small."""

from collections.abc import Callable
from pathlib import Path

import hosts
import numpy as np
import onnx
import onnxruntime
import pytest
from model_files import SIZE, statistics
from onnx import TensorProto, helper, numpy_helper

from postproc_export import attach_postprocessing, detach_postprocessing
from postproc_export.errors import UsageError

CHANNELS = 6
MODEL = """detector (float[N,3,8,8] input) => (float[N,1] pred_score, float[N,1,8,8] anomaly_map) {
    features = Conv<pads = [1, 1, 1, 1]>(input, w1, b1) kept = Relu(features)
    difference = Sub(kept, mean) square = Mul(difference, difference) weighed = Conv(square, w2)
    anomaly_map = Sqrt(weighed) pooled = GlobalMaxPool(anomaly_map) pred_score = Flatten<axis = 1>(pooled) }"""


def detector(seed: int = 0, category: int = 0) -> onnx.ModelProto:
    """Return a detector: the distance of random features, of the seed, to the mean of those of a category."""
    rng, seen = np.random.default_rng(seed), np.random.default_rng(100 + category)
    weights = {
        "w1": rng.normal(0, 0.4, (CHANNELS, 3, 3, 3)),
        "b1": rng.normal(0, 0.1, CHANNELS),
        "mean": seen.uniform(0, 0.3, (1, CHANNELS, 1, 1)),
        "w2": seen.uniform(0.2, 1.0, (1, CHANNELS, 1, 1)) / CHANNELS,
    }
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{MODEL}')
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    )
    onnx.checker.check_model(model)
    return model


def itself(model: onnx.ModelProto, folder: Path) -> Path:
    """Write the model as it is."""
    return hosts.write(model, folder / "itself.onnx")


def other_opset(model: onnx.ModelProto, folder: Path) -> Path:
    """Declare another opset, in which the operators mean the same."""
    model.opset_import[0].version = 13
    return hosts.write(model, folder / "opset.onnx")


def with_copies(model: onnx.ModelProto, folder: Path) -> Path:
    """Put operators in that do nothing, as exporters do."""
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.input[0] = "copied"
    at = list(model.graph.node).index(node)
    nodes = list(model.graph.node)
    nodes.insert(at, helper.make_node("Identity", ["features"], ["copied"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return hosts.write(model, folder / "copies.onnx")


def slimmed(model: onnx.ModelProto, folder: Path) -> Path:
    """Save what ONNX Runtime's basic optimisations leave."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "slim.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(with_copies(model, folder)), options, providers=["CPUExecutionProvider"])
    return folder / "slim.onnx"


def half_weights(model: onnx.ModelProto, folder: Path) -> Path:
    """Store the weights in float16, behind casts."""
    casts = []
    for tensor in model.graph.initializer:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return hosts.write(model, folder / "half.onnx")


def renamed_data(model: onnx.ModelProto, folder: Path) -> Path:
    """Save with the weights beside it."""
    path = folder / "data.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def as_ir(model: onnx.ModelProto, folder: Path) -> Path:
    """Convert to an IR."""
    return hosts.to_ir(model, folder / "model.xml")


def as_half_ir(model: onnx.ModelProto, folder: Path) -> Path:
    """Convert to an IR with weights in float16."""
    return hosts.to_ir(model, folder / "half.xml", compress_to_fp16=True)


def detached(model: onnx.ModelProto, folder: Path, made: Callable[[onnx.ModelProto, Path], Path] = itself) -> Path:
    """Attach to the file that is made of it, and take that off again."""
    path = made(model, folder)
    attached = attach_postprocessing(path, statistics(path)).output
    assert attached is not None
    result = detach_postprocessing(attached, output=folder / f"detached{path.suffix}")
    assert result.output is not None
    return result.output


def detached_ir(model: onnx.ModelProto, folder: Path) -> Path:
    """Do the same with an IR."""
    return detached(model, folder, as_ir)


def moved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put noise of 5 % on all weights."""
    rng = np.random.default_rng(9)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            numpy_helper.from_array(values * rng.normal(1, 0.05, values.shape).astype(np.float32), tensor.name)
        )
    return model


def activated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep all weights, and have another activation."""
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"
    return model


COPIES = (
    itself, other_opset, with_copies, slimmed, half_weights, renamed_data, as_ir, as_half_ir, detached, detached_ir
)  # fmt: skip
OTHERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "another-seed": lambda: detector(1),
    "a-third-seed": lambda: detector(2),
    "another-category": lambda: detector(0, 1),
    "a-third-category": lambda: detector(0, 2),
    "noise-on-the-weights": lambda: moved(detector()),
    "another-activation": lambda: activated(detector()),
}


@pytest.mark.parametrize("copy", COPIES)
def test_no_copy_is_refused(copy: Callable[[onnx.ModelProto, Path], Path], tmp_path: Path) -> None:
    """Whatever exporter, format, precision of weights or detour: the statistics of the model are its own."""
    (tmp_path / "first").mkdir()
    stats = statistics(hosts.write(detector(), tmp_path / "first" / "model.onnx"))
    remarks = attach_postprocessing(copy(detector(), tmp_path), stats, output=None).remarks
    assert all("taken for the same model" in remark for remark in remarks)
    is_same_content = copy in (itself, other_opset, renamed_data, detached)
    assert (remarks == ()) is is_same_content


@pytest.mark.parametrize("ir", [False, True], ids=["onnx", "openvino"])
@pytest.mark.parametrize("name", OTHERS)
def test_no_other_model_passes(name: str, ir: bool, tmp_path: Path) -> None:
    """Of the same architecture, in either format."""
    stats = statistics(hosts.write(detector(), tmp_path / "model.onnx"))
    with pytest.raises(UsageError, match="the statistics belong to another model"):
        attach_postprocessing(hosts.raw_file(OTHERS[name](), tmp_path, "other", ir=ir), stats)


def test_the_images_are_of_the_calibrated_size(tmp_path: Path) -> None:
    """What is compared here is what the statistics record."""
    stats = statistics(hosts.write(detector(), tmp_path / "model.onnx"))
    assert tuple(stats.details["preprocessing"]["size"]) == SIZE
