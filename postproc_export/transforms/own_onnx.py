"""Put an exported class of one's own before the tail of an ONNX model."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx

from graph_patterns.onnx.lowering import INITIALIZERS_NEED_NO_INPUT_SINCE, OnnxFragment
from graph_patterns.onnx.removal import reads
from graph_patterns.onnx.view import default_opset
from postproc_export.graphs.onnx.names import subgraphs
from postproc_export.graphs.onnx.original import oldest_opset_of
from postproc_export.graphs.onnx.ports import output_ports
from postproc_export.outputs import OutputChoice
from postproc_export.runtimes.protocol import Runner
from postproc_export.transforms.onnx_layer import put_layer
from postproc_export.transforms.own import eager_own
from postproc_export.transforms.own_export import export_own
from postproc_export.transforms.own_form import own_form
from postproc_export.transforms.plan import select_raw
from postproc_export.transforms.record import PREFIXES, LayerRecord
from postproc_export.transforms.spec import TailSpec


def put_own(model: onnx.ModelProto, spec: TailSpec, outputs: Mapping[str, OutputChoice]) -> LayerRecord:
    """Export a class of one's own at the model's opset and append it behind the raw outputs.

    Parameters
    ----------
    model
        Changed in place; it may be a skeleton without its weights.
    spec
        ``package.module:Class``.
    outputs
        ``image_output`` and ``pixel_output``: which outputs are the raw ones; see `select_outputs`.

    Raises
    ------
    UsageError, UnsupportedModelError
        If the class cannot be built, does not fit the model, or cannot be exported at its opset.
    MissingDependencyError
        If torch, its exporter or ONNX Runtime is not installed.
    """
    opset = default_opset(model) or oldest_opset_of(model.ir_version)
    tail = eager_own(spec)
    form = own_form(tail, select_raw(output_ports(model), (), **outputs), outputs)
    exported = export_own(form, opset=opset, open_runner=_open) if form.made else onnx.ModelProto()
    names = form.output_names()

    def make(read: Mapping[str, str], taken: Collection[str]) -> OnnxFragment:
        fixed = {**read, **names}
        return fragment_of(exported.graph, fixed, taken=taken, ir_version=model.ir_version)

    return put_layer(model, form.plan(), make=make)


def fragment_of(
    graph: onnx.GraphProto, fixed: Mapping[str, str], *, taken: Collection[str], ir_version: int
) -> OnnxFragment:
    """Return the nodes of an exported graph under names of their own in a host.

    Parameters
    ----------
    graph
        Left as it is.
    fixed
        The host's name for each input and output of the graph.
    taken
        Names that are in use in the host.
    ir_version
        Of the host: before 4, an initializer would have to be an input, so constants become nodes.
    """
    graph = onnx.GraphProto.FromString(graph.SerializeToString())
    outputs = [item.name for item in graph.output]
    _end_in_nodes(graph, outputs)
    names = _new_names(graph, fixed, taken)
    read = {name for node in graph.node for name in reads(node)}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    for scope in subgraphs(graph):
        for node in scope.node:
            _rename(node, names)
        for item in (*scope.input, *scope.output, *scope.value_info, *scope.initializer):
            item.name = names.get(item.name, item.name)
    _name_nodes(graph, {*taken, *names.values()})
    if ir_version >= INITIALIZERS_NEED_NO_INPUT_SINCE:
        return OnnxFragment(tuple(graph.node), tuple(initializers))
    constants = (
        onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor) for tensor in initializers
    )
    return OnnxFragment((*constants, *graph.node), ())


def _open(model: bytes) -> Runner:
    from postproc_export.runtimes.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner.load(model, precision="float32", optimize=True, threads=None)


def _end_in_nodes(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Let a node compute each output: an input or constant that is handed on as it is has a name of its own."""
    computed = {name for node in graph.node for name in node.output}
    for name in outputs:
        if name not in computed:
            source = f"{name}_constant"
            for tensor in graph.initializer:
                tensor.name = source if tensor.name == name else tensor.name
            for node in graph.node:
                _rename(node, {name: source})
            graph.node.append(onnx.helper.make_node("Identity", [source], [name]))


def _new_names(graph: onnx.GraphProto, fixed: Mapping[str, str], taken: Collection[str]) -> dict[str, str]:
    names, used = dict(fixed), set(taken)
    for name in _defined(graph):
        if name not in names:
            names[name] = _unused(name, used)
    return names


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    for scope in subgraphs(graph):
        yield from (item.name for item in scope.input)
        yield from (tensor.name for tensor in scope.initializer)
        for node in scope.node:
            yield from (name for name in node.output if name)


def _name_nodes(graph: onnx.GraphProto, used: set[str]) -> None:
    """Name nodes, and drop what exporters write on them: where the class stands in the files of this machine."""
    for scope in subgraphs(graph):
        for node in scope.node:
            node.name = _unused(f"{node.op_type}_node", used)
            node.ClearField("doc_string")
            if hasattr(node, "metadata_props"):
                del node.metadata_props[:]


def _unused(name: str, used: set[str]) -> str:
    base = PREFIXES["transform"] + re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_")
    candidate, count = base, 1
    while candidate in used:
        candidate, count = f"{base}_{count}", count + 1
    used.add(candidate)
    return candidate


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for field in (node.input, node.output):
        for index, name in enumerate(field):
            field[index] = names.get(name, name)
