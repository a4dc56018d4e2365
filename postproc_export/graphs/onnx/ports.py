"""The outputs of an ONNX model as ports: name, element type, declared shape."""

from typing import Final

import onnx

from postproc_export.runtimes.protocol import Axis, PortInfo

_NUMPY_NAMES: Final = {"FLOAT": "float32", "DOUBLE": "float64"}


def output_ports(model: onnx.ModelProto) -> list[PortInfo]:
    """Return the outputs in order; a shape that is not declared is inferred where ONNX can."""
    declared = list(model.graph.output)
    if all(item.type.tensor_type.HasField("shape") for item in declared):
        return [_port(item) for item in declared]
    inferred = {item.name: item for item in _inferred_outputs(model)}
    return [_port(inferred.get(item.name, item)) for item in declared]


def input_ports(model: onnx.ModelProto) -> list[PortInfo]:
    """Return the inputs that have to be fed, in order: those that no initializer gives a value to."""
    given = {tensor.name for tensor in model.graph.initializer}
    return [_port(item) for item in model.graph.input if item.name not in given]


def dtype_name(element_type: int) -> str:
    """Return the name of an element type: ``"float32"``, ``"bfloat16"``, ``"bool"``, ..."""
    name: str = onnx.TensorProto.DataType.Name(element_type)
    return _NUMPY_NAMES.get(name, name.lower())


def _port(item: onnx.ValueInfoProto) -> PortInfo:
    kind = item.type.WhichOneof("value")
    if kind != "tensor_type":
        return PortInfo(item.name, kind or "undefined", None)
    tensor = item.type.tensor_type
    shape = tuple(_axis(axis) for axis in tensor.shape.dim) if tensor.HasField("shape") else None
    return PortInfo(item.name, dtype_name(tensor.elem_type), shape)


def _axis(axis: onnx.TensorShapeProto.Dimension) -> Axis:
    if axis.HasField("dim_value") and axis.dim_value >= 0:
        return int(axis.dim_value)
    return axis.dim_param or None


def _inferred_outputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    try:
        return list(onnx.shape_inference.infer_shapes(model).graph.output)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return []  # what is not known is reported by whoever needs it, with the option that helps
