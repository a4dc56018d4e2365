"""Attach a tail to an ONNX model, in place, and take it off again with the original's outputs and names."""

from collections.abc import Callable, Collection, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import onnx

from graph_patterns.expr import UnsupportedOpsetError
from graph_patterns.match import Site
from graph_patterns.onnx.edit import remove, set_numbers
from graph_patterns.onnx.emit import ELEMENT_TYPES, INITIALIZERS_NEED_NO_INPUT_SINCE, OnnxTarget, emit
from graph_patterns.onnx.file import load_skeleton
from graph_patterns.onnx.view import OnnxView, default_opset
from postproc_export import __version__
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError, UsageError
from postproc_export.formats.base import (
    NEEDED_IMPORT,
    Attached,
    Detached,
    Format,
    FoundTails,
    Outputs,
    Plan,
    Result,
    added_import,
    adjusted_values,
    decoded_outputs,
    drop_added_import,
    encoded_port,
    final_order,
    find_tails,
    import_doubts,
    level_misfits,
    name_is_taken,
    new_name,
    new_names,
    notes_of,
    oldest_opset_of,
    raw_misfits,
    raw_name,
    read_record,
    recorded_names,
    recorded_raw,
    refuse_attached,
    refuse_damaged,
    refuse_no_outputs,
    refuse_partial,
    renaming_misfits,
    replaced_outputs,
    restored_tails,
    touched,
    uses_default_domain,
    with_what_is_left,
)
from postproc_export.formats.onnx_file import (
    computed_names,
    immovable_names,
    input_ports,
    output_ports,
    rename_values,
    rewrite_onnx_file,
    used_names,
    value_names,
)
from postproc_export.formats.onnx_layer import Make, put_onnx_layer, read_onnx_layer, take_onnx_layer
from postproc_export.options import TailOptions
from postproc_export.ports import FLOAT_TYPES, OutputChoice, select_outputs
from postproc_export.reading.tail import SCORE_OUTPUT, FoundTail
from postproc_export.record import METADATA_KEY, LayerRecord, TailRecord, Where
from postproc_export.runtimes import PortInfo
from postproc_export.stats import CalibrationStats, Level
from postproc_export.tail import PACKED_OUTPUT, PARTS, PREFIX, Tail, TailOutput, build_tail, calibrated_levels

# --- Find the tails of an ONNX model, and what its record says that cannot be true of it.

_RAW_TYPES: Final = (
    *(ELEMENT_TYPES[name] for name in FLOAT_TYPES),
    onnx.TensorProto.UNDEFINED,  # an exporter left it out
)


def find_in_onnx_model(model: onnx.ModelProto, *, where: str) -> FoundTails:
    """Find the tails of a model, ours or Anomalib's, with the help of its record where it has one."""
    record = read_record(model, where=where)
    view = OnnxView(model)
    raw = () if record is None else tuple(name for name in record.raw.values() if view.has(name))
    fits = record is not None and len(raw) == len(record.raw)
    tails, misses = find_tails(view, raw=raw if fits else (), record=record)
    outputs = frozenset(item.name for item in model.graph.output)
    if record is None or not tails or record.levels & misses.keys():  # a level that is gone is told as such
        return FoundTails(tails, misses, record, outputs=outputs)
    misfits = (*_misfits(view, record, tails, where=where), *_moved_inputs(model, record))
    doubts = () if misfits or touched(tails) else tuple(_doubts(model, record, tails, where=where))
    return FoundTails(tails, misses, record, misfits=misfits, doubts=doubts, outputs=outputs)


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


# --- Attach a tail to an ONNX model, in place: nodes behind the outputs, nothing else touched.

_BFLOAT16_CAST_SINCE: Final = 13


def attach_to_onnx_model(
    model: onnx.ModelProto,
    stats: CalibrationStats,
    options: TailOptions,
    *,
    image_output: OutputChoice = None,
    pixel_output: OutputChoice = None,
) -> Attached:
    """Append the tail to a model in memory, which may be a skeleton without its weights.

    Raises
    ------
    UnsupportedModelError
        If a tail is there already, or the outputs cannot be post-processed.
    UnsupportedOpsetError
        Below opset 7 or IR version 3.
    UsageError, MetadataError
        If the statistics and options do not fit the model or each other.
    """
    _refuse_attached(model)
    added_opset = None if default_opset(model) else oldest_opset_of(model.ir_version)
    target = OnnxTarget(added_opset or default_opset(model), model.ir_version)
    ports = output_ports(model)
    selection = select_outputs(
        ports,
        image_output=image_output,
        pixel_output=pixel_output,
        calibrated=calibrated_levels(stats, options),
    )
    for port in (selection.image, selection.pixel):
        _refuse_bfloat16(port, target)
    tail = build_tail(
        stats,
        options,
        selection,
        nan_test="sum" if target.supports("is_nan") and target.supports("select") else "arithmetic",
        default_mask_dtype="bool",
    )
    _refuse_adjustable(tail, target)
    return _Rewriter(model, tail, target).attach(added_opset)


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, tail: Tail, target: OnnxTarget) -> None:
        self._model = model
        self._tail = tail
        self._target = target
        self._used = used_names(model)

    def attach(self, added_opset: int | None) -> Attached:
        outputs = {item.name: item for item in self._model.graph.output}
        document: dict[str, Any] = {"outputs": [encoded_port(item) for item in outputs.values()]}
        renamed = self._renamings(outputs)
        rename_values(self._model, renamed)
        if renamed:
            document["renamed"] = renamed
        if added_opset is not None:
            is_needed = uses_default_domain(self._model)
            self._model.opset_import.append(onnx.helper.make_opsetid("", added_opset))
            document["added_opset_import"] = added_opset
            document |= {NEEDED_IMPORT: True} if is_needed else {}
        self._append(renamed)
        self._replace_outputs(outputs)
        raw = {level: renamed.get(port.name, port.name) for level, port in self._tail.raw.items()}
        record = TailRecord(
            version=__version__,
            stats=self._tail.stats,
            options=self._tail.resolved_options,
            raw=raw,
            original=document,
            narrow=self._tail.narrow,
            found=self._tail.selection.found,
        )
        self._model.metadata_props.add(key=METADATA_KEY, value=record.dumps())
        return Attached(self._tail, record, renamed)

    def _renamings(self, outputs: Container[str]) -> dict[str, str]:
        replaced = replaced_outputs(self._tail)
        values, immovable = value_names(self._model), immovable_names(self._model.graph)
        renamed: dict[str, str] = {}
        for name in new_names(self._tail):
            if name in outputs and name not in replaced:
                raise name_is_taken(name, by="another output")
            if name in immovable:
                raise name_is_taken(name, by=immovable[name])
            if name in values:
                renamed[name] = new_name(name, self._used)
        return renamed

    def _append(self, renamed: Mapping[str, str]) -> None:
        raw = {name: renamed.get(port.name, port.name) for name, port in self._tail.inputs.items()}
        fragment = emit(
            {output.name: output.expr for output in self._tail.outputs},
            inputs={**raw, **{item.name: item.name for item in self._tail.adjustable}},
            target=self._target,
            prefix=PREFIX,
            taken=self._used,
        )
        self._model.graph.node.extend(fragment.node)
        self._model.graph.initializer.extend(fragment.initializer)
        for item in self._tail.adjustable:  # an initializer that is an input too can be overridden
            self._model.graph.initializer.append(onnx.helper.make_tensor(item.name, 1, [], [item.default]))
            self._model.graph.input.append(onnx.helper.make_tensor_value_info(item.name, 1, []))

    def _replace_outputs(self, outputs: Mapping[str, onnx.ValueInfoProto]) -> None:
        final = []
        for item in final_order(self._tail, outputs):
            if isinstance(item, TailOutput):
                raw = self._tail.raw.get(item.level) or self._tail.raw["pixel"]
                final.append(_value_info(item, outputs[raw.name]))
            else:
                final.append(onnx.ValueInfoProto.FromString(outputs[item].SerializeToString()))
        del self._model.graph.output[:]  # only now: the messages in `outputs` die with it
        self._model.graph.output.extend(final)


def _value_info(output: TailOutput, source: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    item = onnx.ValueInfoProto(name=output.name)
    item.type.tensor_type.elem_type = ELEMENT_TYPES[output.dtype]
    if source.type.tensor_type.HasField("shape"):
        item.type.tensor_type.shape.CopyFrom(source.type.tensor_type.shape)
        axes = item.type.tensor_type.shape.dim
        if output.name == PACKED_OUTPUT:
            del axes[1:-2]
            axes.add(dim_value=len(PARTS))
        rank = len(output.shape) if output.shape is not None else len(axes)
        del axes[rank:]
    return item


def _refuse_attached(model: onnx.ModelProto) -> None:
    has_record = any(item.key == METADATA_KEY for item in model.metadata_props)
    found = find_in_onnx_model(model, where="the model")
    refuse_attached(found, entry=f"the metadata entry '{METADATA_KEY}'" if has_record else None)


def _refuse_adjustable(tail: Tail, target: OnnxTarget) -> None:
    if tail.options.as_parameters:
        raise UsageError(
            "as_parameters is for an IR", found="an ONNX model, whose inputs have defaults", fix="leave it out"
        )
    if tail.adjustable and target.ir_version < INITIALIZERS_NEED_NO_INPUT_SINCE:
        raise UnsupportedOpsetError(
            "an input with a default cannot be expressed",
            found=f"IR version {target.ir_version}",
            needed=f"IR version {INITIALIZERS_NEED_NO_INPUT_SINCE} or later",
            fix="export the model again, or attach without a run-time sensitivity or boundary",
        )


def _refuse_bfloat16(port: PortInfo | None, target: OnnxTarget) -> None:
    if port is not None and port.dtype == "bfloat16" and target.opset < _BFLOAT16_CAST_SINCE:
        raise UnsupportedModelError(
            f"output '{port.name}' is bfloat16, which opset {target.opset} cannot convert to float32",
            needed=f"opset {_BFLOAT16_CAST_SINCE} or later",
            fix="export the model again with a later opset",
        )


# --- Take a tail off an ONNX model, in place, and give the original's outputs and names back.


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
        return Detached(misses=found.misses, outputs=found.outputs)
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
    if tail.is_ours and tail.is_packed:
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


# --- The format.


class OnnxFormat(Format):
    """ONNX models, or their skeletons: `onnx.ModelProto` without its weights."""

    name = "onnx"

    def load(self, path: Path, *, purpose: str) -> onnx.ModelProto:
        """Read a model without its weights; nothing else is needed for any purpose."""
        with load_skeleton(path) as file:
            return file.model

    def rewrite(
        self,
        source: Path,
        target: Path,
        edit: Callable[[onnx.ModelProto], Result],
        *,
        in_place: bool = False,
        link_weights: bool = False,
        is_checked: bool = True,
    ) -> Result:
        """Edit the graph without its weights, which are streamed from file to file."""
        return rewrite_onnx_file(
            source, target, edit, in_place=in_place, link_weights=link_weights, is_checked=is_checked
        )

    def edited(
        self,
        path: Path,
        folder: Path,
        edit: Callable[[onnx.ModelProto], Result],
        *,
        purpose: str,
        is_checked: bool = True,
    ) -> tuple[Result, Path]:
        """Write a file; a hard link of external data saves a copy where the file system allows it."""
        target = folder / path.name
        try:
            return rewrite_onnx_file(path, target, edit, link_weights=True, is_checked=is_checked), target
        except FileError:
            return rewrite_onnx_file(path, target, edit, is_checked=is_checked), target

    def outputs(self, model: onnx.ModelProto) -> list[PortInfo]:
        """Return the outputs; a shape that is not declared is inferred where ONNX can."""
        return output_ports(model)

    def inputs(self, model: onnx.ModelProto) -> list[PortInfo]:
        """Return the inputs that no initializer gives a value to."""
        return input_ports(model)

    def view(self, model: onnx.ModelProto) -> OnnxView:
        """Return the graph, for the matcher."""
        return OnnxView(model)

    def value_name(self, value: Any) -> str:
        """Return the name of the value."""
        return str(value)

    def record(self, model: onnx.ModelProto, *, where: str) -> tuple[TailRecord | None, bool]:
        """Return the tail's record; it is never another format's."""
        return read_record(model, where=where), False

    def put(self, model: onnx.ModelProto, plan: Plan, *, make: Make | None = None) -> LayerRecord:
        """Append a layer."""
        return put_onnx_layer(model, plan, make=make)

    def read(self, model: onnx.ModelProto, layer: Where, *, where: str) -> LayerRecord | None:
        """Return the record of a layer; None where there is none."""
        return read_onnx_layer(model, layer, where=where)

    def take(self, model: onnx.ModelProto, layer: Where, *, where: str) -> LayerRecord | None:
        """Remove a layer."""
        return take_onnx_layer(model, layer, where=where)

    def was_converted(self, model: onnx.ModelProto, layer: Where) -> bool:
        """Return False: nothing is converted to this format."""
        return False

    def attach(
        self, model: onnx.ModelProto, stats: CalibrationStats, options: TailOptions, outputs: Outputs
    ) -> Attached:
        """Append the tail."""
        return attach_to_onnx_model(model, stats, options, **outputs)

    def find(self, model: onnx.ModelProto, *, where: str) -> FoundTails:
        """Find the tail."""
        return find_in_onnx_model(model, where=where)

    def detach(self, model: onnx.ModelProto, *, where: str) -> Detached:
        """Remove the tail."""
        return detach_from_onnx_model(model, where=where)

    def edit(self, model: onnx.ModelProto, numbers: Mapping[Site, float]) -> None:
        """Change numbers of the tail in place."""
        set_numbers(model, numbers, prefix=PREFIX)
