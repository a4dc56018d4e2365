"""Put a layer before or behind the tail of an ONNX model, in place, and take it off again."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx

from graph_patterns.onnx.edit import reads, remove
from graph_patterns.onnx.emit import ELEMENT_TYPES, OnnxTarget, emit
from graph_patterns.onnx.view import default_opset
from postproc_export import __version__
from postproc_export.formats.base import (
    NEEDED_IMPORT,
    LayerOutput,
    Plan,
    decoded_outputs,
    drop_added_import,
    encoded_port,
    moved_name,
    name_is_taken,
    oldest_opset_of,
    recorded_names,
    uses_default_domain,
)
from postproc_export.formats.onnx_file import computed_names, immovable_names, rename_values, used_names, value_names
from postproc_export.record import KEYS, PREFIXES, LayerRecord, Where, refuse_misfit
from postproc_export.runtimes import Axis

Make = Callable[[Mapping[str, str], Collection[str]], onnx.GraphProto]


def put_onnx_layer(model: onnx.ModelProto, plan: Plan, *, make: Make | None = None) -> LayerRecord:
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
    is_needed = uses_default_domain(model)
    target = OnnxTarget(added_opset or default_opset(model), model.ir_version)
    renamed = _renamings(model, plan)
    read = {name: renamed.get(port.name, port.name) for name, port in plan.inputs.items()}
    taken = used_names(model) | set(renamed.values())
    fragment = make(read, taken) if make is not None else _emitted(plan, read, target, taken)
    rename_values(model, renamed)
    model.graph.node.extend(fragment.node)
    model.graph.initializer.extend(fragment.initializer)
    if renamed:
        document["renamed"] = renamed
    if added_opset is not None:
        model.opset_import.append(onnx.helper.make_opsetid("", added_opset))
        document["added_opset_import"] = added_opset
        document |= {NEEDED_IMPORT: True} if is_needed else {}
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


def read_onnx_layer(model: onnx.ModelProto, layer: Where, *, where: str) -> LayerRecord | None:
    """Return the record of a layer; None where the model has none.

    Raises
    ------
    MetadataError
        If it is not legal.
    """
    text = next((item.value for item in model.metadata_props if item.key == KEYS[layer]), None)
    if text is None:
        return None
    record = LayerRecord.loads(text, layer=layer, where=where)
    decoded_outputs(record.original, where=where)
    recorded_names(record.original, where=where)
    return record


def take_onnx_layer(model: onnx.ModelProto, layer: Where, *, where: str) -> LayerRecord | None:
    """Remove a layer and give the outputs and names back that were there before it; None where there is none.

    Raises
    ------
    SharedValueError
        If a node outside the layer reads one of its values.
    MetadataError
        If the record is not legal, or does not fit the model.
    """
    record = read_onnx_layer(model, layer, where=where)
    if record is None:
        return None
    original = decoded_outputs(record.original, where=where)
    back = recorded_names(record.original, where=where)
    outputs = [item.name for item in model.graph.output if item.name in record.made]
    values = _values_between(model, record, PREFIXES[layer])
    present = value_names(model)
    missing = [name for name in (*record.read.values(), *back) if name not in present]
    refuse_misfit(
        record,
        [
            *(f"the value '{name}' is not there" for name in missing),
            *(f"the layer has not taken the name '{old}'" for old in back.values() if old not in record.made),
            *(f"the output '{name}' is not the layer's" for name in record.made if name not in values),
            *_lost(model, original, back, values),
        ],
        where=where,
    )
    remove(model, values, outputs=outputs, keep=list(record.read.values()))
    rename_values(model, back)
    del model.graph.output[:]
    model.graph.output.extend(original)
    refuse_misfit(record, drop_added_import(model, record.original, where=where), where=where)
    _drop(model.metadata_props, lambda item: item.key == KEYS[layer])
    return record


def _values_between(model: onnx.ModelProto, record: LayerRecord, prefix: str) -> set[str]:
    """Return the values of the layer's nodes: those of its prefix between what it made and what it reads."""
    producers = {name: node for node in model.graph.node for name in node.output if name}
    stop = set(record.read.values())
    values: set[str] = set()
    pending = [name for name in record.made.values() if name not in stop]
    while pending:
        node = producers.get(pending.pop())
        if node is None or not node.name.startswith(prefix) or not values.isdisjoint(node.output):
            continue
        values |= set(node.output) - {""}
        pending += [name for name in reads(node) if name not in stop]
    return values


def _lost(
    model: onnx.ModelProto, original: Sequence[onnx.ValueInfoProto], back: Mapping[str, str], gone: Collection[str]
) -> Iterator[str]:
    """Yield the outputs of the original that would not be there without the layer."""
    now = {old: new for new, old in back.items()}
    present = computed_names(model.graph)
    for item in original:
        name = now.get(item.name, item.name)
        if name in gone or name not in present:
            yield f"the output '{item.name}' of the original is not in the model"


def _renamings(model: onnx.ModelProto, plan: Plan) -> dict[str, str]:
    """Return new names for values that bear the name of an output of the layer."""
    used, values, immovable = used_names(model), value_names(model), immovable_names(model.graph)
    others = {item.name for item in model.graph.output} - {output.replaces for output in plan.outputs}
    renamed: dict[str, str] = {}
    for output in plan.outputs:
        if output.name in others:
            raise name_is_taken(output.name, by="another output")
        if output.name in immovable:
            raise name_is_taken(output.name, by=immovable[output.name])
        if output.name in values:
            renamed[output.name] = moved_name(output.name, plan.where, used)
    return renamed


def _emitted(plan: Plan, read: Mapping[str, str], target: OnnxTarget, taken: Collection[str]) -> onnx.GraphProto:
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
    item.type.tensor_type.elem_type = ELEMENT_TYPES[output.dtype]
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
