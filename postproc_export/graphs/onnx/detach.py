"""Take a tail off an ONNX model, in place, and give the original's outputs and names back."""

from collections.abc import Iterator, Mapping

import onnx

from graph_patterns.onnx.removal import remove
from graph_patterns.onnx.view import OnnxView
from postproc_export.graphs.detached import (
    Detached,
    FoundTail,
    adjusted_values,
    notes_of,
    raw_name,
    recorded_raw,
    refuse_damaged,
    refuse_no_outputs,
    refuse_partial,
    restored_tails,
    touched,
    with_what_is_left,
)
from postproc_export.graphs.metadata import METADATA_KEY, TailRecord
from postproc_export.graphs.onnx.find import find_in_onnx_model, lost_outputs
from postproc_export.graphs.onnx.names import computed_names, immovable_names, rename_values, value_names
from postproc_export.graphs.onnx.original import (
    decoded_outputs,
    drop_added_import,
    recorded_names,
)
from postproc_export.graphs.reading.own_tail import SCORE_OUTPUT, OwnTail
from postproc_export.stats import Level


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
    refuse_partial(found)
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
        detached = _rebuild(model, tails, outputs, where=where)
    else:
        detached = _restore(model, record, tails, where=where)
    return with_what_is_left(detached, OnnxView(model))


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
    gone = lost_outputs(model, record, original, names_then)
    back = _give_names_back(model, back)
    names = {item.name for item in original}
    added = [item for item in model.graph.output if item.name not in names]
    lost = [item.name for item in original if item.name in gone or item.name not in computed_names(model.graph)]
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
    known = computed_names(model.graph)
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


def _drop_record(model: onnx.ModelProto) -> None:
    for index in reversed(range(len(model.metadata_props))):
        if model.metadata_props[index].key == METADATA_KEY:
            del model.metadata_props[index]
