"""Faults planted into an attached ONNX model: what a careless exporter, converter or editor does to a tail."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Fault = Callable[[onnx.ModelProto], None]


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """Return the node that computes a value."""
    return next(node for node in model.graph.node if output in node.output)


def less_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """Return the comparison that decides a label or mask, whatever shapes stand behind it."""
    node = node_of(model, output)
    while node.op_type != "Less":
        node = node_of(model, node.input[0])
    return node


def constant_of(model: onnx.ModelProto, output: str) -> onnx.TensorProto:
    """Return the boundary that a label is compared with."""
    less = less_of(model, output)
    return next(tensor for tensor in model.graph.initializer if tensor.name == less.input[1])


def set_value(tensor: onnx.TensorProto, value: Any) -> None:
    """Give a constant another number."""
    changed = numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), tensor.name)
    tensor.CopyFrom(changed)


def one_ulp_off(model: onnx.ModelProto) -> None:
    """Move the boundary of the image level up by one ulp."""
    tensor = constant_of(model, "pred_label")
    set_value(tensor, np.nextafter(numpy_helper.to_array(tensor).reshape(()), np.float32(np.inf)))


def half_precision_boundary(model: onnx.ModelProto) -> None:
    """Round the boundary of the pixel level to float16, as a converter may."""
    tensor = constant_of(model, "pred_mask")
    set_value(tensor, numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32))


def half_precision_slope(model: onnx.ModelProto) -> None:
    """Round alpha of the map to float16."""
    alpha = next(item for item in node_of(model, "anomaly_map").attribute if item.name == "alpha")
    alpha.f = float(np.float16(alpha.f))


def greater(model: onnx.ModelProto) -> None:
    """Decide by `>` in place of `>=`: not (s <= boundary)."""
    node_of(model, node_of(model, "pred_label").input[0]).op_type = "LessOrEqual"


def nan_as_normal(model: onnx.ModelProto) -> None:
    """Decide by `boundary <= s`, false for NaN on every processor, as GreaterEqual is not in OpenVINO."""
    label, less = node_of(model, "pred_mask"), less_of(model, "pred_mask")
    label.op_type, less.op_type = "Identity", "LessOrEqual"
    less.input[:] = list(reversed(less.input))


def no_guard(model: onnx.ModelProto) -> None:
    """Let the image level read the raw score and pass by the guard."""
    guard = next(node for node in model.graph.node if node.op_type == "Where")
    raw = guard.input[2]
    for node in model.graph.node:
        node.input[:] = [raw if name == guard.output[0] else name for name in node.input]


def laid_out_for_one(model: onnx.ModelProto) -> None:
    """Freeze the batch axis inside the tail: lay out what guards the score in the shape that an example had."""
    where = next(node for node in model.graph.node if node.op_type == "Where")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1]), "postproc/frozen"))
    frozen = helper.make_node(
        "Reshape", [where.input[0], "postproc/frozen"], ["postproc/reshaped"], name="postproc/reshaped"
    )
    model.graph.node.insert([*model.graph.node].index(where), frozen)
    where.input[0] = "postproc/reshaped"


def frozen_guard(model: onnx.ModelProto) -> None:
    """Freeze the batch axis of a guard as earlier files have it, which other tools leave so, too."""
    axes = next(each for each in model.graph.initializer if each.name == "postproc/pred_score/axes")
    axes.CopyFrom(numpy_helper.from_array(np.array([1, 2, 3]), axes.name))
    laid_out_for_one(model)


def bfloat16(model: onnx.ModelProto) -> None:
    """Compute the map's tail on values rounded to bfloat16."""
    raw = less_of(model, "pred_mask").input[0]
    casts = [
        helper.make_node("Cast", [raw], ["postproc/low"], name="postproc/low", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["postproc/low"], ["postproc/high"], name="postproc/high", to=TensorProto.FLOAT),
    ]
    first = next(i for i, node in enumerate(model.graph.node) if node.name.startswith("postproc/"))
    for node in model.graph.node[first:]:
        node.input[:] = ["postproc/high" if name == raw else name for name in node.input]
    nodes = [*model.graph.node[:first], *casts, *model.graph.node[first:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def other_input(model: onnx.ModelProto) -> None:
    """Let the label read a graph input in place of the raw value."""
    less_of(model, "pred_mask").input[0] = "map"


def swapped_order(model: onnx.ModelProto) -> None:
    """Swap the first two outputs."""
    first, second, *others = list(model.graph.output)
    outputs = [onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in (second, first, *others)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def swapped_names(model: onnx.ModelProto) -> None:
    """Let score and map come out under each other's names."""
    names = {"pred_score": "anomaly_map", "anomaly_map": "pred_score"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]


def frozen_batch(model: onnx.ModelProto) -> None:
    """Declare a batch axis of 1."""
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 1


def missing_mask(model: onnx.ModelProto) -> None:
    """Drop an output."""
    del model.graph.output[3]


def other_dtype(model: onnx.ModelProto) -> None:
    """Give the mask out as uint8 though the record says bool."""
    node_of(model, "pred_mask").output[0] = "postproc/mask"
    cast = helper.make_node("Cast", ["postproc/mask"], ["pred_mask"], name="postproc/cast", to=TensorProto.UINT8)
    model.graph.node.append(cast)
    model.graph.output[3].type.tensor_type.elem_type = TensorProto.UINT8


def swapped_range(model: onnx.ModelProto) -> None:
    """Normalise the map by min - max in place of max - min."""
    for attribute in node_of(model, "anomaly_map").attribute:
        attribute.f = -attribute.f if attribute.name == "alpha" else attribute.f


def swapped_channels(model: onnx.ModelProto) -> None:
    """Let the body take BGR for RGB."""
    tensor = next(item for item in model.graph.initializer if item.name == "weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1].copy(), tensor.name))


def frozen_input(model: onnx.ModelProto) -> None:
    """Declare a batch axis of 1 on every input and output."""
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1


def lost_entry(model: onnx.ModelProto) -> None:
    """Drop a metadata entry that the original had."""
    model.metadata_props.remove(next(item for item in model.metadata_props if item.key == "classes"))


def lost_record(model: onnx.ModelProto) -> None:
    """Drop the record of the tail."""
    model.metadata_props.remove(next(item for item in model.metadata_props if item.key == "postproc_export"))


def edited_record(edit: Callable[[dict[str, Any]], None]) -> Fault:
    """Return a fault that changes the record of the tail."""

    def fault(model: onnx.ModelProto) -> None:
        entry = next(item for item in model.metadata_props if item.key == "postproc_export")
        document = json.loads(entry.value)
        edit(document)
        entry.value = json.dumps(document)

    return fault
