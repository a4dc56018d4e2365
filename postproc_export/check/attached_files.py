"""Read attached files of both formats for checking: the body, the tail alone, and what the record says."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import onnx

from graph_patterns.match import Value
from graph_patterns.onnx.emit import ELEMENT_TYPES, LOWERINGS
from graph_patterns.onnx.file import load_skeleton
from graph_patterns.onnx.view import OnnxView, default_opset
from graph_patterns.openvino.view import OpenVinoView
from postproc_export.check.runners import Assumed, Format, folded, own_tails, read_values
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError
from postproc_export.formats.base import FoundTails, decoded_outputs, encoded_port, raw_name, recorded_names
from postproc_export.formats.onnx import OnnxFormat, find_in_onnx_model
from postproc_export.formats.onnx_file import input_ports, output_ports, rewrite_onnx_file
from postproc_export.formats.onnx_layer import read_onnx_layer
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.formats.openvino_file import read_ir
from postproc_export.formats.openvino_layer import read_openvino_layer, was_converted
from postproc_export.formats.openvino_names import (
    find_in_openvino_model,
    raw_values,
    read_record,
    recorded_results,
    tensors_of,
    value_name,
)
from postproc_export.ports import FLOAT_TYPES
from postproc_export.reading.tail import OwnLevelTail
from postproc_export.record import LayerRecord, TailRecord, Where, refuse_misfit
from postproc_export.runtimes import PortInfo, first_reason
from postproc_export.runtimes.openvino import import_openvino, openvino_core, port_info
from postproc_export.stats import Level
from postproc_export.steps.around import misfits_around
from postproc_export.tail import INPUT_NAMES

# --- An attached ONNX file: the record in metadata_props, the tail as a small model of its own, taps as outputs.


@dataclass(frozen=True)  # without slots, for what is read once
class OnnxAttached:
    """An attached ONNX file; see `ModelFile`."""

    path: Path
    record: TailRecord
    raw: Mapping[Level, PortInfo]
    outputs: tuple[PortInfo, ...]
    tails: Mapping[Level, OwnLevelTail]
    remarks: tuple[str, ...]
    _model: onnx.ModelProto
    format: Format = "onnx"

    @classmethod
    def load(cls, path: Path, assumed: Assumed) -> Self:
        """Read the file without its weights."""
        with load_skeleton(path) as file:
            model = file.model
        found = find_in_onnx_model(model, where=str(path))
        tails, record = own_tails(found.tails), found.record
        remarks = folded(tails)
        if record is None:
            record = _assumed_record(model, found, assumed, where=path)
            remarks.append(assumed.describe(record))
        else:
            assumed.refuse_contradiction(record, where=path)
        decoded_outputs(record.original, where=str(path))
        recorded_names(record.original, where=str(path))
        raw = dict(_raw_ports(model, record, read_values(tails), where=path))
        remarks += [
            f"'{port.name}' is what the {level} level reads: '{record.raw[level]}' of the record is gone"
            for level, port in raw.items()
            if port.name != record.raw[level]
        ]
        return cls(
            path=path,
            record=record,
            raw=raw,
            outputs=tuple(output_ports(model)),
            tails=tails,
            remarks=tuple(remarks),
            _model=model,
        )

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that this file declares."""
        return tuple(input_ports(self._model))

    @property
    def misfits(self) -> tuple[str, ...]:
        """What the record says that does not fit the file."""
        model = onnx.ModelProto.FromString(self._model.SerializeToString())
        return misfits_around(OnnxFormat(), model, where=str(self.path), is_touched=bool(self.remarks))

    @cached_property
    def view(self) -> OnnxView:
        """The graph, for the matcher."""
        return OnnxView(self._model)

    @cached_property
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """As the guard does that is there; else by sum where the opset knows IsNaN and Where, or by arithmetic."""
        image = self.tails.get("image")
        if image is not None and image.guard is not None:
            nodes = (self.view.producer(value) for value in image.values)
            return "sum" if any(node is not None and node.op == "is_nan" for node in nodes) else "arithmetic"
        opset = default_opset(self._model)
        known = all(LOWERINGS[op][0].since <= opset for op in ("is_nan", "select"))
        return "sum" if known else "arithmetic"

    @property
    def original_names(self) -> tuple[tuple[str, ...], ...]:
        """The name of each output of the original."""
        return tuple((item.name,) for item in _original_outputs(self.record, where=self.path))

    def original_output(self, level: Level) -> PortInfo:
        """Return a raw output under the name that it had in the original."""
        port, name = self.raw[level], self.record.raw[level]
        back = {new: old for old, new in _renamed(self.record).items()}
        return PortInfo(back.get(name, name), port.dtype, port.shape)

    def is_raw(self, level: Level, value: Value) -> bool:
        """Whether a value of the graph is the raw value of a level."""
        return level in self.raw and value == self.raw[level].name

    def is_rounded(self, value: Value) -> bool:
        """Whether a node reads a compressed constant: no converter of this format does that."""
        return False

    def value_name(self, value: Value) -> str:
        """Return the name of the value in the graph."""
        return str(value)

    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> bytes:
        """Return the nodes between some values and the outputs as a model of its own."""
        model = self._model
        needed = list(_behind(model.graph, names, stop=frozenset(port.name for port in inputs)))
        read = {name for node in needed for name in node.input}
        given = {tensor.name for tensor in model.graph.initializer}
        graph = onnx.helper.make_graph(
            needed,
            "tail",
            [
                onnx.helper.make_tensor_value_info(port.name, ELEMENT_TYPES[port.dtype], port.shape)
                for port in inputs
                if port.name in read
            ]
            + [item for item in model.graph.input if item.name in read and item.name in given],
            [onnx.ValueInfoProto(name=name, type=self._type(name)) for name in names],
            [tensor for tensor in model.graph.initializer if tensor.name in read],
        )
        alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
        alone.ir_version = max(model.ir_version, 4)  # below, an initializer had to be a graph input too
        text: bytes = alone.SerializeToString()
        return text

    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Path:
        """Write the whole file, weights included, with some values as float32 outputs."""
        return _rewritten(self.path, folder / "tapped.onnx", lambda model: _tap(model, taps))

    def host(self, folder: Path) -> Path:
        """Write the nodes that the raw values need, weights included."""
        names = tuple(port.name for port in self.raw.values())

        def cut_off(model: onnx.ModelProto) -> None:
            given = frozenset(item.name for item in model.graph.input)
            needed = list(_behind(model.graph, names, stop=given))
            for field in (model.graph.node, model.graph.output):
                del field[:]
            model.graph.node.extend(needed)
            for port in self.raw.values():
                kind = ELEMENT_TYPES[port.dtype]
                model.graph.output.append(onnx.helper.make_tensor_value_info(port.name, kind, None))

        return _rewritten(self.path, folder / "host.onnx", cut_off)

    def layer(self, layer: Where) -> LayerRecord | None:
        """Return the record of what stands before the tail or behind it."""
        return read_onnx_layer(self._model, layer, where=str(self.path))

    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        """Return what a layer reads, with the types and shapes of the outputs that there were before it."""
        now = self._renamed_since(record)
        names = _renamed(record)
        original = _with_outputs(
            self._model, decoded_outputs(record.original, where=str(self.path)), lambda name: now(names.get(name, name))
        )
        ports = {port.name: port for port in (*output_ports(original), *input_ports(self._model))}
        strange = [name for name in record.read.values() if record.where == "transform" and now(name) not in ports]
        refuse_misfit(
            record, [f"the layer reads '{name}', which was no output" for name in strange], where=str(self.path)
        )
        return {key: ports.get(now(name), PortInfo(now(name), "float32", None)) for key, name in record.read.items()}

    def layer_values(self, record: LayerRecord) -> Mapping[str, str]:
        """Return what a layer makes, under the names that its values have in this file."""
        now = self._renamed_since(record)
        return {name: now(value) for name, value in record.made.items()}

    @property
    def host_names(self) -> frozenset[str] | None:
        """The names of the outputs of the model before its transform."""
        record = self.layer("transform")
        if record is None:
            return None
        return frozenset(item.name for item in decoded_outputs(record.original, where=str(self.path)))

    def _renamed_since(self, record: LayerRecord) -> Callable[[str], str]:
        """Return the name that a value has now: the tail renamed what stood before it."""
        renamed = _renamed(self.record) if record.where == "transform" else {}
        return lambda name: renamed.get(name, name)

    def _type(self, name: str) -> onnx.TypeProto:
        """Return the element type without the shape: the tail alone is fed other sizes than the file declares."""
        made = onnx.TypeProto()
        declared = {item.name: item.type.tensor_type.elem_type for item in self._model.graph.output}
        made.tensor_type.elem_type = declared.get(name, onnx.TensorProto.FLOAT)
        return made


def _behind(graph: onnx.GraphProto, names: tuple[str, ...], *, stop: frozenset[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that compute values from the raw ones, in the order of the graph."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    pending, seen = list(names), set[int]()
    while pending:
        name = pending.pop()
        if name in stop or name in constants or not name:
            continue
        if name not in producers:
            raise UnsupportedModelError(
                "the tail does not compute its outputs from the raw values alone",
                found=f"it reads '{name}'",
                needed=f"only {', '.join(sorted(stop))} and constants",
            )
        if producers[name] not in seen:
            seen.add(producers[name])
            pending += graph.node[producers[name]].input
    return (graph.node[index] for index in sorted(seen))


def _raw_ports(
    model: onnx.ModelProto, record: TailRecord, read: Mapping[Level, Value], *, where: Path
) -> Iterator[tuple[Level, PortInfo]]:
    """Yield the raw outputs with the types and shapes that the original declared, or that ONNX infers for them.

    Another tool may have given a raw value another name: then it is the one that the tail reads.
    """
    renamed, view = _renamed(record), OnnxView(model)
    original = _with_outputs(model, _original_outputs(record, where=where), lambda name: renamed.get(name, name))
    ports = {port.name: port for port in output_ports(original)}
    for level, name in record.raw.items():
        if name not in ports:
            raise MetadataError(f"{where}: the record names '{name}' as the raw {level} output, which was none")
        port = ports[name]
        if port.dtype not in FLOAT_TYPES:
            raise MetadataError(f"{where}: the record has a raw {level} output of {port.dtype}")
        yield level, port if view.has(name) or level not in read else replace(port, name=str(read[level]))


def _assumed_record(model: onnx.ModelProto, found: FoundTails, assumed: Assumed, *, where: Path) -> TailRecord:
    """Return a record for a file that has none: its raw outputs are what the tails read."""
    tails = own_tails(found.tails)
    values = {level: str(value) for level, value in read_values(tails).items()}
    names = {level: raw_name(tails[level], name) if level in tails else name for level, name in values.items()}
    items = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(values.values())]
    known = {port.name: port for port in output_ports(_with_outputs(model, items, str))}
    outputs = [
        onnx.helper.make_tensor_value_info(
            names[level], ELEMENT_TYPES.get(known[name].dtype, onnx.TensorProto.FLOAT), known[name].shape
        )
        for level, name in values.items()
    ]
    renamed = {names[level]: name for level, name in values.items() if names[level] != name}
    original = {"outputs": [encoded_port(item) for item in outputs], "renamed": renamed}
    return assumed.record(found, values, original, where=where)


def _with_outputs(
    model: onnx.ModelProto, outputs: Iterable[onnx.ValueInfoProto], now: Callable[[str], str]
) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    for item in outputs:
        made.graph.output.add(name=now(item.name), type=item.type)
    return made


def _rewritten(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    """Write a file anew; a hard link of external data saves a copy where the file system allows it."""

    def edited(model: onnx.ModelProto) -> bool:
        edit(model)
        return True

    try:
        rewrite_onnx_file(source, target, edited, link_weights=True, is_checked=False)
    except FileError:
        rewrite_onnx_file(source, target, edited, is_checked=False)
    return target


def _tap(model: onnx.ModelProto, taps: Mapping[str, PortInfo]) -> None:
    for name, port in taps.items():
        cast = onnx.helper.make_node("Cast", [port.name], [name], name=name, to=onnx.TensorProto.FLOAT)
        identity = onnx.helper.make_node("Identity", [port.name], [name], name=name)
        model.graph.node.append(identity if port.dtype == "float32" else cast)
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _original_outputs(record: TailRecord, *, where: Path) -> list[onnx.ValueInfoProto]:
    return decoded_outputs(record.original, where=str(where))


def _renamed(record: TailRecord | LayerRecord) -> Mapping[str, str]:
    renamed = record.original.get("renamed", {})
    return renamed if isinstance(renamed, dict) else {}


# --- An attached OpenVINO IR: the record in rt_info, the tail as a small model of its own, taps as results.

_PURPOSE = "checking an OpenVINO IR"
_FROZEN = "what adjusts the decision is a constant in this file, as conversions make of it"
_CONVERTED = "it was converted from ONNX after it was attached: the form of the tail is a folded one"


@dataclass(frozen=True, slots=True)
class OpenVinoAttached:
    """An attached IR; see `ModelFile`.

    Notes
    -----
    Cutting a model changes it, so every cut starts from the file again; reading maps the weights and is quick.
    """

    path: Path
    record: TailRecord
    raw: Mapping[Level, PortInfo]
    outputs: tuple[PortInfo, ...]
    tails: Mapping[Level, OwnLevelTail]
    remarks: tuple[str, ...]
    _model: Any
    format: Format = "openvino"

    @classmethod
    def load(cls, path: Path, assumed: Assumed) -> Self:
        """Read the file."""
        model = _read(path)
        record, is_converted = read_record(model, where=str(path))
        if is_converted or record is None:
            _refuse_layers(model, path)
        found = find_in_openvino_model(model, where=str(path))
        tails = own_tails(found.tails)
        remarks = folded(tails)
        if record is None:
            record = _assumed_openvino_record(found, assumed, where=path)
            remarks = [assumed.describe(record)]
        else:
            assumed.refuse_contradiction(record, where=path)
            recorded_names(record.original, where=str(path))
            if not is_converted:
                recorded_results(record.original, where=str(path))
        if is_converted:
            record, remarks = _native_record(model, record, tails, where=path), [_CONVERTED]
        decided = [tail for tail in tails.values() if tail.decides]
        is_frozen = all(tail.is_frozen or (is_converted and tail.adjusted is None) for tail in decided)
        if record.options.adjustable != "nothing" and is_frozen:
            record = replace(record, options=replace(record.options, adjustable="nothing", as_parameters=False))
            remarks.append(_FROZEN)
        return cls(
            path=path,
            record=record,
            raw={level: _raw_port(name, _source(model, name, where=path)) for level, name in record.raw.items()},
            outputs=tuple(port_info(port, f"output_{index}") for index, port in enumerate(model.outputs)),
            tails=tails,
            remarks=tuple(remarks),
            _model=model,
        )

    @property
    def inputs(self) -> tuple[PortInfo, ...]:
        """The inputs that this file declares."""
        return tuple(port_info(port, f"input_{index}") for index, port in enumerate(self._model.inputs))

    @property
    def misfits(self) -> tuple[str, ...]:
        """What the record says that does not fit the file."""
        return misfits_around(OpenVinoFormat(), self._model.clone(), where=str(self.path))

    @property
    def view(self) -> OpenVinoView:
        """The graph, for the matcher."""
        return OpenVinoView(self._model)

    @property
    def nan_test(self) -> Literal["sum", "l1", "arithmetic"]:
        """By the L1 norm, which is exact; in a file that was converted from ONNX by what the ONNX model had."""
        if "image" not in self.tails or self.tails["image"].guard is None:
            return "l1"
        kinds = {_node_type(value) for value in self.tails["image"].values}
        return "l1" if "ReduceL1" in kinds else "sum" if "IsNaN" in kinds else "arithmetic"

    @property
    def original_names(self) -> tuple[tuple[str, ...], ...]:
        """The tensor names of each output of the original."""
        return tuple(tuple(item.get("tensor_names", ())) for item in self.record.original.get("results", []))

    def original_output(self, level: Level) -> PortInfo:
        """Return a raw output under the names that it had in the original."""
        for index, item in enumerate(self.record.original.get("results", [])):
            if f"{item.get('source')}:{item.get('port')}" == self.record.raw[level]:
                names = tuple(item.get("tensor_names", ()))
                return PortInfo((names or (f"output_{index}",))[0], self.raw[level].dtype, None, aliases=names)
        raise MetadataError(f"{self.path}: the record does not say which result was the raw {level} output")

    def is_raw(self, level: Level, value: Value) -> bool:
        """Whether a value of the graph is the raw value of a level."""
        return level in self.raw and value == _source(self._model, self.record.raw[level], where=self.path)

    def is_rounded(self, value: Value) -> bool:
        """Whether an operator reads a constant that was compressed to fewer bits."""
        return self.view.is_rounded(value)

    def value_name(self, value: Value) -> str:
        """Return the operator's friendly name and the number of its output."""
        output: Any = value
        return f"{output.get_node().get_friendly_name()}:{output.get_index()}"

    def cut(self, names: tuple[str, ...], inputs: Sequence[PortInfo]) -> Any:
        """Return the operators between some values and the outputs as a model of its own."""
        openvino = import_openvino(purpose=_PURPOSE)
        model = _read(self.path)
        results = [result for result in model.get_results() if not _names(result).isdisjoint(names)]
        found = {name for result in results for name in _names(result)}
        results += [_inner_result(model, name, where=self.path) for name in names if name not in found]
        parameters = []
        for port in inputs:
            source = _source(model, port.name, where=self.path)
            shape = openvino.PartialShape([-1 if axis is None else axis for axis in port.shape or ()])
            parameter = openvino.opset13.parameter(shape, source.get_element_type())
            source.replace(parameter.output(0))
            parameter.output(0).set_names({port.name})
            parameters.append(parameter)
        reached = _above(results)  # a part of the tail need not read what adjusts the decision
        variables = {_variable(node) for node in reached.values()}
        sinks = [sink for sink in model.get_sinks() if _variable(sink) in INPUT_NAMES & variables]
        parameters += [
            item
            for item in model.get_parameters()
            if str(item.get_name()) in reached and not INPUT_NAMES.isdisjoint(item.output(0).get_names())
        ]
        try:
            alone = openvino.Model(results, sinks, parameters, "tail")
            alone.validate_nodes_and_infer_types()  # 2025 keeps the shapes that the whole model had
            return alone
        except RuntimeError as error:
            raise UnsupportedModelError(
                "the tail does not compute its outputs from the raw values alone",
                found=first_reason(error),
                needed=f"only {', '.join(sorted(port.name for port in inputs))} and constants",
            ) from error

    def tapped(self, folder: Path, taps: Mapping[str, PortInfo]) -> Any:
        """Return the whole model with some values as float32 results; nothing is written."""
        openvino = import_openvino(purpose=_PURPOSE)
        model = _read(self.path)
        for tap, port in taps.items():
            source = _source(model, port.name, where=self.path)
            if source.get_element_type() != openvino.Type.f32:
                source = openvino.opset13.convert(source, "f32").output(0)
            source.add_names({tap})
            model.add_results([openvino.opset13.result(source)])
        return model

    def host(self, folder: Path) -> Any:
        """Return the operators that the raw values need; nothing is written."""
        openvino = import_openvino(purpose=_PURPOSE)
        model = _read(self.path)
        results = [_inner_result(model, port.name, where=self.path) for port in self.raw.values()]
        sinks = [sink for sink in model.get_sinks() if _variable(sink) not in INPUT_NAMES]
        reached = _above([*results, *sinks])
        parameters = [item for item in model.get_parameters() if str(item.get_name()) in reached]
        return openvino.Model(results, sinks, parameters, "host")

    def layer(self, layer: Where) -> LayerRecord | None:
        """Return the record of what stands before the tail or behind it."""
        return read_openvino_layer(self._model, layer, where=str(self.path))

    def layer_inputs(self, record: LayerRecord) -> Mapping[str, PortInfo]:
        """Return what a layer reads."""
        return {key: _raw_port(name, _source(self._model, name, where=self.path)) for key, name in record.read.items()}

    def layer_values(self, record: LayerRecord) -> Mapping[str, str]:
        """Return what a layer makes."""
        return record.made

    @property
    def host_names(self) -> frozenset[str] | None:
        """The tensor names of the outputs of the model before its transform."""
        record = self.layer("transform")
        if record is None:
            return None
        return frozenset(
            name
            for index, item in enumerate(record.original.get("results", []))
            for name in (item.get("tensor_names") or (f"output_{index}",))
        )


def _refuse_layers(model: Any, path: Path) -> None:
    """Refuse a converted file with tails of one's own around the tail: their records are those of the ONNX file."""
    for layer in ("transform", "decision"):
        record = read_openvino_layer(model, layer, where=str(path))
        if record is not None and was_converted(model, layer):
            raise UnsupportedModelError(
                f"{path} was converted to OpenVINO with tails of one's own: they cannot be told from the rest",
                found=", ".join(spec.text for spec in record.tails),
                fix="check the ONNX file, or attach to the converted raw model",
            )


def _native_record(model: Any, record: TailRecord, tails: Mapping[Level, OwnLevelTail], *, where: Path) -> TailRecord:
    """Return the record of an ONNX file in the terms of the IR that was made of it."""
    renamed, tensors = record.original.get("renamed", {}), tensors_of(model)
    values: dict[Level, Any] = {**read_values(tails), **raw_values(model, record, is_converted=True)}
    for level in record.raw.keys() - values.keys():
        raise MetadataError(f"{where}: the record names a raw value '{record.raw[level]}' that the model does not have")
    results = [
        _described(item.name, tensors.get(renamed.get(item.name, item.name)), (item.name,))
        for item in decoded_outputs(record.original, where=str(where))
    ]
    raw = {level: value_name(values[level]) for level in record.raw}
    return replace(record, raw=raw, original={"results": results, "renamed": renamed})


def _assumed_openvino_record(found: FoundTails, assumed: Assumed, *, where: Path) -> TailRecord:
    """Return a record for a file that has none: its raw outputs are what the tails read."""
    tails = own_tails(found.tails)
    values: Mapping[Level, Any] = read_values(tails)
    results: list[dict[str, Any]] = []
    renamed: dict[str, str] = {}
    for level, value in values.items():
        now = {name: raw_name(tails[level], name) if level in tails else name for name in sorted(value.get_names())}
        results.append(_described(f"{level}/result", value, tuple(now.values())))
        renamed |= {then: name for name, then in now.items() if then != name}
    raw = {level: value_name(value) for level, value in values.items()}
    return assumed.record(found, raw, {"results": results, "renamed": renamed}, where=where)


def _described(name: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a result as a record has it."""
    source, _, port = ("", "", "0") if value is None else value_name(value).rpartition(":")
    return {"name": name, "source": source, "port": int(port), "tensor_names": list(names)}


def _node_type(value: Any) -> str:
    return str(value.get_node().get_type_name())


def _read(path: Path) -> Any:
    return read_ir(openvino_core(purpose=_PURPOSE), path)


def _source(model: Any, name: str, *, where: Path) -> Any:
    """Return the output of an operator that the record names as ``<friendly name>:<port>``."""
    friendly_name, _, port = name.rpartition(":")
    for node in model.get_ops():
        if node.get_friendly_name() == friendly_name and port.isdecimal() and int(port) < node.get_output_size():
            return node.output(int(port))
    raise MetadataError(f"{where}: the record names a raw value '{name}' that the model does not have")


def _inner_result(model: Any, name: str, *, where: Path) -> Any:
    try:
        source = _source(model, name, where=where)
    except MetadataError as error:
        found = ", ".join(sorted({each for result in model.get_results() for each in _names(result)}))
        raise UnsupportedModelError(
            f"{where} has no output '{name}'", found=found, needed="the tail's outputs"
        ) from error
    source.add_names({name})
    return import_openvino(purpose=_PURPOSE).opset13.result(source)


def _above(results: Sequence[Any]) -> dict[str, Any]:
    """Return every operator that results depend on, by its unique name."""
    pending, seen = list(results), dict[str, Any]()
    while pending:
        node = pending.pop()
        if str(node.get_name()) not in seen:
            seen[str(node.get_name())] = node
            pending += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return seen


def _variable(node: Any) -> str | None:
    """Return the state variable that an operator reads or sets; None for any other."""
    found = node.get_attributes().get("variable_id") if node.get_type_name() in ("ReadValue", "Assign") else None
    return None if found is None else str(found)


def _raw_port(name: str, source: Any) -> PortInfo:
    port = port_info(source, name)
    return PortInfo(name, port.dtype, port.shape)


def _names(result: Any) -> set[str]:
    return {*result.input_value(0).get_names(), *result.output(0).get_names()}
