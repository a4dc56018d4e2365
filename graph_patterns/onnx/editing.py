"""Change numbers of an ONNX model where they are read; a constant with other readers is cloned first."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from graph_patterns.match import Site
from graph_patterns.onnx.lowering import INITIALIZERS_NEED_NO_INPUT_SINCE
from graph_patterns.onnx.removal import prune, reads
from graph_patterns.onnx.view import OnnxView


def set_numbers(model: onnx.ModelProto, numbers: Mapping[Site, float], *, prefix: str) -> None:
    """Set numbers at sites of a `Match`, in place.

    Parameters
    ----------
    model
        The model, or its skeleton.
    numbers
        The new number for each operand.
    prefix
        Put before the names of constants that are cloned.

    Notes
    -----
    A constant of its own whose readers all get the same number is changed where it stands. Any other operand (shared,
    or computed from constants) gets a clone with the element type and the shape of what it was.
    """
    editor = _Editor(model, prefix)
    by_source: dict[tuple[str, float], list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for (value, index), number in numbers.items():
        node = editor.producer(str(value))
        if index >= len(node.input):
            editor.set_attribute(node, index - len(node.input), number)
        else:
            by_source[node.input[index], number].append((node, index))
    for (source, number), sites in by_source.items():
        editor.set_constant(source, number, sites)
    editor.prune()


class _Editor:
    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self._model = model
        self._prefix = prefix
        self._view = OnnxView(model)
        self._left: set[str] = set()
        graph = model.graph
        self._count = 0
        self._taken = {item.name for item in (*graph.input, *graph.initializer, *graph.node)}
        self._taken |= {name for node in graph.node for name in (*node.output, *reads(node))}

    def producer(self, value: str) -> onnx.NodeProto:
        node = self._view.node(value)
        assert node is not None, f"{value} was matched, so a node computes it"
        return node

    def set_attribute(self, node: onnx.NodeProto, index: int, number: float) -> None:
        names = {"Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta")}[node.op_type]
        for attribute in [item for item in node.attribute if item.name == names[index]]:
            node.attribute.remove(attribute)
        node.attribute.append(onnx.helper.make_attribute(names[index], number))

    def set_constant(self, source: str, number: float, sites: list[tuple[onnx.NodeProto, int]]) -> None:
        tensor = self._view.tensor(source)
        is_own = self._view.is_constant(source) and self._readers(source) == len(sites)
        if tensor is not None and is_own:
            tensor.CopyFrom(_filled(tensor, number, tensor.name))
            return
        name = self._name(source)
        like = tensor if tensor is not None else onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [0.0])
        self._add(_filled(like, number, name))
        for node, index in sites:
            node.input[index] = name
        self._left.add(source)

    def _name(self, source: str) -> str:
        """Return a name that neither the model nor an earlier update of it has."""
        while True:
            self._count += 1
            name = f"{self._prefix}{source}_{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def prune(self) -> None:
        prune(self._model, self._left)

    def _readers(self, name: str) -> int:
        count = sum(list(reads(node)).count(name) for node in self._model.graph.node)
        return count + [item.name for item in self._model.graph.output].count(name)

    def _add(self, tensor: onnx.TensorProto) -> None:
        if self._model.ir_version >= INITIALIZERS_NEED_NO_INPUT_SINCE:
            self._model.graph.initializer.append(tensor)
            return
        node = onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
        self._model.graph.node.insert(0, node)


def _filled(like: onnx.TensorProto, number: float, name: str) -> onnx.TensorProto:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(like.data_type)
    tensor: onnx.TensorProto = numpy_helper.from_array(np.full(list(like.dims), number, dtype=dtype), name)
    return tensor
