"""Edit an ONNX model where its readers allow it: take matched nodes out, change numbers."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from graph_patterns.expr import ModelFileError, shared_value
from graph_patterns.match import Site, Value
from graph_patterns.onnx.file import OnnxFile
from graph_patterns.onnx.graph import INITIALIZERS_NEED_NO_INPUT_SINCE, OnnxView, constant_nodes, default_opset


def remove(
    model: onnx.ModelProto,
    values: Iterable[Value],
    *,
    outputs: Collection[str] = (),
    inputs: Collection[str] = (),
    keep: Collection[Value] = (),
) -> None:
    """Remove the nodes that compute values, and what nobody reads any more then; changes the model in place.

    `values` are what the nodes compute, such as those of a `Match`, `outputs` the graph outputs that are given up,
    `inputs` the graph inputs that are given up where nothing reads them any more. The values in `keep`, such as the
    inputs of a `Match`, stay though only the removed nodes read them, and so does what had no reader before. Raises
    SharedValueError, with nothing changed, if a node that stays, at any depth, or an output that stays reads a value
    that goes.
    """
    gone = {str(value) for value in values}
    going = [node for node in model.graph.node if not gone.isdisjoint(node.output)]
    gone.update(name for node in going for name in node.output if name)
    staying = [node for node in model.graph.node if gone.isdisjoint(node.output)]
    read = {name for node in going for name in reads(node)}
    kept = _interface(model, outputs) - set(inputs)
    gone |= _orphans(read, staying, kept={*(str(value) for value in keep), *kept})
    _refuse_readers(model, gone, [node for node in staying if gone.isdisjoint(node.output)], outputs)
    _drop(model, gone)
    _keep(model.graph.output, lambda item: item.name not in outputs)


def prune(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Remove those constants and values among names that have no reader any more, and what was only there for them."""
    _drop(model, _orphans(names, model.graph.node, kept=_interface(model, ())))


def _drop(model: onnx.ModelProto, gone: set[str]) -> None:
    _keep(model.graph.node, lambda node: gone.isdisjoint(node.output))
    _keep(model.graph.initializer, lambda tensor: tensor.name not in gone)
    _keep(model.graph.sparse_initializer, lambda tensor: tensor.values.name not in gone)
    _keep(model.graph.input, lambda item: item.name not in gone)
    _keep(model.graph.value_info, lambda item: item.name not in gone)
    _keep(model.graph.quantization_annotation, lambda item: item.tensor_name not in gone)


def _orphans(names: Iterable[str], staying: Iterable[onnx.NodeProto], kept: Collection[str]) -> set[str]:
    """Return the constants and values among these that have no reader any more, and theirs in turn."""
    staying = list(staying)
    readers = Counter(name for node in staying for name in set(reads(node)))
    producers = {name: node for node in staying for name in node.output if name}
    orphans: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        node = producers.get(name)
        siblings = {name} if node is None else {output for output in node.output if output}
        if name in orphans or any(item in kept or readers[item] for item in siblings):
            continue
        orphans |= siblings
        for source in set() if node is None else set(reads(node)):
            readers[source] -= 1
            pending.append(source)
    return orphans


def _interface(model: onnx.ModelProto, released: Collection[str]) -> set[str]:
    """Return the names that callers of the model use: outputs that stay, inputs, and what training reads."""
    outputs = {item.name for item in model.graph.output} - set(released)
    inputs = {item.name for item in model.graph.input}
    if model.ir_version < INITIALIZERS_NEED_NO_INPUT_SINCE:  # every initializer had to be listed then
        inputs -= {tensor.name for tensor in model.graph.initializer}
    return outputs | inputs | _training_reads(model)


def _refuse_readers(
    model: onnx.ModelProto, gone: set[str], staying: Iterable[onnx.NodeProto], outputs: Collection[str]
) -> None:
    for node in staying:
        for name in sorted(gone & set(reads(node))):
            title = node.name or f"{node.op_type} that computes '{next(iter(node.output), '')}'"
            raise shared_value(name, title)
    for item in model.graph.output:
        if item.name in gone and item.name not in outputs:
            raise shared_value(item.name, f"the output '{item.name}'")
    for name in sorted(set(gone) & _training_reads(model)):
        raise shared_value(name, "the training information of the model")


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every name that a node reads, captures of its nested graphs among them."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from _captures(graph)


def _captures(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph reads and does not define: what it does define hides what is outside."""
    own = {item.name for item in (*graph.input, *graph.initializer)}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    yield from (name for node in graph.node for name in reads(node) if name not in own)
    yield from (item.name for item in graph.output if item.name not in own)


def _training_reads(model: onnx.ModelProto) -> set[str]:
    graphs = (graph for info in model.training_info for graph in (info.initialization, info.algorithm))
    return {name for graph in graphs for name in _captures(graph)}


def _keep(items: MutableSequence[Any], wanted: Any) -> None:
    """Delete what is not wanted and leave the messages that stay untouched."""
    for index in reversed(range(len(items))):
        if not wanted(items[index]):
            del items[index]


def set_numbers(model: onnx.ModelProto, numbers: Mapping[Site, float], *, prefix: str) -> None:
    """Set numbers at sites of a `Match`, in place; `prefix` is put before the names of cloned constants.

    A constant of its own whose readers all get the same number is changed where it stands. Any other operand (shared,
    or computed from constants) gets a clone with the element type and the shape of what it was.
    """
    editor = _Editor(model, prefix)
    by_source: dict[tuple[str, float], list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for (value, index), number in numbers.items():
        node = editor.view.node(value)
        assert node is not None, f"{value} was matched, so a node computes it"
        if index >= len(node.input):
            editor.set_attribute(node, index - len(node.input), number)
        else:
            by_source[node.input[index], number].append((node, index))
    for (source, number), sites in by_source.items():
        editor.set_constant(source, number, sites)
    prune(model, editor.left)


class _Editor:
    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self._model = model
        self._prefix = prefix
        self.view = OnnxView(model)
        self.left: set[str] = set()  # constants that sites read before
        graph = model.graph
        self._count = 0
        self._taken = {item.name for item in (*graph.input, *graph.initializer, *graph.node)}
        self._taken |= {name for node in graph.node for name in (*node.output, *reads(node))}

    def set_attribute(self, node: onnx.NodeProto, index: int, number: float) -> None:
        names = {"Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta")}[node.op_type]
        for attribute in [item for item in node.attribute if item.name == names[index]]:
            node.attribute.remove(attribute)
        node.attribute.append(onnx.helper.make_attribute(names[index], number))

    def set_constant(self, source: str, number: float, sites: list[tuple[onnx.NodeProto, int]]) -> None:
        tensor = self.view.tensor(source)
        is_own = self.view.is_constant(source) and self._readers(source) == len(sites)
        if tensor is not None and is_own:
            tensor.CopyFrom(_filled(tensor, number, tensor.name))
            return
        name = self._name(source)
        like = tensor if tensor is not None else onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [], [0.0])
        clone = _filled(like, number, name)
        if self._model.ir_version >= INITIALIZERS_NEED_NO_INPUT_SINCE:
            self._model.graph.initializer.append(clone)
        else:
            self._model.graph.node.insert(0, next(constant_nodes([clone])))
        for node, index in sites:
            node.input[index] = name
        self.left.add(source)

    def _name(self, source: str) -> str:
        """Return a name that neither the model nor an earlier update of it has."""
        while True:
            self._count += 1
            name = f"{self._prefix}{source}_{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def _readers(self, name: str) -> int:
        count = sum(list(reads(node)).count(name) for node in self._model.graph.node)
        return count + [item.name for item in self._model.graph.output].count(name)


def _filled(like: onnx.TensorProto, number: float, name: str) -> onnx.TensorProto:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(like.data_type)
    tensor: onnx.TensorProto = numpy_helper.from_array(np.full(list(like.dims), number, dtype=dtype), name)
    return tensor


_FAULTS: Final = {
    "output": "outputs that nothing computes",
    "twice": "values or outputs that are there twice",
    "read": "values that are read and that nothing computes before",
}


class Soundness:
    """What is wrong with the model of a file as it is now, its weights left out.

    `opset` is the version of the default operator set that counts where the model imports none; 0 for none.
    """

    def __init__(self, file: OnnxFile, *, opset: int = 0) -> None:
        serialised = file.without_payloads()
        if opset and not default_opset(file.model):
            assumed = onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", opset)])
            serialised += assumed.SerializeToString()  # protobuf joins the lists of two messages
        self._complaint = _complaint(serialised, full=False)  # of the graph; None where the checker is content
        if self._complaint is None:
            # A host may declare wrong shapes of inner values, which runtimes pass over: what reads one is not to blame.
            undeclared = onnx.ModelProto.FromString(serialised)
            undeclared.graph.ClearField("value_info")
            serialised = undeclared.SerializeToString()
        self._inferred = _complaint(serialised, full=True)  # with inferred types and shapes
        # The checker does not look at all outputs, definitions and reads, and names the first wrong one alone.
        self._faults = Counter(_faults(file.model.graph))

    def refuse_worse(self, after: "Soundness", *, where: str) -> None:
        """Raise ModelFileError if something is wrong with an edited model that was not before."""
        found = [text for kind, text in _FAULTS.items() if after._faults[kind] > self._faults[kind]]
        if self._complaint is None and after._complaint is not None:
            found.append(after._complaint)
        elif self._inferred is None and after._inferred is not None:
            found.append(after._inferred)
        if found:
            raise ModelFileError(
                f"{where} is not written: it would be less sound than the model that it is made of",
                found="; ".join(" ".join(text.split()) for text in found)[:400],
                needed="no complaint of onnx.checker that the input did not draw",
                fix="attach to the original again; if this is the original, please report it",
            )


def _complaint(serialised: bytes, *, full: bool) -> str | None:
    try:
        onnx.checker.check_model(serialised, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error)
    return None


def _faults(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the kind of each fault of the main graph."""
    known = {item.name for item in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        # what a nested graph computes for itself counts as read here, before an edit and after it
        yield from ("read" for name in reads(node) if name not in known)
        for name in node.output:
            if name and name in known:
                yield "twice"
            known.add(name)
    names = [item.name for item in graph.output]
    yield from ("output" for name in names if name not in known)
    yield from ("twice" for _ in range(len(names) - len(set(names))))
    if not names:
        yield "output"
