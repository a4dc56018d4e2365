"""Take matched nodes out of an ONNX model, safely: nothing that is left may read what goes."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, MutableSequence
from typing import Any

import onnx

from graph_patterns.errors import SharedValueError
from graph_patterns.graph import Value
from graph_patterns.onnx.lowering import INITIALIZERS_NEED_NO_INPUT_SINCE


def remove(
    model: onnx.ModelProto,
    values: Iterable[Value],
    *,
    outputs: Collection[str] = (),
    inputs: Collection[str] = (),
    keep: Collection[Value] = (),
) -> None:
    """Remove the nodes that compute values, outputs of the graph, and what nobody reads any more then.

    Parameters
    ----------
    model
        Changed in place; it may be a skeleton without its weights.
    values
        What the nodes compute, such as the `values` of a `Match`.
    outputs
        Names of graph outputs that are given up.
    inputs
        Names of graph inputs that are given up where nothing reads them any more.
    keep
        Values that stay though only the removed nodes read them, such as the `inputs` of a `Match`.

    Raises
    ------
    SharedValueError
        If a node that stays, at any depth, or an output that stays reads one of the values; nothing is changed then.

    Notes
    -----
    Of what was there before and had no reader then, nothing is removed.
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
    """Remove constants and values that have no reader any more, and what was only there for them, in turn.

    Parameters
    ----------
    model
        Changed in place.
    names
        Where to begin: what has just lost a reader.
    """
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
            raise _shared(name, _title(node))
    for item in model.graph.output:
        if item.name in gone and item.name not in outputs:
            raise _shared(item.name, f"the output '{item.name}'")
    for name in sorted(set(gone) & _training_reads(model)):
        raise _shared(name, "the training information of the model")


def _shared(value: str, reader: str) -> SharedValueError:
    return SharedValueError(
        f"'{value}' has a reader outside what is to be removed",
        found=f"reader {reader}",
        needed="every value of it read only inside it",
        fix=f"remove {reader} first, or export the model again without it",
    )


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


def _title(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} that computes '{next(iter(node.output), '')}'"


def _keep(items: MutableSequence[Any], wanted: Any) -> None:
    """Delete what is not wanted and leave the messages that stay untouched."""
    for index in reversed(range(len(items))):
        if not wanted(items[index]):
            del items[index]
