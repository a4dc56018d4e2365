"""An OpenVINO model as the matcher sees it; a value is an `openvino.Output`, which is hashable."""

from collections.abc import Iterator
from typing import Any, Final

from graph_patterns.expr import Param
from graph_patterns.match import NodeView, Number, Value
from graph_patterns.openvino.emit import ELEMENT_TYPES, LOWERINGS

_OPS_BY_TYPE: Final = {form.type_name: op for op, form in LOWERINGS.items()}
_ON_BOOLEANS: Final = {"BitwiseNot": "logical_not", "BitwiseAnd": "logical_and", "BitwiseOr": "logical_or"}
_VECTORS: Final = {"transpose": "perm", "unsqueeze": "axes"}  # the setting that is the last operand
_DTYPES: Final = {element_type: name for name, element_type in ELEMENT_TYPES.items()}


class OpenVinoView:
    """The main graph of an `openvino.Model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def output(self, name: str) -> Value | None:
        """Return what feeds the result that bears a name; a tensor may have several names."""
        for result in self._model.get_results():
            source = result.input_value(0)
            if name in source.get_names() or name in result.output(0).get_names():
                return _as_value(source)
        return None

    def producer(self, value: Value) -> NodeView | None:
        """Return the operator that computes a value, read as a canonical call; None for inputs and constants."""
        node = _node(value)
        type_name = node.get_type_name()
        if type_name in ("Parameter", "Constant"):
            return None
        op = _OPS_BY_TYPE.get(type_name)
        if type_name in _ON_BOOLEANS and node.get_output_element_type(0).get_type_name() == "boolean":
            op = _ON_BOOLEANS[type_name]  # how a torch module's operators on booleans are converted
        operands: list[Value | Number] = [_as_value(node.input_value(i)) for i in range(node.get_input_size())]
        if op is None:
            return NodeView(node.get_friendly_name(), type_name, tuple(operands))
        if op == "reshape" and _is_copy(node):
            return NodeView(node.get_friendly_name(), "identity", tuple(operands[:1]))
        if op == "clip":
            attributes = node.get_attributes()
            operands += [Number(float(attributes[bound])) for bound in ("min", "max")]
        if op == "expand" and node.get_attributes()["mode"] != "bidirectional":
            op = type_name
        params = dict(self._params(op, node, operands))
        return NodeView(node.get_friendly_name(), op, tuple(operands), params)

    def number(self, value: Value) -> float | None:
        """Return the number of a constant of one element, also behind the Convert of a compressed one; else None."""
        node = _node(value)
        if node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        if node.get_type_name() != "Constant" or any(size != 1 for size in node.get_output_shape(0)):
            return None
        return float(node.get_data().reshape(()))

    def default(self, value: Value) -> float | None:
        """Return the number of a constant of one element, or the one that a variable begins with; else None."""
        node = _node(value)
        if node.get_type_name() == "ReadValue" and node.get_input_size():
            return self.number(_as_value(node.input_value(0)))
        return self.number(value)

    def integers(self, value: Value) -> tuple[int, ...] | None:
        """Return the numbers of a constant vector of integers; else None."""
        node = _node(value)
        if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 1:
            return None
        values = node.get_data()
        return tuple(int(item) for item in values) if values.dtype.kind in "iu" else None

    def is_rounded(self, value: Value) -> bool:
        """Whether the node that computes a value reads a constant that was compressed to fewer bits."""
        node = _node(value)
        sources = [node.input_value(index).get_node() for index in range(node.get_input_size())]
        return any(
            source.get_type_name() == "Convert" and source.input_value(0).get_node().get_type_name() == "Constant"
            for source in sources
        )

    def describe(self, value: Value) -> str:
        """Return the friendly name of the operator that computes a value."""
        return str(_node(value).get_friendly_name())

    def _params(self, op: str, node: Any, operands: list[Value | Number]) -> Iterator[tuple[str, Param]]:
        if op == "cast":
            yield "dtype", _DTYPES.get(node.get_output_element_type(0).get_type_name(), "another type")
        elif op == "concat":
            yield "axis", int(node.get_attributes()["axis"])
        elif op in _VECTORS:
            vector = self.integers(operands.pop())
            if vector is not None:
                yield _VECTORS[op], vector
        elif op.startswith("reduce_"):
            yield "keepdims", bool(node.get_attributes()["keep_dims"])
            axes = _node(operands.pop())
            if axes.get_type_name() == "Constant":
                yield "axes", tuple(int(axis) for axis in axes.get_data().reshape(-1))


def _is_copy(reshape: Any) -> bool:
    """Whether a Reshape takes every axis as it is."""
    axes, rank = reshape.input_value(1).get_node(), reshape.input_value(0).get_partial_shape().rank
    return (
        rank.is_static
        and axes.get_type_name() == "Constant"
        and bool(reshape.get_attributes()["special_zero"])
        and axes.get_data().size == rank.get_length()
        and not axes.get_data().any()
    )


def _as_value(output: Any) -> Value:
    return output  # type: ignore[no-any-return]  # openvino ships no types for Output


def _node(value: Any) -> Any:
    return value.get_node()
