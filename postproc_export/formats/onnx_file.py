"""An ONNX model as a file without its weights: its names, ports and imports, and how it is rewritten.

Nodes and values have name spaces of their own: a node may bear the name of a value, and often does. A new name that
is unused in every scope can replace an old one everywhere at once: what was one value stays one, and what shadowed
another still does. The inside of a function is a scope of its own that no caller's name reaches.
"""

import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from graph_patterns.onnx.file import OnnxFile
from graph_patterns.onnx.graph import OLDEST_OPSET
from graph_patterns.onnx.wire import Source
from postproc_export.formats.base import illegal
from postproc_export.formats.digest import Read, constant_part, operator_part
from postproc_export.ports import PortInfo, dtype_name, is_plain, port_of
from postproc_export.tail import PREFIX


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

    A name counts where it is only read, declared, annotated or bound, too. What a training graph defines itself does
    not: it shadows what the main graph has.
    """
    names = _mentioned(model.graph)
    for graph in _training(model):
        names |= _mentioned(graph) - defined_names(graph)
    for info in model.training_info:
        for entry, of_key, of_value in _bindings(info):
            names |= {entry.key} - of_key
            names |= {entry.value} - of_value
    return names - {""}


def used_names(model: onnx.ModelProto) -> set[str]:
    """Return every name that a new value or node must not take: values and nodes of all scopes."""
    names = value_names(model)
    for graph in (model.graph, *_training(model)):
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
    for graph in _training(model):
        own = defined_names(graph)
        _rename_graph(graph, {old: new for old, new in renamed.items() if old not in own})
    for info in model.training_info:
        for entry, of_key, of_value in _bindings(info):
            if entry.key in renamed and entry.key not in of_key:
                entry.key = renamed[entry.key]
            if entry.value in renamed and entry.value not in of_value:
                entry.value = renamed[entry.value]


def _training(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]


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


_PACKED: Final[Mapping[int, str]] = {onnx.TensorProto.FLOAT: "<f4", onnx.TensorProto.DOUBLE: "<f8"}
_ONE_BY_ONE: Final = ("int32_data", "int64_data", "uint64_data", "string_data", "float_data")
_SMALL: Final = 1024  # elements: what is larger is no shape, and only its own shape is looked at


def output_ports(model: onnx.ModelProto) -> list[PortInfo]:
    """Return the outputs of a model, in order.

    Where a shape is not declared, or leaves open how many values or channels there are, sizes are inferred: exporters
    declare an axis of size 1 by a name that they make up.
    """
    declared = [port_of(item) for item in model.graph.output]
    if all(port.shape is not None and is_plain(port) and (port.rank != 2 or port.size(1)) for port in declared):
        return declared
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_shapes(model), data_prop=True).graph.output
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return declared  # what is not known is reported by whoever needs it, with the option that helps
    return [_known(port, port_of(item)) for port, item in zip(declared, inferred, strict=True)]


def _without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without what it says of the shapes of its values, and without large constants."""
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    made.graph.node.extend(model.graph.node)
    made.graph.input.extend(model.graph.input)
    made.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        is_small = prod(tensor.dims) <= _SMALL
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        made.graph.initializer.append(tensor if is_small else bare)
    for item in model.graph.output:
        output = made.graph.output.add(name=item.name, type=item.type)
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return made


def _known(declared: PortInfo, inferred: PortInfo) -> PortInfo:
    """Return a declared port with the sizes that were inferred of its open axes."""
    if declared.shape is None or inferred.shape is None or declared.rank != inferred.rank:
        return inferred if declared.shape is None else declared
    pairs = zip(declared.shape, inferred.shape, strict=True)
    return declared._replace(
        shape=tuple(new if isinstance(new, int) and not isinstance(old, int) else old for old, new in pairs)
    )


NEEDED_IMPORT: Final = "import_was_missing"  # the original's own nodes are of the default domain, without an import


def added_import(original: Mapping[str, Any], *, where: str) -> int | None:
    """Return the version of the default operator set whose import attaching added; None where it added none."""
    version = original.get("added_opset_import")
    if version is not None and type(version) is not int:
        raise illegal("added import", reprlib.repr(version), where=where)
    return version


def oldest_opset_of(ir_version: int) -> int:
    """Return the oldest opset that was released with an IR version: any reader of that version knows it."""
    released: dict[int, int] = {}
    for _, ir, opset, *_ in onnx.helper.VERSION_TABLE:
        released.setdefault(ir, opset)
    return max(OLDEST_OPSET, released.get(ir_version, max(released.values())))


def uses_default_domain(model: onnx.ModelProto, *, apart: Collection[str] = ()) -> bool:
    """Whether a node is of the default domain; those that compute some values, and those of functions, do not count.

    A function imports for itself.
    """
    nodes = (node for graph in (model.graph, *_training(model)) for scope in subgraphs(graph) for node in scope.node)
    return any(node.domain in ("", "ai.onnx") and not any(name in apart for name in node.output) for node in nodes)


def import_doubts(
    model: onnx.ModelProto, original: Mapping[str, Any], *, where: str, apart: Collection[str] = ()
) -> list[str]:
    """Return why the import that a record says was added cannot have been; the nodes of some values do not count."""
    version = added_import(original, where=where)
    if version is None:
        return []
    found = any((item.domain, item.version) == ("", version) for item in model.opset_import)
    if not found or version != oldest_opset_of(model.ir_version):
        return [f"attaching adds no import of operator set {version} to such a model"]
    if uses_default_domain(model, apart=apart) and not original.get(NEEDED_IMPORT):
        return [f"the import of operator set {version} stays: nodes of the model need it"]
    return []


def drop_added_import(model: onnx.ModelProto, original: Mapping[str, Any], *, where: str) -> list[str]:
    """Remove the import that attaching added, or say why it stays."""
    version, doubts = added_import(original, where=where), import_doubts(model, original, where=where)
    if version is not None and not doubts:
        index = [(item.domain, item.version) for item in model.opset_import].index(("", version))
        del model.opset_import[index]
    return doubts


def content_parts(
    model: onnx.ModelProto, *, file: OnnxFile | None, external: Mapping[Path, Source], apart: Collection[str]
) -> Iterator[bytes]:
    """Yield what counts of a model for its digest; not what has our prefix, nor the initializers called in `apart`.

    `file` has the weights that were left out of the model, `external` what it refers to, by location.
    """
    for item in (each for scope in (model.graph, *model.functions) for each in _contents(scope)):
        if isinstance(item, onnx.NodeProto):
            if item.op_type != "Constant" or all(each.name != "value" for each in item.attribute):
                yield operator_part(f"{item.domain.removeprefix('ai.onnx')} {item.op_type}", _attributes(item))
        elif item.name not in apart and not item.name.startswith(PREFIX):
            values = _bytes_of(item, file=file, external=external)
            yield constant_part(dtype_name(item.data_type), item.dims, *values)


def _contents(scope: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto | onnx.TensorProto]:
    """Iterate over the nodes and tensors of a graph or function and of every graph nested in it, but for our nodes."""
    nodes = [node for node in scope.node if not node.name.startswith(PREFIX)]
    yield from nodes
    attributes, sparse = [item for node in nodes for item in node.attribute], list[onnx.SparseTensorProto]()
    if isinstance(scope, onnx.FunctionProto):
        attributes += scope.attribute_proto
    else:
        yield from scope.initializer
        sparse += scope.sparse_initializer
    for item in attributes:
        yield from [item.t] if item.HasField("t") else item.tensors
        sparse += [item.sparse_tensor] if item.HasField("sparse_tensor") else item.sparse_tensors
        for graph in [item.g] if item.HasField("g") else item.graphs:
            yield from _contents(graph)
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _attributes(node: onnx.NodeProto) -> list[bytes]:
    """Return the attributes of a node, without what counts elsewhere or not at all."""
    plain = onnx.NodeProto()
    plain.attribute.extend(node.attribute)
    for item in plain.attribute:
        for field in ("t", "tensors", "g", "graphs", "sparse_tensor", "sparse_tensors", "doc_string"):
            item.ClearField(field)
    return sorted(item.SerializeToString(deterministic=True) for item in plain.attribute)


def _bytes_of(tensor: onnx.TensorProto, *, file: OnnxFile | None, external: Mapping[Path, Source]) -> tuple[int, Read]:
    """Return how many bytes the values of a tensor have, and what reads some of them."""
    if tensor.data_location == tensor.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        source, offset = external[Path(entries["location"])], int(entries.get("offset") or 0)
        size = int(entries.get("length") or 0) or source.size - offset
        return size, lambda start, length: source.read(offset + start, length)
    stretch = None if file is None else file.stretch(tensor)
    if stretch is not None and file is not None:
        return stretch[1] - stretch[0], lambda start, length: file.read(stretch[0] + start, length)
    full = tensor if file is None else file.full_tensor(tensor)
    content = full.raw_data
    if not content and full.data_type in _PACKED:
        content = np.asarray(full.float_data or full.double_data, _PACKED[full.data_type]).tobytes()
    elif not content:
        values = onnx.TensorProto(**{name: getattr(full, name) for name in _ONE_BY_ONE})
        content = values.SerializeToString(deterministic=True)
    return len(content), lambda start, length: content[start : start + length]
