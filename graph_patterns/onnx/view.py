"""An ONNX graph as the matcher sees it; payloads are never loaded, only numbers of one element are read."""

import math
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graph_patterns.expr import Param
from graph_patterns.match import NodeView, Number, Value
from graph_patterns.onnx.emit import ELEMENT_TYPES, INITIALIZERS_NEED_NO_INPUT_SINCE, LOWERINGS, OnnxForm

_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_HARD_SIGMOID_DEFAULTS: Final = {"alpha": 0.2, "beta": 0.5}
_LARGEST_FLOAT: Final = 3.4028234663852886e38
_CLIP_DEFAULTS: Final = {"min": -_LARGEST_FLOAT, "max": _LARGEST_FLOAT}
_ATTRIBUTE_DEFAULTS: Final = {"HardSigmoid": _HARD_SIGMOID_DEFAULTS, "Clip": _CLIP_DEFAULTS}
_LONGEST_COPY: Final = 8  # Identity nodes behind one constant
_DTYPES: Final = {element_type: name for name, element_type in ELEMENT_TYPES.items()}
_OPS_BY_TYPE: Final = {form.op_type: op for op, forms in LOWERINGS.items() for form in forms}


class OnnxView:
    """The top-level graph of a model or of its skeleton; values are named by strings."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._opset = default_opset(model)
        self._initializers_are_inputs = model.ir_version < INITIALIZERS_NEED_NO_INPUT_SINCE

    @cached_property
    def _producers(self) -> Mapping[str, onnx.NodeProto]:
        return {name: node for node in self._graph.node for name in node.output if name}

    @cached_property
    def _initializers(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self._graph.initializer}

    @cached_property
    def _overridable(self) -> frozenset[str]:
        # Every initializer had to be listed as an input once, and nobody overrides them.
        return frozenset() if self._initializers_are_inputs else self._inputs

    @cached_property
    def _inputs(self) -> frozenset[str]:
        return frozenset(item.name for item in self._graph.input)

    def output(self, name: str) -> Value | None:
        """Return the value of a graph output."""
        return name if any(item.name == name for item in self._graph.output) else None

    def node(self, value: Value) -> onnx.NodeProto | None:
        """Return the node that computes a value, as it stands in the file."""
        return self._producers.get(str(value))

    def producer(self, value: Value) -> NodeView | None:
        """Return the node that computes a value, read as a canonical call; None for inputs and constants."""
        node = self._producers.get(str(value))
        if node is None or node.op_type == "Constant":
            return None
        op = _OPS_BY_TYPE.get(node.op_type) if node.domain in _DEFAULT_DOMAINS else None
        form = self._form(op) if op is not None else None
        if op is None or form is None:
            integers = {item.name: int(item.i) for item in node.attribute if item.type == onnx.AttributeProto.INT}
            return NodeView(node.name, f"{node.domain}::{node.op_type}".removeprefix("::"), tuple(node.input), integers)
        return self._canonical(node, op, form)

    def number(self, value: Value) -> float | None:
        """Return the number of a constant of one element that nobody can override; else None."""
        tensor = self._tensor(str(value))
        return None if tensor is None else _single(tensor)

    def default(self, value: Value) -> float | None:
        """Return the number of a constant of one element, which a caller of the model may override; else None."""
        number = self.number(value)
        tensor = self._initializers.get(str(value)) if number is None else None
        return number if tensor is None else _single(tensor)

    def integers(self, value: Value) -> tuple[int, ...] | None:
        """Return the numbers of a constant vector of integers that nobody can override; else None.

        One number that is reshaped to a vector is one, as exporters write it that do not fold.
        """
        node = self._producers.get(str(value))
        if node is not None and node.op_type == "Reshape" and len(node.input) == 2:
            shape, tensor = self._vector(self._tensor(node.input[1])), self._tensor(node.input[0])
            return self._vector(tensor, ranks=(0, 1)) if shape == (-1,) else None
        return self._vector(self._tensor(str(value)))

    def _vector(self, tensor: onnx.TensorProto | None, *, ranks: tuple[int, ...] = (1,)) -> tuple[int, ...] | None:
        values = None if tensor is None or tensor.external_data or len(tensor.dims) not in ranks else _values(tensor)
        return None if values is None or values.dtype.kind not in "iu" else tuple(int(item) for item in values)

    def has(self, value: Value) -> bool:
        """Whether the graph has a value of this name."""
        name = str(value)
        return name in self._producers or name in self._initializers or name in self._inputs

    def copies(self, value: Value, other: Value) -> bool:
        """Whether a value is another one, or a copy of it, be it of another element type."""
        return str(other) in self._copied(str(value), by=("Identity", "Cast"))

    def declared(self, output: str) -> onnx.ValueInfoProto | None:
        """Return the declaration of a graph output."""
        return next((item for item in self._graph.output if item.name == output), None)

    def tensor(self, value: Value) -> onnx.TensorProto | None:
        """Return the tensor of a constant that nobody can override, as it stands in the file; else None."""
        return self._tensor(str(value))

    def is_constant(self, value: Value) -> bool:
        """Whether a value is an initializer or a Constant node itself, and not computed from or copied of one."""
        node = self._producers.get(str(value))
        return str(value) in self._initializers if node is None else node.op_type == "Constant"

    def describe(self, value: Value) -> str:
        """Return the name of the node that computes a value, or the value's own."""
        node = self._producers.get(str(value))
        return node.name or str(value) if node is not None else str(value)

    def _tensor(self, name: str) -> onnx.TensorProto | None:
        name = self._copied(name)[-1]  # an exporter that shares constants copies one to each of its names
        node = self._producers.get(name)
        if node is not None:
            return self._filled_tensor(node) if node.op_type == "ConstantOfShape" else _constant_tensor(node)
        return None if name in self._overridable else self._initializers.get(name)

    def _copied(self, name: str, *, by: Collection[str] = ("Identity",)) -> list[str]:
        """Return a value and those that it is a copy of, the one that was computed first last."""
        names = [name]
        for _ in range(_LONGEST_COPY):
            node = self._producers.get(names[-1])
            if node is None or node.op_type not in by or len(node.input) != 1:
                break
            names.append(node.input[0])
        return names

    def _filled_tensor(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """Return the tensor that a ConstantOfShape gives where its shape is that of one number."""
        shape = self._tensor(node.input[0]) if len(node.input) == 1 else None
        if shape is None or list(shape.dims) != [0] or any(item.name != "value" for item in node.attribute):
            return None
        return node.attribute[0].t if node.attribute else onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [0.0])

    def _form(self, op: str) -> OnnxForm | None:
        known = [form for form in LOWERINGS[op] if form.since <= self._opset]
        return known[-1] if known else None

    def _canonical(self, node: onnx.NodeProto, op: str, form: OnnxForm) -> NodeView:
        attributes = {item.name: _setting(item) for item in node.attribute}
        operands: list[Value | Number] = list(node.input)
        params: dict[str, Param] = {}
        defaults = _ATTRIBUTE_DEFAULTS.get(node.op_type, {})
        given = (attributes[name] if name in attributes else defaults[name] for name in form.attributes)
        operands += [Number(_as_number(setting)) for setting in given]
        if form.axes is not None:
            params.update(self._axes(op, form, attributes, operands))
        for key in ("axis", "perm"):
            setting = attributes.get(key)
            if isinstance(setting, (int, list)):
                params[key] = tuple(setting) if isinstance(setting, list) else setting
        if op == "cast":
            wanted = attributes.get("to")
            params["dtype"] = _DTYPES.get(wanted, "another type") if isinstance(wanted, int) else "another type"
        return NodeView(node.name, op, tuple(operands), params)

    def _axes(
        self, op: str, form: OnnxForm, attributes: Mapping[str, Any], operands: list[Value | Number]
    ) -> Iterator[tuple[str, Param]]:
        if op.startswith("reduce_"):
            yield "keepdims", bool(attributes.get("keepdims", 1))
        if form.axes == "attribute" and isinstance(attributes.get("axes"), list):
            yield "axes", tuple(attributes["axes"])
        elif form.axes == "input" and len(operands) > 1:
            axes = self.integers(operands.pop())
            if axes is not None:
                yield "axes", axes


def _setting(attribute: onnx.AttributeProto) -> float | int | list[int] | None:
    """Return the value of an attribute of a kind that lowerings use; None for every other, as in a damaged file."""
    match attribute.type:
        case onnx.AttributeProto.FLOAT:
            return float(attribute.f)
        case onnx.AttributeProto.INT:
            return int(attribute.i)
        case onnx.AttributeProto.INTS:
            return list(attribute.ints)
        case _:
            return None


def _as_number(setting: float | int | list[int] | None) -> float:
    return float(setting) if isinstance(setting, (float, int)) else math.nan


def _single(tensor: onnx.TensorProto) -> float | None:
    """Return the number of a tensor of one element; None for every other, and for one that is not in the file."""
    if any(size != 1 for size in tensor.dims) or tensor.external_data:
        return None
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return None
    values = _values(tensor)
    return float(values[0]) if values is not None and len(values) == 1 else None


def _values(tensor: onnx.TensorProto) -> npt.NDArray[Any] | None:
    """Return the values of a small constant; None where the tensor is damaged or its payload was left in the file."""
    try:
        values = numpy_helper.to_array(tensor).reshape(-1)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return values if values.dtype.kind in "biuf" else values.astype(np.float32) if _is_narrow(tensor) else None


def _is_narrow(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == onnx.TensorProto.BFLOAT16


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the default domain that a model imports; 0 where it imports none."""
    return max((item.version for item in model.opset_import if item.domain in _DEFAULT_DOMAINS), default=0)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in _DEFAULT_DOMAINS or len(node.attribute) != 1:
        return None
    attribute: onnx.AttributeProto = node.attribute[0]
    if attribute.name == "value":
        tensor: onnx.TensorProto = attribute.t
        return tensor
    if attribute.name == "value_ints":
        return onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(attribute.ints)], attribute.ints)
    if attribute.name == "value_float":
        return onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [attribute.f])
    return None
