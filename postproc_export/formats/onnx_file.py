"""An ONNX file rewritten without its weights; names and ports of its model.

A new name that is unused in every scope can replace an old one everywhere at once: what was one value stays one, and
what shadowed another still does. The inside of a function is a scope of its own that no caller's name reaches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from pathlib import Path
from typing import Final, TypeVar

import onnx

from graph_patterns.expr import ModelFileError
from graph_patterns.onnx.edit import Soundness
from graph_patterns.onnx.file import external_files, load_skeleton
from graph_patterns.onnx.view import default_opset
from postproc_export.files import publishing
from postproc_export.process import claimed
from postproc_export.runtimes import Axis, PortInfo

# --- Names in an ONNX model: which are in use, and renaming a value in every scope.
#
# Nodes and values have name spaces of their own: a node may bear the name of a value, and often does. A new name that
# is unused in every scope can replace an old one everywhere at once: what was one value stays one, and what shadowed
# another still does. The inside of a function is a scope of its own that no caller's name reaches.


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Iterate over a graph and every graph nested in its nodes."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    pending.append(attribute.g)
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    pending.extend(attribute.graphs)


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values that a graph or one nested in it defines."""
    names: set[str] = set()
    for scope in subgraphs(graph):
        names |= computed_names(scope)
    return names


def computed_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the values that one graph itself has: computed, given or constant."""
    names = {name for node in graph.node for name in node.output if name}
    names |= {item.name for item in (*graph.input, *graph.initializer)}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def value_names(model: onnx.ModelProto) -> set[str]:
    """Return every name that stands for a value of the main graph, or of one nested in it.

    Notes
    -----
    A name counts where it is only read, declared, annotated or bound, too. What a training graph defines itself does
    not: it shadows what the main graph has.
    """
    names = _mentioned(model.graph)
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            names |= _mentioned(graph) - defined_names(graph)
        for entry, of_key, of_value in _bindings(info):
            names |= {entry.key} - of_key
            names |= {entry.value} - of_value
    return names - {""}


def used_names(model: onnx.ModelProto) -> set[str]:
    """Return every name that a new value or node must not take: values and nodes of all scopes."""
    names = value_names(model)
    for graph in (
        model.graph,
        *(graph for info in model.training_info for graph in (info.initialization, info.algorithm)),
    ):
        names |= defined_names(graph)
        names.update(node.name for scope in subgraphs(graph) for node in scope.node)
    return names


def immovable_names(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the names that callers of the model use, and what bears them: inputs and overridable initializers."""
    initializers = {tensor.name for tensor in graph.initializer}
    return {
        item.name: "an overridable initializer" if item.name in initializers else "an input" for item in graph.input
    }


def rename_values(model: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    """Rename values of the main graph, in place, wherever they are visible; no value may bear the new names."""
    if not renamed:
        return
    _rename_graph(model.graph, renamed)
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            own = defined_names(graph)
            _rename_graph(graph, {old: new for old, new in renamed.items() if old not in own})
        for entry, of_key, of_value in _bindings(info):
            if entry.key in renamed and entry.key not in of_key:
                entry.key = renamed[entry.key]
            if entry.value in renamed and entry.value not in of_value:
                entry.value = renamed[entry.value]


def _mentioned(graph: onnx.GraphProto) -> set[str]:
    names = defined_names(graph)
    for scope in subgraphs(graph):
        names.update(item.name for item in (*scope.output, *scope.value_info))
        names.update(name for node in scope.node for name in node.input)
        for annotation in scope.quantization_annotation:
            names.add(annotation.tensor_name)
            names.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return names


def _bindings(info: onnx.TrainingInfoProto) -> Iterator[tuple[onnx.StringStringEntryProto, set[str], set[str]]]:
    """Iterate over the bindings, each with the names that the graphs define to which its key and its value refer."""
    algorithm = defined_names(info.algorithm)
    for entry in info.initialization_binding:
        yield entry, algorithm, defined_names(info.initialization)
    for entry in info.update_binding:
        yield entry, algorithm, algorithm


def _rename_graph(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for scope in subgraphs(graph):
        for node in scope.node:
            _rename_list(node.input, renamed)
            _rename_list(node.output, renamed)
        _rename_items((*scope.input, *scope.output, *scope.value_info, *scope.initializer), renamed)
        _rename_items((tensor.values for tensor in scope.sparse_initializer), renamed)
        for annotation in scope.quantization_annotation:
            if annotation.tensor_name in renamed:
                annotation.tensor_name = renamed[annotation.tensor_name]
            for entry in annotation.quant_parameter_tensor_names:
                if entry.value in renamed:
                    entry.value = renamed[entry.value]


def _rename_list(names: MutableSequence[str], renamed: Mapping[str, str]) -> None:
    for index, name in enumerate(names):
        if name in renamed:
            names[index] = renamed[name]


def _rename_items(items: Iterable[onnx.ValueInfoProto | onnx.TensorProto], renamed: Mapping[str, str]) -> None:
    for item in items:
        if item.name in renamed:
            item.name = renamed[item.name]


# --- The outputs of an ONNX model as ports: name, element type, declared shape.

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


# --- Rewrite an ONNX file: the graph is edited without its weights, which are streamed from file to file.

Result = TypeVar("Result")


def rewrite_onnx_file(
    source: Path,
    target: Path,
    edit: Callable[[onnx.ModelProto], Result],
    *,
    in_place: bool = False,
    link_weights: bool = False,
    is_checked: bool = True,
) -> Result:
    """Edit the model of a file and write it to another, whole or not at all; external data comes along.

    Parameters
    ----------
    source, target
        The file to read and the one to write.
    edit
        Changes the model in place; large payloads are placeholders in it. Nothing is written where it returns
        something falsy.
    in_place
        Allow the target to be the source.
    link_weights
        Hard-link external data instead of copying it.
    is_checked
        Refuse a model that is less sound than the source; False for a file that nobody else gets to see.

    Raises
    ------
    ModelFileError, FileError
        If the source cannot be read, refers to files that it must not refer to, the target cannot be written, or the
        edited model is not as sound as the source.
    """
    with claimed([target]), load_skeleton(source) as file:
        weights = external_files(file.model, source.parent)
        before = Soundness.of(file) if is_checked else None
        opset = default_opset(file.model)
        result = edit(file.model)
        if not result:
            return result
        if before is not None:
            before.refuse_worse(Soundness.of(file, opset=opset), where=str(target))
        with publishing([target], inputs=[source, *weights.values()], in_place=in_place) as publication:
            publication.bring_along(weights, link=link_weights)
            try:
                file.write(publication.temporary(target))
            except ModelFileError as error:
                if isinstance(error.__cause__, OSError):  # it names a temporary file
                    raise error.__cause__ from None
                raise
    return result
