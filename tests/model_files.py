"""Statistics that name the model that they were calibrated on, and models that are other exports of it, or others."""

from pathlib import Path
from typing import Any

import hosts
import numpy as np
import onnx
from onnx import helper, numpy_helper

from postproc_export import CalibrationStats, LevelStats
from postproc_export.belonging import model_details
from postproc_export.images import Preprocessing
from postproc_export.raw_model import open_raw
from postproc_export.record import parse_tails

SIZE = (8, 8)
FED = Preprocessing(size=SIZE, scale=255.0, dtype="float32")
SPAN = 0.75


def statistics(
    model: Path,
    *,
    image: bool = True,
    pixel: bool = True,
    preprocessing: Preprocessing | None = FED,
    step: str = "",
    **outputs: str,
) -> CalibrationStats:
    """Return statistics as a calibration of the model writes them, with a range that the detectors' values have."""
    level = LevelStats(threshold=0.25, min=-0.125, max=SPAN - 0.125)
    steps = parse_tails(step or ())
    chosen = {"image_output": None, "pixel_output": None, **outputs}
    runner, selection, recorded = open_raw(model, outputs=chosen, steps=steps)
    details: dict[str, Any] = {"model": model_details(model, selection, lambda: (runner, selection), preprocessing)}
    details |= {} if preprocessing is None else {"preprocessing": preprocessing.to_json()}
    details |= {"tail": [spec.to_json() for spec in recorded]} if recorded else {}
    return CalibrationStats(image=level if image else None, pixel=level if pixel else None, details=details)


def refactored(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an export of the same model with other constants: half the weights, and twice what comes out."""
    weight, bias = model.graph.initializer
    for item in (weight, bias):
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) / 2, item.name))
    (convolution,) = (node for node in model.graph.node if node.op_type == "Conv")
    convolution.output[0] = "half"
    at = list(model.graph.node).index(convolution)
    nodes = list(model.graph.node)
    nodes.insert(at + 1, helper.make_node("Add", ["half", "half"], ["map4"], name="double"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def shifted(model: onnx.ModelProto, by: float) -> onnx.ModelProto:
    """Return a model whose raw values are all so much higher."""
    (bias,) = (item for item in model.graph.initializer if item.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(by), "bias"))
    return model


def other(**options: Any) -> onnx.ModelProto:
    """Return a model of the same architecture with other weights."""
    model = hosts.score_and_map(**options)
    (weight,) = (item for item in model.graph.initializer if item.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), "weight"))
    return model
