"""The same faults planted into an attached IR, a function of an `openvino.Model` each; see `planted_onnx`."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Fault = Callable[[Any], Any]
"""Changes a model, or returns another in its place."""


def result_of(model: Any, name: str) -> Any:
    """Return the result with a name."""
    return next(item for item in model.get_results() if name in item.input_value(0).get_names())


def decision_of(model: Any, name: str) -> Any:
    """Return the operator that decides a label or mask, whatever type and shape are made of that behind it."""
    node = result_of(model, name).input_value(0).get_node()
    while node.get_type_name() in ("Convert", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node


def less_of(model: Any, name: str) -> Any:
    """Return the comparison that decides a label or mask, whatever view of it is decided on."""
    node = decision_of(model, name)
    while node.get_type_name() != "Less":
        node = node.input_value(0).get_node()
    return node


def _constant(node: Any, change: Callable[[Any], Any]) -> None:
    import openvino.opset13 as opset

    value = change(node.input_value(1).get_node().get_data()).astype(np.float32)
    node.input(1).replace_source_output(opset.constant(value).output(0))


def _in_place_of(old: Any, new: Any) -> None:
    names = old.output(0).get_names()
    old.output(0).replace(new.output(0))
    new.output(0).set_names(names)


def one_ulp_off(model: Any) -> None:
    """Move the boundary of the image level up by one ulp."""
    _constant(less_of(model, "pred_label"), lambda value: np.nextafter(value, np.float32(np.inf)))


def half_precision_boundary(model: Any) -> None:
    """Round the boundary of the pixel level to float16, as a converter may."""
    _constant(less_of(model, "pred_mask"), lambda value: value.astype(np.float16))


def swapped_range(model: Any) -> None:
    """Normalise the map by min - max in place of max - min."""
    _constant(result_of(model, "anomaly_map").input_value(0).get_node(), np.negative)


def greater(model: Any) -> None:
    """Decide by `>` in place of `>=`: not (s <= boundary)."""
    import openvino.opset13 as opset

    less = less_of(model, "pred_label")
    _in_place_of(less, opset.less_equal(less.input_value(0), less.input_value(1)))


def nan_as_normal(model: Any) -> None:
    """Decide by `boundary <= s`, false for NaN on every processor: GreaterEqual is true for it with AVX-512."""
    import openvino.opset13 as opset

    label, less = decision_of(model, "pred_mask"), less_of(model, "pred_mask")
    _in_place_of(label, opset.less_equal(less.input_value(1), less.input_value(0)))


def bfloat16(model: Any) -> None:
    """Compute the map's tail on values rounded to bfloat16."""
    import openvino.opset13 as opset

    for name in ("anomaly_map", "pred_mask"):
        node = less_of(model, name) if name == "pred_mask" else result_of(model, name).input_value(0).get_node()
        low = opset.convert(node.input_value(0), "bf16")
        node.input(0).replace_source_output(opset.convert(low, "f32").output(0))


def swapped_order(model: Any) -> Any:
    """Swap the first two outputs."""
    import openvino

    first, second, *others = model.get_results()
    swapped = openvino.Model([second, first, *others], model.get_parameters(), model.get_friendly_name())
    for key in ("postproc_export", "classes"):
        if model.has_rt_info([key]):
            swapped.set_rt_info(model.get_rt_info([key]).astype(str), [key])
    return swapped


def swapped_channels(model: Any) -> None:
    """Let the body take BGR for RGB."""
    import openvino.opset13 as opset

    convolution = next(node for node in model.get_ops() if node.get_type_name() == "Convolution")
    weights = convolution.input_value(1).get_node().get_data()[:, ::-1].copy()
    convolution.input(1).replace_source_output(opset.constant(weights).output(0))


def frozen_input(model: Any) -> None:
    """Freeze the batch axis to 1, as reshaping for a device does."""
    import openvino

    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        shape[0] = 1
        shapes[port.get_any_name()] = openvino.PartialShape(shape)
    model.reshape(shapes)


def lost_entry(model: Any) -> None:
    """Drop a metadata entry that the original had."""
    del model.get_rt_info()["classes"]


def lost_record(model: Any) -> None:
    """Drop the record of the tail."""
    del model.get_rt_info()["postproc_export"]


def edited_record(edit: Callable[[dict[str, Any]], None]) -> Fault:
    """Return a fault that changes the record of the tail."""

    def fault(model: Any) -> None:
        document = json.loads(model.get_rt_info(["postproc_export"]).astype(str))
        edit(document)
        model.set_rt_info(json.dumps(document), ["postproc_export"])

    return fault
