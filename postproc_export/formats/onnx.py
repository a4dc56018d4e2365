"""The ONNX format: layers and tails put on models, found in them and taken off, in place and without weights."""

from collections.abc import Callable, Collection, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import onnx

from graph_patterns.expr import ModelFileError, UnsupportedOpsetError
from graph_patterns.match import Site, Value
from graph_patterns.onnx.edit import Soundness, reads, remove, set_numbers
from graph_patterns.onnx.file import external_data_locations, external_files, load_skeleton
from graph_patterns.onnx.graph import (
    ELEMENT_TYPES,
    INITIALIZERS_NEED_NO_INPUT_SINCE,
    OnnxTarget,
    OnnxView,
    default_opset,
    emit,
)
from graph_patterns.onnx.wire import ChangedFileError, FileSource
from postproc_export.errors import FileError, UnsupportedModelError, UsageError
from postproc_export.files import publishing
from postproc_export.formats.base import (
    PLAIN,
    DetachResult,
    Edit,
    Format,
    LayerOutput,
    Plan,
    Result,
    decoded_outputs,
    encoded_port,
    illegal,
)
from postproc_export.formats.digest import content_digest
from postproc_export.formats.onnx_file import (
    NEEDED_IMPORT,
    added_import,
    computed_names,
    content_parts,
    drop_added_import,
    immovable_names,
    import_doubts,
    oldest_opset_of,
    output_ports,
    rename_values,
    used_names,
    uses_default_domain,
    value_names,
)
from postproc_export.model_info import MODEL_INFO
from postproc_export.options import FileOptions, TailOptions
from postproc_export.ports import Axis, PortInfo, Selection, port_of
from postproc_export.process import claimed
from postproc_export.reading.found import (
    FoundLayer,
    Tails,
    adjusted_values,
    notes_of,
    raw_name,
    recorded_raw,
    refuse_no_outputs,
    restored_tails,
    touched,
)
from postproc_export.reading.tail import SCORE_OUTPUT, FoundTail
from postproc_export.record import KEYS, PREFIXES, LayerRecord, TailRecord, Where
from postproc_export.stats import CalibrationStats
from postproc_export.tail import PACKED_OUTPUT, PARTS, PREFIX, NanTest, Tail, TailForm, build_tail

Make = Callable[[Mapping[str, str], Collection[str]], onnx.GraphProto]
"""Returns nodes that compute the outputs of a layer under their names, from the names of its inputs and all names."""

_BFLOAT16_CAST_SINCE: Final = 13
_RAW_TYPES: Final = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.UNDEFINED,  # an exporter left it out
)


class OnnxFormat(Format):
    """ONNX models; `onnx.ModelProto`, which may be a skeleton without its weights."""

    name = "onnx"
    entry = "metadata entry"
    needs_raw = False  # another tool may have given the values other names
    runtimes = ("onnxruntime", "openvino")
    mask_dtype = "bool"
    separator = " "

    def load(self, path: Path, *, purpose: str) -> onnx.ModelProto:
        """Read a model without its weights; nothing else is needed for any purpose."""
        with load_skeleton(path) as file:
            return file.model

    def rewrite(
        self, source: Path, target: Path, edit: Edit[Result], options: FileOptions = PLAIN, *, is_checked: bool = True
    ) -> Result:
        """Edit the graph without its weights, which are streamed from file to file; external data comes along.

        Raises ModelFileError or FileError if the source cannot be read or refers to files that it must not refer to,
        the target cannot be written, or the edited model is not as sound as the source.
        """
        with claimed([target]), load_skeleton(source) as file:
            weights = external_files(file.model, source.parent)
            before = Soundness(file) if is_checked else None
            opset = default_opset(file.model)
            result = edit(file.model)
            if not result:
                return result
            if before is not None:
                before.refuse_worse(Soundness(file, opset=opset), where=str(target))
            with publishing([target], inputs=[source, *weights.values()], in_place=options.in_place) as publication:
                publication.bring_along(weights, link=options.link_weights)
                try:
                    file.write(publication.temporary(target))
                except ModelFileError as error:
                    if isinstance(error.__cause__, OSError):  # it names a temporary file
                        raise error.__cause__ from None
                    raise
        return result

    def edited(
        self, path: Path, folder: Path, edit: Edit[Result], *, purpose: str, is_checked: bool = True
    ) -> tuple[Result, Path]:
        """Write a file; a hard link of external data saves a copy where the file system allows it."""
        target = folder / path.name
        try:
            return self.rewrite(path, target, edit, FileOptions(link_weights=True), is_checked=is_checked), target
        except FileError:
            return self.rewrite(path, target, edit, is_checked=is_checked), target

    def outputs(self, model: onnx.ModelProto) -> list[PortInfo]:
        """Return the outputs; a shape that is not declared, or tells too little, is inferred where ONNX can."""
        return output_ports(model)

    def inputs(self, model: onnx.ModelProto) -> list[PortInfo]:
        """Return the inputs that no initializer gives a value to."""
        given = {tensor.name for tensor in model.graph.initializer}
        return [port_of(item) for item in model.graph.input if item.name not in given]

    def uncomputed(self, model: onnx.ModelProto) -> list[str]:
        """Return the outputs that no node, input or constant gives."""
        computed = computed_names(model.graph)
        return [item.name for item in model.graph.output if item.name not in computed]

    def digest(self, source: Path | onnx.ModelProto, *, inputs: Collection[str] = ()) -> str | None:
        """Return the digest; of large weights samples are read, in the file and in those beside it."""
        if isinstance(source, Path):
            try:
                with load_skeleton(source) as file, ExitStack() as opened:
                    external = {
                        location: opened.enter_context(closing(FileSource(path.open("rb", buffering=0))))
                        for location, path in external_files(file.model, source.parent).items()
                    }
                    return content_digest(content_parts(file.model, file=file, external=external, apart=inputs))
            except (OSError, ChangedFileError) as error:
                raise ModelFileError(
                    f"cannot read the weights of {source}", found=str(error) or "they changed"
                ) from error
        if external_data_locations(source):
            return None
        return content_digest(content_parts(source, file=None, external={}, apart=inputs))

    def runnable(self, model: onnx.ModelProto) -> bytes:
        """Return the serialised model."""
        serialised: bytes = model.SerializeToString()
        return serialised

    def view(self, model: onnx.ModelProto) -> OnnxView:
        """Return the graph, for the matcher."""
        return OnnxView(model)

    def value_name(self, value: Any) -> str:
        """Return the name of the value."""
        return str(value)

    def show(self, model: onnx.ModelProto, values: Mapping[str, str]) -> None:
        """Add a Cast for each, which a runtime drops where the value is float32, and an Identity.

        Without the latter ONNX Runtime gives an input's own memory for such an output, freed before it is read.
        """
        for name, value in values.items():
            cast = onnx.helper.make_node("Cast", [value], [f"{name}/float32"], to=onnx.TensorProto.FLOAT)
            model.graph.node.extend([cast, onnx.helper.make_node("Identity", cast.output, [name], name=name)])
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))

    def edit(self, model: onnx.ModelProto, numbers: Mapping[Site, float]) -> None:
        """Change numbers of the tail in place."""
        set_numbers(model, numbers, prefix=PREFIX)

    def recorded(self, model: onnx.ModelProto, layer: Where, *, where: str) -> str | None:
        """Return the text of a record; a MetadataError if there are several."""
        texts = [item.value for item in model.metadata_props if item.key == KEYS[layer]]
        if len(texts) > 1:
            raise illegal("text", f"{len(texts)} entries of that name", where=where)
        return texts[0] if texts else None

    def model_info(self, model: onnx.ModelProto) -> dict[str, str]:
        """Return the metadata entries of which `model_info` is a word, by the last one."""
        entries = ((item.key.split(), item.value) for item in model.metadata_props)
        return {words[-1]: value for words, value in entries if MODEL_INFO in words[:-1]}

    def _set_model_info(self, model: onnx.ModelProto, settings: Mapping[str, str]) -> None:
        for key, value in settings.items():
            model.metadata_props.add(key=f"{MODEL_INFO} {key}", value=value)

    def _drop_model_info(self, model: onnx.ModelProto, keys: Collection[str]) -> None:
        _drop_entries(model, {f"{MODEL_INFO} {key}" for key in keys})

    def build_tail(
        self, model: onnx.ModelProto, stats: CalibrationStats, options: TailOptions, selection: Selection
    ) -> Tail:
        """Return a tail that the model's opset can express; UnsupportedOpsetError below opset 7 or IR version 3."""
        target = _target(model)
        for port in (selection.image, selection.pixel):
            if port is not None and port.dtype == "bfloat16" and target.opset < _BFLOAT16_CAST_SINCE:
                raise UnsupportedModelError(
                    f"output '{port.name}' is bfloat16, which opset {target.opset} cannot convert to float32",
                    needed=f"opset {_BFLOAT16_CAST_SINCE} or later",
                    fix="export the model again with a later opset",
                )
        has_test = target.supports("is_nan") and target.supports("select") and options.made_for == "any"
        nan_test: NanTest = "sum" if has_test else "arithmetic"
        form = TailForm(nan_test, "squeezed" if target.has_integers else "plain")
        tail = build_tail(stats, options, selection, form=form, default_mask_dtype=self.mask_dtype)
        if options.as_parameters:
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
        return tail

    def put(self, model: onnx.ModelProto, plan: Plan, *, make: Make | None = None) -> LayerRecord:
        """Append the nodes of a layer behind the outputs; nothing else is touched."""
        ports, target = {item.name: item for item in model.graph.output}, _target(model)
        document: dict[str, Any] = {"outputs": [encoded_port(item) for item in ports.values()]}
        is_needed, used = uses_default_domain(model), used_names(model)
        others = dict.fromkeys(ports.keys() - plan.replaced, "another output")
        renamed = plan.renamings(value_names(model), used, {**immovable_names(model.graph), **others})
        read = {name: renamed.get(port.name, port.name) for name, port in plan.inputs.items()}
        if make is not None:
            fragment = make(read, used)
        else:
            inputs = {**read, **{name: name for name in plan.adjustable}}
            fragment = emit(plan.exprs, inputs=inputs, target=target, prefix=PREFIXES[plan.where], taken=used)
        rename_values(model, renamed)
        if renamed:
            document["renamed"] = renamed
        if not default_opset(model):
            model.opset_import.append(onnx.helper.make_opsetid("", target.opset))
            document["added_opset_import"] = target.opset
            document |= {NEEDED_IMPORT: True} if is_needed else {}
        model.graph.node.extend(fragment.node)
        model.graph.initializer.extend(fragment.initializer)
        for name, default in plan.adjustable.items():  # an initializer that is an input too can be overridden
            model.graph.initializer.append(onnx.helper.make_tensor(name, 1, [], [default]))
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, []))
        _set_outputs(
            model,
            [
                ports[item] if isinstance(item, str) else _value_info(item, ports.get(item.like or ""))
                for item in plan.order(ports)
            ],
        )
        record = plan.record(read=read, made={output.name: output.name for output in plan.outputs}, original=document)
        model.metadata_props.add(key=KEYS[plan.where], value=record.dumps())
        return record

    def _given(self, model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
        return ((item.name, item.name) for item in model.graph.output)

    def _values(self, model: onnx.ModelProto, record: LayerRecord) -> Mapping[str, Value]:
        return {name: name for name in computed_names(model.graph)}

    def _names(self, model: onnx.ModelProto) -> Collection[str]:
        return value_names(model)

    def _between(self, model: onnx.ModelProto, record: LayerRecord) -> list[Value]:
        producers = {name: node for node in model.graph.node for name in node.output if name}
        values: dict[Value, None] = {}
        pending = [name for name in record.made.values() if name not in record.sources]
        while pending:
            node = producers.get(pending.pop())
            if node is None or not node.name.startswith(PREFIXES[record.where]) or values.keys() & set(node.output):
                continue
            values |= dict.fromkeys(name for name in node.output if name)
            pending += [name for name in reads(node) if name not in record.sources]
        return list(values)

    def _original(self, model: onnx.ModelProto, record: LayerRecord, *, where: str) -> dict[str, str]:
        names = [item.name for item in decoded_outputs(record.original, where=where)]
        added_import(record.original, where=where)
        return {record.renamed.get(name, name): name for name in names}

    def _misfits(self, model: onnx.ModelProto, record: TailRecord, tails: Tails, *, where: str) -> Iterator[str]:
        view, now, back = OnnxView(model), record.renamed, record.back
        original = {item.name: item for item in decoded_outputs(record.original, where=where)}
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
        for name, kind in immovable_names(model.graph).items():
            if name in now.values():
                yield f"'{name}' is {kind}, which attaching does not rename"

    def _doubts(
        self, model: onnx.ModelProto, record: LayerRecord, values: Collection[Value], *, where: str
    ) -> Iterator[str]:
        yield from super()._doubts(model, record, values, where=where)
        yield from import_doubts(model, record.original, where=where, apart=[str(value) for value in values])

    def _take(self, model: onnx.ModelProto, found: FoundLayer, *, where: str) -> DetachResult:
        tails, record = found.tails, found.record
        outputs = {item.name: _copied(item) for item in model.graph.output}
        remove(
            model,
            found.values,
            outputs=found.given,
            inputs=[str(value) for value in adjusted_values(tails)],
            keep=[*(tail.raw for tail in tails.values()), *(record.read.values() if record is not None else ())],
        )
        _drop_entries(model, {KEYS[found.where]})
        if record is None:
            return _rebuilt(model, tails, outputs, where=where)
        original = decoded_outputs(record.original, where=where)
        back, notes, values = record.back, touched(tails), value_names(model)
        for tail in restored_tails(tails):
            recorded, now = found.raw.get("pixel" if tail.from_map else tail.level, str(tail.raw)), str(tail.raw)
            if recorded not in values:
                was = back.pop(recorded, recorded)
                notes.append(f"'{now}' was '{was}': another tool took the value of that name away")
                back[now] = was
        notes += [
            f"'{old}' is not in the model any more, so nothing is called '{new}' again"
            for old, new in back.items()
            if old not in values
        ]
        gone = _gone_outputs(model, record, original)
        renamed = _give_names_back(model, back)
        names = {item.name for item in original}
        lost = [item.name for item in original if item.name in gone or item.name not in computed_names(model.graph)]
        added = [_copied(item) for item in model.graph.output if item.name not in names]
        final = [*(item for item in original if item.name not in lost), *added]
        refuse_no_outputs(final, where=where)
        _set_outputs(model, final)
        notes += drop_added_import(model, record.original, where=where)
        notes += [f"the output '{name}' of the original is not in the model any more" for name in lost]
        notes += [f"the output '{item.name}', which the original did not have, stays" for item in added]
        raw = {level: record.back.get(name, name) for level, name in found.raw.items()}
        present = {item.name for item in final}
        return DetachResult(
            record=record,
            tails=tails,
            renamed=renamed,
            notes=tuple(notes),
            is_original=not notes,
            raw_outputs={level: name for level, name in raw.items() if name in present},
        )


def _target(model: onnx.ModelProto) -> OnnxTarget:
    return OnnxTarget(default_opset(model) or oldest_opset_of(model.ir_version), model.ir_version)


def _copied(item: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy: onnx.ValueInfoProto = onnx.ValueInfoProto.FromString(item.SerializeToString())
    return copy


def _set_outputs(model: onnx.ModelProto, final: Sequence[onnx.ValueInfoProto]) -> None:
    copies = [_copied(item) for item in final]  # an output that is given up dies with its list
    del model.graph.output[:]
    model.graph.output.extend(copies)


def _value_info(output: LayerOutput, like: onnx.ValueInfoProto | None) -> onnx.ValueInfoProto:
    """Declare an output: its own axes, or the first ones of an output of the model, if that declares any."""
    item = onnx.ValueInfoProto(name=output.name)
    item.type.tensor_type.elem_type = ELEMENT_TYPES[output.dtype]
    shape = item.type.tensor_type.shape
    if like is None and output.shape is not None:
        shape.SetInParent()
        shape.dim.extend(_dimension(axis) for axis in output.shape)
    elif like is not None and like.type.tensor_type.HasField("shape"):
        shape.CopyFrom(like.type.tensor_type.shape)
        if output.name == PACKED_OUTPUT:
            del shape.dim[1:-2]
            shape.dim.add(dim_value=len(PARTS))
        if output.shape is not None:
            del shape.dim[len(output.shape) :]
    return item


def _dimension(axis: Axis) -> onnx.TensorShapeProto.Dimension:
    if isinstance(axis, int):
        return onnx.TensorShapeProto.Dimension(dim_value=axis)
    return onnx.TensorShapeProto.Dimension() if axis is None else onnx.TensorShapeProto.Dimension(dim_param=axis)


def _drop_entries(model: onnx.ModelProto, keys: Collection[str]) -> None:
    entries: MutableSequence[onnx.StringStringEntryProto] = model.metadata_props
    for index in reversed(range(len(entries))):
        if entries[index].key in keys:
            del entries[index]


def _gone_outputs(model: onnx.ModelProto, record: LayerRecord, original: Collection[onnx.ValueInfoProto]) -> set[str]:
    """Return the outputs of the original that the tail does not take and that are gone: attaching leaves them there."""
    if record.where != "tail":  # steps also take the place of outputs that they do not read
        return set()
    there = {item.name for item in model.graph.output} | record.sources
    return {item.name for item in original} - {record.back.get(name, name) for name in there}


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


def _rebuilt(
    model: onnx.ModelProto, tails: Tails, outputs: Mapping[str, onnx.ValueInfoProto], *, where: str
) -> DetachResult:
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
    _set_outputs(model, list(final.values()))
    raw = {
        level: infos[level].name if level in infos else SCORE_OUTPUT[level]
        for level, tail in tails.items()
        if not tail.from_map
    }
    return DetachResult(tails=tails, renamed=renamed, notes=notes_of(tails), raw_outputs=raw)


def _is_output(model: onnx.ModelProto, name: str) -> bool:
    return any(item.name == name for item in model.graph.output)


def _raw_info(model: onnx.ModelProto, tail: FoundTail, output: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Declare a raw value as an output: the tail's shape, and the element type that the model or ONNX knows."""
    info = _copied(output)
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
