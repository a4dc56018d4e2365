"""Find the tails of an ONNX model, and what its record says that cannot be true of it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import onnx

from graph_patterns.onnx.view import OnnxView
from postproc_export.errors import MetadataError
from postproc_export.graphs.detached import (
    Found,
    FoundTail,
    find_tails,
    level_misfits,
    raw_misfits,
    recorded_raw,
    renaming_misfits,
    touched,
)
from postproc_export.graphs.metadata import TailRecord
from postproc_export.graphs.onnx.names import computed_names, immovable_names, value_names
from postproc_export.graphs.onnx.original import (
    added_import,
    decoded_outputs,
    import_doubts,
    read_record,
    recorded_names,
)
from postproc_export.packing import PACKED_OUTPUT
from postproc_export.stats import Level

_RAW_TYPES: Final = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.UNDEFINED,  # an exporter left it out
)


def find_in_onnx_model(model: onnx.ModelProto, *, where: str) -> Found:
    """Find the tails of a model, ours or Anomalib's, with the help of its record where it has one."""
    record = read_record(model, where=where)
    view = OnnxView(model)
    raw = () if record is None else tuple(name for name in record.raw.values() if view.has(name))
    fits = record is not None and len(raw) == len(record.raw)
    tails, misses = find_tails(view, raw=raw if fits else (), record=record)
    outputs = frozenset(item.name for item in model.graph.output)
    if record is None or not tails or record.levels & misses.keys():  # a level that is gone is told as such
        return Found(tails, misses, record, outputs=outputs)
    misfits = (*_misfits(view, record, tails, where=where), *_moved_inputs(model, record))
    doubts = () if misfits or touched(tails) else tuple(_doubts(model, record, tails, where=where))
    return Found(tails, misses, record, misfits=misfits, doubts=doubts, outputs=outputs)


def lost_outputs(
    model: onnx.ModelProto, record: TailRecord, original: Collection[onnx.ValueInfoProto], back: Mapping[str, str]
) -> set[str]:
    """Return the outputs of the original that no tail takes and that are gone: attaching leaves them there."""
    there = {item.name for item in model.graph.output}.union(record.raw.values())
    return {item.name for item in original} - {back.get(name, name) for name in there}


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
    names, values = value_names(model), computed_names(model.graph)
    yield from (f"the value '{name}' is not in the model" for name in back if name not in names)
    original = decoded_outputs(record.original, where=where)
    lost = lost_outputs(model, record, original, back)
    for item in original:
        if item.name in lost or now.get(item.name, item.name) not in values:
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
