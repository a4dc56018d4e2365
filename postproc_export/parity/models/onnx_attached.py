"""An attached ONNX file: the record in metadata_props, the tail as a small model of its own, taps as outputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

import onnx

from graph_patterns.graph import Value
from graph_patterns.onnx.container import load_skeleton
from graph_patterns.onnx.lowering import LOWERINGS
from graph_patterns.onnx.view import OnnxView, default_opset
from postproc_export.errors import FileError, MetadataError, UnsupportedModelError
from postproc_export.graphs.detached import Found, raw_name
from postproc_export.graphs.metadata import TailRecord
from postproc_export.graphs.onnx.find import find_in_onnx_model
from postproc_export.graphs.onnx.original import decoded_outputs, encoded_port, recorded_names
from postproc_export.graphs.onnx.ports import input_ports, output_ports
from postproc_export.graphs.reading.own_tail import OwnTail
from postproc_export.parity.models.assumed import Assumed
from postproc_export.parity.models.model_file import Format, folded, own_tails, read_values
from postproc_export.rewrite.onnx_file import rewrite_onnx_file
from postproc_export.runtimes.protocol import PortInfo
from postproc_export.stats import Level
from postproc_export.transforms.around import misfits_around
from postproc_export.transforms.formats import OnnxFormat
from postproc_export.transforms.onnx_layer import read_layer
from postproc_export.transforms.record import LayerRecord, Where, refuse_misfit

_ELEMENT_TYPES: Final = {
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "bool": onnx.TensorProto.BOOL,
    "uint8": onnx.TensorProto.UINT8,
}


@dataclass(frozen=True, slots=True)
class OnnxAttached:
    """An attached ONNX file; see `parity.attached_model.ModelFile`."""

    path: Path
    record: TailRecord
    raw: Mapping[Level, PortInfo]
    outputs: tuple[PortInfo, ...]
    tails: Mapping[Level, OwnTail]
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

    @property
    def view(self) -> OnnxView:
        """The graph, for the matcher."""
        return OnnxView(self._model)

    @property
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
                onnx.helper.make_tensor_value_info(port.name, _ELEMENT_TYPES[port.dtype], port.shape)
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
                kind = _ELEMENT_TYPES[port.dtype]
                model.graph.output.append(onnx.helper.make_tensor_value_info(port.name, kind, None))

        return _rewritten(self.path, folder / "host.onnx", cut_off)

    def layer(self, layer: Where) -> LayerRecord | None:
        """Return the record of what stands before the tail or behind it."""
        return read_layer(self._model, layer, where=str(self.path))

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
        if port.dtype not in _ELEMENT_TYPES:
            raise MetadataError(f"{where}: the record has a raw {level} output of {port.dtype}")
        yield level, port if view.has(name) or level not in read else replace(port, name=str(read[level]))


def _assumed_record(model: onnx.ModelProto, found: Found, assumed: Assumed, *, where: Path) -> TailRecord:
    """Return a record for a file that has none: its raw outputs are what the tails read."""
    tails = own_tails(found.tails)
    values = {level: str(value) for level, value in read_values(tails).items()}
    names = {level: raw_name(tails[level], name) if level in tails else name for level, name in values.items()}
    items = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(values.values())]
    known = {port.name: port for port in output_ports(_with_outputs(model, items, str))}
    outputs = [
        onnx.helper.make_tensor_value_info(
            names[level], _ELEMENT_TYPES.get(known[name].dtype, onnx.TensorProto.FLOAT), known[name].shape
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
