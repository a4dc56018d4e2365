"""Take a tail off an ONNX model, in place, and give the original's outputs and names back."""

from collections.abc import Iterator, Mapping
from typing import Final

import onnx

from graph_patterns.onnx.removal import remove
from graph_patterns.onnx.view import OnnxView
from postproc_export.errors import MetadataError
from postproc_export.graphs.detached import (
    Detached,
    Found,
    FoundTail,
    adjusted_values,
    find_tails,
    level_misfits,
    notes_of,
    raw_misfits,
    raw_name,
    recorded_raw,
    refuse_damaged,
    refuse_no_outputs,
    renaming_misfits,
    restored_tails,
    touched,
)
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.names import immovable_names, rename_values, value_names
from postproc_export.graphs.onnx.original import (
    added_import,
    decoded_outputs,
    drop_added_import,
    import_doubts,
    read_record,
    recorded_names,
)
from postproc_export.graphs.reading.own_tail import SCORE_OUTPUT, OwnTail
from postproc_export.packing import PACKED_OUTPUT
from postproc_export.stats import Level

_RAW_TYPES: Final = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.UNDEFINED,  # an exporter left it out
)


def detach_from_onnx_model(model: onnx.ModelProto, *, where: str = "the model") -> Detached:
    """Remove the tail from a model in memory, which may be a skeleton without its weights.

    Returns
    -------
    Detached
        Falsy, with reasons, where there is no tail; the model is as it was then.

    Raises
    ------
    SharedValueError
        If a node outside the tail reads one of its values.
    MetadataError, UnsupportedModelError
        If the record is not legal, or the tail is not the one that it describes.
    """
    found = find_in_onnx_model(model, where=where)
    tails, record = found.tails, found.record
    refuse_damaged(found, where=where)
    if not tails:
        return Detached(misses=found.misses)
    outputs = {item.name: onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in model.graph.output}
    remove(
        model,
        [value for tail in tails.values() for value in tail.values],
        outputs=[name for tail in tails.values() for name in tail.outputs],
        inputs=[str(value) for value in adjusted_values(tails)],
        keep=[tail.raw for tail in tails.values()],
    )
    _drop_record(model)
    if record is None:
        return _rebuild(model, tails, outputs, where=where)
    return _restore(model, record, tails, where=where)


def find_in_onnx_model(model: onnx.ModelProto, *, where: str) -> Found:
    """Find the tails of a model, ours or Anomalib's, with the help of its record where it has one."""
    record = read_record(model, where=where)
    view = OnnxView(model)
    raw = () if record is None else tuple(name for name in record.raw.values() if view.has(name))
    fits = record is not None and len(raw) == len(record.raw)
    tails, misses = find_tails(view, raw=raw if fits else (), record=record)
    if record is None or not tails or record.levels & misses.keys():  # a level that is gone is told as such
        return Found(tails, misses, record)
    misfits = (*_misfits(view, record, tails, where=where), *_moved_inputs(model, record))
    doubts = () if misfits or touched(tails) else tuple(_doubts(model, record, tails, where=where))
    return Found(tails, misses, record, misfits=misfits, doubts=doubts)


def _moved_inputs(model: onnx.ModelProto, record: TailRecord) -> Iterator[str]:
    """Yield the values that a record says were renamed, though attaching never renames them."""
    renamed = record.original.get("renamed", {})
    moved = renamed.values() if isinstance(renamed, dict) else ()
    for name, kind in immovable_names(model.graph).items():
        if name in moved:
            yield f"'{name}' is {kind}, which attaching does not rename"


def _doubts(
    model: onnx.ModelProto, record: TailRecord, tails: Mapping[Level, FoundTail], *, where: str
) -> Iterator[str]:
    """Yield what a record tells of and the model does not have."""
    back = recorded_names(record.original, where=where)
    now = {old: new for new, old in back.items()}
    names, values = value_names(model), _values(model)
    yield from (f"the value '{name}' is not in the model" for name in back if name not in names)
    for item in decoded_outputs(record.original, where=where):
        if now.get(item.name, item.name) not in values:
            yield f"the output '{item.name}' of the original is not in the model"
    tail = {str(value) for item in tails.values() for value in item.values}
    yield from import_doubts(model, record.original, where=where, apart=tail)


def _misfits(view: OnnxView, record: TailRecord, tails: Mapping[Level, FoundTail], *, where: str) -> Iterator[str]:
    """Yield what a record says of the original that cannot be true of this model."""
    yield from level_misfits(record, tails)
    try:
        original = {item.name: item for item in decoded_outputs(record.original, where=where)}
        back = recorded_names(record.original, where=where)
        added_import(record.original, where=where)
    except MetadataError as error:
        yield f"{error.what.removeprefix(f'{where}: ')} ({error.found})"
        return
    now = {old: new for new, old in back.items()}
    yield from renaming_misfits(record, tails, back)
    yield from raw_misfits(record, back, original)
    values = {str(value) for tail in tails.values() for value in tail.values}
    for name in original:
        if now.get(name, name) in values:
            yield f"the output '{name}' of the original is a value of the tail"
        if name in back:
            yield f"the original had an output '{name}', so no value was given that name"
    for tail in tails.values():
        recorded, found = recorded_raw(record, tail), str(tail.raw)
        raw = back.get(recorded, recorded) if recorded is not None else None
        if raw is None or recorded is None or raw not in original:
            continue
        if view.has(recorded) and not (view.copies(recorded, found) or view.copies(found, recorded)):
            yield f"the {tail.level} level reads '{found}', not '{recorded}'"
        elif not tail.from_map and not _could_be(original[raw], view.declared(tail.outputs[0])):
            yield f"the output '{raw}' of the original has another shape than what the tail reads, or no number"
        elif not touched(tails) and _is_float32(original[raw]) is _is_cast(view, tail):
            yield f"the output '{raw}' of the original has another type than what the tail reads"


def _could_be(raw: onnx.ValueInfoProto, output: onnx.ValueInfoProto | None) -> bool:
    """Whether a tail may give an output of a raw one: a float, the same size on every axis where both are known."""
    if raw.type.WhichOneof("value") not in (None, "tensor_type") or raw.type.tensor_type.elem_type not in _RAW_TYPES:
        return False
    shapes = [item.type.tensor_type for item in (raw, output) if item is not None]
    if output is None or output.name == PACKED_OUTPUT or not all(item.HasField("shape") for item in shapes):
        return True
    left, right = ([axis.dim_value for axis in item.shape.dim] for item in shapes)  # 0 where it has no fixed size
    return len(left) == len(right) and all(a == b or not (a and b) for a, b in zip(left, right, strict=True))


def _is_float32(raw: onnx.ValueInfoProto) -> bool | None:
    dtype = raw.type.tensor_type.elem_type
    return bool(dtype == onnx.TensorProto.FLOAT) if dtype else None


def _is_cast(view: OnnxView, tail: FoundTail) -> bool:
    """Whether a tail converts its raw value first, as it does where that is not float32."""
    nodes = [view.node(value) for value in tail.values]
    return any(node is not None and node.op_type == "Cast" and node.input[0] == tail.raw for node in nodes)


def _restore(model: onnx.ModelProto, record: TailRecord, tails: Mapping[Level, FoundTail], *, where: str) -> Detached:
    """Give back what the record keeps; what another tool added or took away stays so, and is told."""
    original = decoded_outputs(record.original, where=where)
    back = recorded_names(record.original, where=where)
    names_then = dict(back)
    notes, values = touched(tails), value_names(model)
    for tail in restored_tails(tails):
        recorded, found = recorded_raw(record, tail) or str(tail.raw), str(tail.raw)
        if recorded not in values:
            was = back.pop(recorded, recorded)
            notes.append(f"'{found}' was '{was}': another tool took the value of that name away")
            back[found] = was
    notes += [
        f"'{old}' is not in the model any more, so nothing is called '{new}' again"
        for old, new in back.items()
        if old not in values
    ]
    back = _give_names_back(model, back)
    names = {item.name for item in original}
    added = [item for item in model.graph.output if item.name not in names]
    lost = [item.name for item in original if item.name not in _values(model)]
    final = [item for item in original if item.name not in lost]
    final += [onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in added]
    refuse_no_outputs(final, where=where)
    del model.graph.output[:]
    model.graph.output.extend(final)
    notes += drop_added_import(model, record.original, where=where)
    notes += [f"the output '{name}' of the original is not in the model any more" for name in lost]
    notes += [f"the output '{item.name}', which the original did not have, stays" for item in added]
    present = {item.name for item in final}
    raw = {level: names_then.get(name, name) for level, name in record.raw.items()}
    return Detached(
        tails=tails,
        renamed=back,
        notes=tuple(notes),
        is_original=not notes,
        raw_outputs={level: name for level, name in raw.items() if name in present},
    )


def _give_names_back(model: onnx.ModelProto, back: Mapping[str, str]) -> dict[str, str]:
    """Rename values, or copy those whose own name is the model's interface; return what was renamed."""
    renamed: dict[str, str] = {}
    values, immovable = value_names(model), immovable_names(model.graph)
    for old, new in back.items():
        if old == new or old not in values or new in values or new in renamed.values():
            continue
        if old in immovable or (_is_output(model, old) and old not in back):
            model.graph.node.append(onnx.helper.make_node("Identity", [old], [new], name=new))
        else:
            renamed[old] = new
    rename_values(model, renamed)
    return renamed


def _rebuild(
    model: onnx.ModelProto,
    tails: Mapping[Level, FoundTail],
    outputs: Mapping[str, onnx.ValueInfoProto],
    *,
    where: str,
) -> Detached:
    """Name and order the raw outputs from the tail's own, where no record says how they were."""
    restored = {tail.level: tail for tail in restored_tails(tails)}
    infos = {level: _raw_info(model, tail, outputs[tail.outputs[0]]) for level, tail in restored.items()}
    back = {str(tail.raw): raw_name(tail, str(tail.raw)) for tail in restored.values()}
    renamed = _give_names_back(model, back)
    known = _values(model)
    final: dict[str, onnx.ValueInfoProto] = {}
    for name, item in outputs.items():
        placed = [level for level, tail in restored.items() if tail.outputs[0] == name]
        for level in placed:
            old = infos[level].name
            infos[level].name = next(candidate for candidate in (back[old], old) if candidate in known)
            final.setdefault(infos[level].name, infos[level])
        item.name = renamed.get(name, name)
        if not placed and _is_output(model, item.name):
            final.setdefault(item.name, item)
    refuse_no_outputs(final, where=where)
    del model.graph.output[:]
    model.graph.output.extend(final.values())
    raw = {
        level: infos[level].name if level in infos else SCORE_OUTPUT[level]
        for level, tail in tails.items()
        if not tail.from_map
    }
    return Detached(tails=tails, renamed=renamed, notes=notes_of(tails), raw_outputs=raw)


def _is_output(model: onnx.ModelProto, name: str) -> bool:
    return any(item.name == name for item in model.graph.output)


def _raw_info(model: onnx.ModelProto, tail: FoundTail, output: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Declare a raw value as an output: the tail's shape, and the element type that the model or ONNX knows."""
    info: onnx.ValueInfoProto = onnx.ValueInfoProto.FromString(output.SerializeToString())
    info.name = str(tail.raw)
    known = next((item for item in _infos(model) if item.name == info.name), None)
    if isinstance(tail, OwnTail) and tail.is_packed:
        info.type.tensor_type.ClearField("shape")
        return info if known is None else onnx.ValueInfoProto(name=info.name, type=known.type)
    if known is not None and known.type.tensor_type.elem_type:
        info.type.tensor_type.elem_type = known.type.tensor_type.elem_type
    return info


def _infos(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from model.graph.value_info
    yield from model.graph.input
    try:
        yield from onnx.shape_inference.infer_shapes(model).graph.value_info
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return  # then the tail's own element type has to do


def _values(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    names = {name for node in graph.node for name in node.output}
    return names | {item.name for item in graph.input} | {tensor.name for tensor in graph.initializer}


def _drop_record(model: onnx.ModelProto) -> None:
    for index in reversed(range(len(model.metadata_props))):
        if model.metadata_props[index].key == METADATA_KEY:
            del model.metadata_props[index]
