"""Put a layer before or behind the tail of an ONNX model, in place, and take it off again."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import onnx

from graph_patterns.onnx.lowering import OnnxFragment, OnnxTarget, emit
from graph_patterns.onnx.removal import remove
from graph_patterns.onnx.view import default_opset
from postproc_export.graphs.attached import name_is_taken
from postproc_export.graphs.onnx.attach import oldest_opset_of
from postproc_export.graphs.onnx.names import immovable_names, rename_values, used_names
from postproc_export.graphs.onnx.original import decoded_outputs, encoded_port
from postproc_export.runtimes.protocol import Axis
from postproc_export.transforms.plan import LayerOutput, Plan
from postproc_export.transforms.record import KEYS, PREFIXES, LayerRecord, Where
from postproc_export.version import __version__

_ELEMENT_TYPES: Final = {
    "float32": onnx.TensorProto.FLOAT,
    "bool": onnx.TensorProto.BOOL,
    "uint8": onnx.TensorProto.UINT8,
}


Make = Callable[[Mapping[str, str], Collection[str]], OnnxFragment]


def put_layer(model: onnx.ModelProto, plan: Plan, *, make: Make | None = None) -> LayerRecord:
    """Append a layer to a model, which may be a skeleton without its weights.

    Parameters
    ----------
    model
        Changed in place.
    plan
        What is added.
    make
        Returns nodes that compute the outputs under their names, from the names that the inputs of the plan have in the
        model and the names that are taken; None lowers the expressions.

    Raises
    ------
    UnsupportedModelError
        If a name that it needs is taken by an input.
    UnsupportedOpsetError
        If the model's opset has no form of an operator that it needs.
    """
    document: dict[str, Any] = {"outputs": [encoded_port(item) for item in model.graph.output]}
    added_opset = None if default_opset(model) else oldest_opset_of(model.ir_version)
    target = OnnxTarget(added_opset or default_opset(model), model.ir_version)
    renamed = _renamings(model, plan)
    read = {name: renamed.get(port.name, port.name) for name, port in plan.inputs.items()}
    taken = used_names(model) | set(renamed.values())
    fragment = make(read, taken) if make is not None else _emitted(plan, read, target, taken)
    rename_values(model, renamed)
    model.graph.node.extend(fragment.nodes)
    model.graph.initializer.extend(fragment.initializers)
    if renamed:
        document["renamed"] = renamed
    if added_opset is not None:
        model.opset_import.append(onnx.helper.make_opsetid("", added_opset))
        document["added_opset_import"] = added_opset
    _replace_outputs(model, plan, renamed)
    record = LayerRecord(
        where=plan.where,
        version=__version__,
        tails=plan.tails,
        read=read,
        made={output.name: output.name for output in plan.outputs},
        original=document,
    )
    model.metadata_props.add(key=KEYS[plan.where], value=record.dumps())
    return record


def read_layer(model: onnx.ModelProto, layer: Where, *, where: str) -> LayerRecord | None:
    """Return the record of a layer; None where the model has none."""
    text = next((item.value for item in model.metadata_props if item.key == KEYS[layer]), None)
    return None if text is None else LayerRecord.loads(text, layer=layer, where=where)


def take_layer(model: onnx.ModelProto, layer: Where, *, where: str) -> LayerRecord | None:
    """Remove a layer and give the outputs and names back that were there before it; None where there is none.

    Raises
    ------
    SharedValueError
        If a node outside the layer reads one of its values.
    MetadataError
        If the record is not legal.
    """
    record = read_layer(model, layer, where=where)
    if record is None:
        return None
    values = [name for node in model.graph.node if node.name.startswith(PREFIXES[layer]) for name in node.output]
    outputs = [item.name for item in model.graph.output if item.name in record.made]
    original = decoded_outputs(record.original, where=where)
    remove(model, values, outputs=outputs, keep=list(record.read.values()))
    rename_values(model, {new: old for old, new in record.original.get("renamed", {}).items()})
    del model.graph.output[:]
    model.graph.output.extend(original)
    version = record.original.get("added_opset_import")
    _drop(model.opset_import, lambda item: version is not None and (item.domain, item.version) == ("", version))
    _drop(model.metadata_props, lambda item: item.key == KEYS[layer])
    return record


def _renamings(model: onnx.ModelProto, plan: Plan) -> dict[str, str]:
    """Return new names for values that bear the name of an output of the layer."""
    used, immovable = used_names(model), immovable_names(model.graph)
    others = {item.name for item in model.graph.output} - {output.replaces for output in plan.outputs}
    renamed: dict[str, str] = {}
    for output in plan.outputs:
        if output.name in others:
            raise name_is_taken(output.name, by="another output")
        if output.name in immovable:
            raise name_is_taken(output.name, by=immovable[output.name])
        if output.name in used:
            renamed[output.name] = moved_name(output.name, plan.where, used)
    return renamed


def moved_name(name: str, where: Where, used: set[str]) -> str:
    """Return an unused name for a value that a layer takes the name of, and add it to `used`."""
    base = f"{name}_before_{where}"
    candidate, count = base, 1
    while candidate in used:
        candidate, count = f"{base}_{count}", count + 1
    used.add(candidate)
    return candidate


def _emitted(plan: Plan, read: Mapping[str, str], target: OnnxTarget, taken: Collection[str]) -> OnnxFragment:
    exprs = {output.name: output.expr for output in plan.outputs if output.expr is not None}
    return emit(exprs, inputs=read, target=target, prefix=PREFIXES[plan.where], taken=taken)


def _replace_outputs(model: onnx.ModelProto, plan: Plan, renamed: Mapping[str, str]) -> None:
    by_place = {output.replaces: output for output in plan.outputs if output.replaces is not None}
    back = {new: old for old, new in renamed.items()}
    final = []
    for item in model.graph.output:
        name = back.get(item.name, item.name)
        output = by_place.get(name)
        final.append(
            onnx.ValueInfoProto.FromString(item.SerializeToString()) if output is None else _value_info(output)
        )
    final += [_value_info(output) for output in plan.outputs if output.replaces is None]
    del model.graph.output[:]
    model.graph.output.extend(final)


def _value_info(output: LayerOutput) -> onnx.ValueInfoProto:
    item = onnx.ValueInfoProto(name=output.name)
    item.type.tensor_type.elem_type = _ELEMENT_TYPES[output.dtype]
    if output.shape is not None:
        item.type.tensor_type.shape.SetInParent()
        for axis in output.shape:
            item.type.tensor_type.shape.dim.append(_dimension(axis))
    return item


def _dimension(axis: Axis) -> onnx.TensorShapeProto.Dimension:
    if isinstance(axis, int):
        return onnx.TensorShapeProto.Dimension(dim_value=axis)
    return onnx.TensorShapeProto.Dimension() if axis is None else onnx.TensorShapeProto.Dimension(dim_param=axis)


def _drop(items: Any, unwanted: Any) -> None:
    for index in reversed(range(len(items))):
        if unwanted(items[index]):
            del items[index]
