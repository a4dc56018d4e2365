"""Compare an attached ONNX model or IR with the raw one: every part but the tail, which is known by its prefix."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeAlias
from xml.etree import ElementTree

import numpy as np
import onnx
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from graph_patterns.onnx.file import OnnxFile, external_files, load_skeleton
from graph_patterns.onnx.wire import CHUNK, RAW_DATA
from postproc_export.check.preserved import Change, Comparison, ModelPart, Names, Parts, Preservation, shown
from postproc_export.errors import MetadataError, UnsupportedModelError, UsageError
from postproc_export.files import check_model, is_onnx
from postproc_export.formats.base import decoded_outputs
from postproc_export.formats.onnx import OnnxFormat
from postproc_export.formats.onnx_file import defined_names, value_names
from postproc_export.formats.openvino import OpenVinoFormat
from postproc_export.formats.openvino_file import described, flattened, read_ir, used_names, value_name
from postproc_export.record import KEYS, METADATA_KEY, LayerRecord, TailRecord
from postproc_export.runtimes.openvino import openvino_core
from postproc_export.tail import INPUT_NAMES, PREFIX


def compare_files(raw: str | Path, attached: str | Path) -> Preservation:
    """Return what differs between a raw model file and the attached one, of the same format, besides the tail.

    Weights are compared a piece at a time and are never loaded as a whole. Nodes, operators and constants of the tail
    are known by their names, which begin with ``postproc/``; what another tool renamed or merged counts as a change.
    A file that cannot be read, another format and an illegal record are errors.
    """
    before, after = Path(raw), Path(attached)
    check_model(before, noun="raw model")
    if is_onnx(before) != is_onnx(after):
        raise UsageError(
            f"{before} and {after} cannot be compared: they are of different formats",
            needed="the very file that was attached to",
        )
    if not is_onnx(before):
        core = openvino_core(purpose="comparing an OpenVINO IR")
        found = compare_models(read_ir(core, before), read_ir(core, after), where=str(after))
        return replace(found, changes=(*found.changes, *_mark_changes(before, after)))
    with load_skeleton(before) as original, load_skeleton(after) as file:
        same_payload = partial(_same_payload, original, file)
        found = _OnnxComparison(original.model, file.model, str(after), same_payload).compared()
        pairs = ((original.model, before), (file.model, after))
        external = _external_changes(*(external_files(model, path.parent) for model, path in pairs))
        return replace(found, changes=(*found.changes, *external))


def compare_models(raw: Any, attached: Any, *, where: str = "the attached model") -> Preservation:
    """Return what differs besides the tail between two models in memory; see `compare_files`."""
    if isinstance(raw, onnx.ModelProto):
        return _OnnxComparison(raw, attached, where, _equal_payloads).compared()
    return _OpenVinoComparison(raw, attached, where).compared()


# ONNX: every field of a message but the payload of tensors, which skeletons do not hold.
#
# Fields are taken from the messages' own descriptors, so that none is forgotten when ONNX gets a new one.

SamePayload: TypeAlias = Callable[[onnx.TensorProto, onnx.TensorProto], bool]

PAYLOADS: Final = frozenset(
    {"raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"}
)
# Where a string is the name of a value: {message: fields}; every other string is a text of the model's own.
_NAME_FIELDS: Final = {
    "NodeProto": {"input", "output"},
    "ValueInfoProto": {"name"},
    "TensorProto": {"name"},
    "TensorAnnotation": {"tensor_name"},
}
_ENTRY_NAMES: Final = {
    "quant_parameter_tensor_names": {"value"},
    "initialization_binding": {"key", "value"},
    "update_binding": {"key", "value"},
}
_TITLES: Final = {
    "metadata_props": "metadata entry",
    "opset_import": "opset import of",
    "functions": "function",
    "quantization_annotation": "quantization annotation of",
    "sparse_initializer": "sparse initializer",
    "external_data": "external data entry",
}


class _Message(ModelPart):
    """A message that stands in the field `place`, with the renamings that reach into it."""

    def __init__(self, message: Any, names: Names, same_payload: SamePayload, place: Any = None) -> None:
        self.message, self._names, self._same_payload = message, names, same_payload
        self._kind, self._place = message.DESCRIPTOR.name, "" if place is None else place.name
        self.key, self.title = self._identity(_is_repeated(place)) if place is not None else (None, "")

    def fields(self) -> Mapping[str, Any]:
        """Return every field; names as they are in the attached model."""
        found: dict[str, Any] = {}
        for field in self.message.DESCRIPTOR.fields:
            if self._kind == "TensorProto" and field.name in PAYLOADS:
                continue
            value = getattr(self.message, field.name)
            values = value if _is_repeated(field) else [value] if self.message.HasField(field.name) else []
            if field.message_type is not None:
                names = self._names_in(field.name)
                inner = (_Message(item, names, self._same_payload, field) for item in values)
                found[field.name] = Parts(inner, f"the order of '{field.name}'")
            else:
                found[field.name] = tuple(self._current(item) if self._is_name(field.name) else item for item in values)
        return found

    def equals(self, other: Any) -> bool:
        """Whether the messages are equal and mention no value that was renamed."""
        if self.message != other.message:
            return False
        text = self.message.SerializeToString() if self._names else b""
        return not any(name.encode() in text for name in self._names)

    def hidden_differences(self, other: Any) -> Iterator[str]:
        """Yield a tensor's values, and fields of a newer ONNX."""
        if self._kind == "TensorProto" and not self._same_payload(self.message, other.message):
            yield "values"
        unknown, known = (
            [(item.field_number, item.wire_type, repr(item.data)) for item in UnknownFieldSet(message)]
            for message in (self.message, other.message)
        )
        if unknown != known:
            yield "fields that this version of ONNX does not know"

    def _current(self, name: Any) -> Any:
        return self._names.get(name, name)

    def _is_name(self, field: str) -> bool:
        entry = self._kind == "StringStringEntryProto"
        return field in (_ENTRY_NAMES.get(self._place, ()) if entry else _NAME_FIELDS.get(self._kind, ()))

    def _names_in(self, field: str) -> Names:
        """Return the renamings that reach into a field: not into functions, nor into names that it defines anew."""
        if self._kind == "AttributeProto" and field not in ("g", "graphs"):
            return {}  # a tensor of an attribute has a name of its own, which is no value's
        if field in ("functions", "indices", "metadata_props"):
            return {}
        if self._kind == "TrainingInfoProto":
            own = set() if field == "initialization" else defined_names(self.message.algorithm)
            own |= defined_names(self.message.initialization) if field.startswith("initialization") else set()
            return {old: new for old, new in self._names.items() if old not in own}
        return self._names

    def _identity(self, is_repeated: bool) -> tuple[Hashable, str]:
        """Return the key, which for a node is what it computes, and None for the position alone; and the title."""
        item, noun = self.message, str(_TITLES.get(self._place, self._place))
        match self._kind:
            case "NodeProto":
                named = f"'{item.name}'" if item.name else f"that computes '{', '.join(item.output)}'"
                computes = tuple(self._names.get(name, name) for name in item.output)
                return computes or (item.name, item.op_type), f"{item.op_type} node {named}"
            case "OperatorSetIdProto":
                return str(item.domain), f"{noun} '{item.domain or 'ai.onnx'}'"
            case "TensorAnnotation":
                return self._current(item.tensor_name), f"{noun} '{item.tensor_name}'"
            case "StringStringEntryProto":
                return self._current(item.key) if self._is_name("key") else item.key, f"{noun} '{item.key}'"
            case "SparseTensorProto":
                return self._current(item.values.name) if is_repeated else None, f"{noun} '{item.values.name}'"
            case "FunctionProto":
                return (item.domain, item.name, item.overload), f"{noun} '{item.name}'" if item.name else noun
            case "ValueInfoProto" | "TensorProto" | "AttributeProto":
                return self._current(item.name) if is_repeated else None, f"{noun} '{item.name}'" if item.name else noun
        return None, noun


@cache
def _repeated(descriptor: Any) -> frozenset[str]:
    """Return the repeated fields of a message; what a descriptor itself says of that depends on protobuf's version."""
    proto = DescriptorProto()
    descriptor.CopyToProto(proto)
    return frozenset(field.name for field in proto.field if field.label == FieldDescriptorProto.LABEL_REPEATED)


def _is_repeated(field: Any) -> bool:
    return field.name in _repeated(field.containing_type)


class _OnnxComparison(Comparison):
    form, order = OnnxFormat(), "the order of outputs"

    def __init__(self, raw: onnx.ModelProto, attached: onnx.ModelProto, where: str, same_payload: SamePayload) -> None:
        self._same_payload = same_payload
        super().__init__(raw, _copy(attached), where)
        known = {node.name for node in raw.graph.node}
        graph = self.attached.graph
        tail = [node for node in graph.node if node.name.startswith(PREFIX) and node.name not in known]
        computed = {name for node in tail for name in node.output}
        self._tail, self._others = len(tail), [item for item in graph.output if item.name not in computed]
        self._body = self._without_tail()
        self.set_names(value_names(_copy(raw, without_outputs=True)), value_names(self._body))

    def _without_tail(self) -> onnx.ModelProto:
        body, before = _copy(self.attached, without_outputs=True), self.raw.graph
        known = {node.name for node in before.node}  # no node of the tail bears one of these names
        weights = {tensor.name for tensor in before.initializer}
        inputs = INPUT_NAMES if self.record is None else self.record.inputs
        _keep(body.graph.node, lambda node: not node.name.startswith(PREFIX) or node.name in known)
        _keep(
            body.graph.initializer,
            lambda item: item.name in weights or not (item.name.startswith(PREFIX) or item.name in inputs),
        )
        ports = inputs - {item.name for item in before.input}
        _keep(body.graph.input, lambda item: item.name not in ports)
        _keep(body.metadata_props, lambda item: item.key not in self.entries)
        if self.record is not None and "added_opset_import" in self.record.original:
            imported = ("", self.record.original["added_opset_import"])
            _keep(body.opset_import, lambda item: (item.domain, item.version) != imported)
        return body

    def hosts(self, layer: LayerRecord) -> Mapping[str, str | None]:
        replaced = layer.renamed
        return {name: replaced.get(name, name) for name in layer.made}

    def bodies(self) -> tuple[ModelPart, ModelPart]:
        raw = _Message(_copy(self.raw, without_outputs=True), self.names, self._same_payload)
        return raw, _Message(self._body, {}, self._same_payload)

    def outputs(self, names: Names) -> list[tuple[str, ModelPart]]:
        return [(names.get(item.name, item.name), self._output(item, names)) for item in self.raw.graph.output]

    def other_outputs(self) -> list[ModelPart]:
        return [self._output(item, {}) for item in self._others]

    def recorded_outputs(self, record: TailRecord) -> list[ModelPart]:
        return [self._output(item, {}) for item in decoded_outputs(record.original, where=self.where)]

    def _output(self, item: onnx.ValueInfoProto, names: Names) -> ModelPart:
        return _Message(item, names, self._same_payload, onnx.GraphProto.DESCRIPTOR.fields_by_name["output"])

    def counts(self) -> tuple[dict[str, int], int]:
        graph = self.raw.graph
        return {
            "node": len(graph.node),
            "initializer": len(graph.initializer) + len(graph.sparse_initializer),
            "function": len(self.raw.functions),
            "value_info": len(graph.value_info),
            "other metadata value": len(self.raw.metadata_props),
        }, self._tail


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    for index in reversed([index for index, item in enumerate(items) if not wanted(item)]):
        del items[index]


def _copy(model: onnx.ModelProto, *, without_outputs: bool = False) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    if without_outputs:
        del made.graph.output[:]
    return made


def _equal_payloads(raw: onnx.TensorProto, attached: onnx.TensorProto) -> bool:
    return all(getattr(raw, field) == getattr(attached, field) for field in PAYLOADS)


def _same_payload(original: OnnxFile, file: OnnxFile, before: onnx.TensorProto, after: onnx.TensorProto) -> bool:
    pairs = ((original, before), (file, after))
    digests = [hashlib.blake2b(), hashlib.blake2b()]
    for digest, (source, tensor) in zip(digests, pairs, strict=True):
        for piece in source.payload(tensor):
            digest.update(piece)
    if digests[0].digest() == digests[1].digest():
        return True
    if any(next(source.payload(tensor), b"")[:1] == bytes([RAW_DATA]) for source, tensor in pairs):
        return False
    # Numbers in typed fields have more than one encoding; only the parser tells whether they are the same.
    return _equal_payloads(original.full_tensor(before), file.full_tensor(after))


def _external_changes(raw: dict[Path, Path], attached: dict[Path, Path]) -> Iterator[Change]:
    """Yield the files whose contents differ; one that only one model refers to differs in the reference."""
    for location, before in raw.items():
        after = attached.get(location)
        if after is not None and not after.samefile(before):
            at = _first_difference(before, after)
            if at is not None:
                yield Change(f"external data in '{location}' from byte {at:,}", None, None)


def _first_difference(before: Path, after: Path) -> int | None:
    at = 0
    with before.open("rb") as left, after.open("rb") as right:
        while True:
            one, other = left.read(CHUNK), right.read(CHUNK)
            if one != other:
                length = min(len(one), len(other))
                return at + next((index for index in range(length) if one[index] != other[index]), length)
            if not one:
                return None
            at += len(one)


_BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("get_then_body", "get_else_body"),
    "Loop": ("get_function",),
    "TensorIterator": ("get_function",),
}
_PIECE: Final = 16 * 1024 * 1024


class _Operator(ModelPart):
    def __init__(self, node: Any, names: Names) -> None:
        super().__init__(node.get_friendly_name(), f"{node.get_type_name()} '{node.get_friendly_name()}'")
        self.node, self._names = node, names

    def fields(self) -> Mapping[str, Any]:
        """Return all but the values of constants, and marks, which have no form in Python: see `_mark_changes`."""
        node = self.node
        info, kind, getters = node.get_type_info(), node.get_type_name(), _BODIES.get(node.get_type_name(), ())
        found: dict[str, Any] = {
            "type": f"{info.name} of {info.version_id}",
            "attributes": {key: str(value) for key, value in node.get_attributes().items()},
        }
        found |= {f"operand {index}": value_name(node.input_value(index)) for index in range(node.get_input_size())}
        for output in node.outputs():
            at = output.get_index()
            found[f"names of output {at}"] = sorted(self._names.get(name, name) for name in output.get_names())
            found[f"element type of output {at}"] = output.get_element_type().get_type_name()
            found[f"shape of output {at}"] = str(output.get_partial_shape())
        wiring, bodies = [], []
        for index, getter in enumerate(getters):
            for method in (node.get_input_descriptions, node.get_output_descriptions):
                wiring += [_wire(item) for item in (method(index) if kind == "If" else method())]
            body = getattr(node, getter)()
            results = {"results": [node.get_friendly_name() for node in body.get_results()]}
            bodies.append(ModelPart(getter, getter.removeprefix("get_"), {**_scope(body, self._names), **results}))
        return {**found, "its wiring": wiring, "bodies": Parts(bodies)}

    def hidden_differences(self, other: Any) -> Iterator[str]:
        if self.node.get_type_name() == other.node.get_type_name() == "Constant":
            before, after = _bytes(self.node), _bytes(other.node)
            pieces = range(0, before.size, _PIECE)  # so that mapped weights are not loaded as a whole
            if before.size != after.size or not all(
                np.array_equal(before[at : at + _PIECE], after[at : at + _PIECE]) for at in pieces
            ):
                yield "values"


def _scope(model: Any, names: Names) -> dict[str, Any]:
    return {
        "operators": _operators(model, names),
        "the order of parameters": [node.get_friendly_name() for node in model.get_parameters()],
        "the order of sinks": [node.get_friendly_name() for node in model.get_sinks()],
    }


def _operators(model: Any, names: Names) -> Parts:
    return Parts(_Operator(node, names) for node in model.get_ordered_ops() if node.get_type_name() != "Result")


def _wire(item: Any) -> str:
    values = {name: getattr(item, name) for name in dir(item) if not name.startswith("_")}
    return f"{type(item).__name__} { ({name: value for name, value in values.items() if not callable(value)}) }"


def _bytes(constant: Any) -> NDArray[np.uint8]:
    values = constant.data
    if values.dtype.kind in "OSU":
        return np.frombuffer(repr(values.tolist()).encode(), np.uint8)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


class _OpenVinoComparison(Comparison):
    form, order = OpenVinoFormat(), "the order of results"

    def __init__(self, raw: Any, attached: Any, where: str) -> None:
        has_layers = any(attached.has_rt_info([key]) for key in KEYS.values())
        super().__init__(raw, attached.clone() if has_layers else attached, where)
        known = _operators(raw, {})
        self._operators = _operators(self.attached, {})
        self._tail = [key for key in self._operators if str(key[0]).startswith(PREFIX) and key not in known]
        for key in self._tail:
            del self._operators[key]
        nodes = [part.node for part in self._operators.values() if isinstance(part, _Operator)]
        tensors = {name for node in nodes for output in node.outputs() for name in output.get_names()}
        self.set_names(used_names(raw)[0], tensors)

    def hosts(self, layer: LayerRecord) -> Mapping[str, str | None]:
        values = {
            name: f"{item['source']}:{item['port']}"
            for item in layer.original["results"]
            for name in item.get("tensor_names", ())
        }
        return {made: values.get(name) for name, made in layer.made.items()}

    def bodies(self) -> tuple[ModelPart, ModelPart]:
        raw, attached = _scope(self.raw, self.names), {**_scope(self.attached, {}), "operators": self._operators}
        for kind in ("the order of parameters", "the order of sinks"):  # what adjusts the tail is known by its prefix
            attached[kind] = [name for name in attached[kind] if name in raw[kind] or not name.startswith(PREFIX)]
        for model, fields in ((self.raw, raw), (self.attached, attached)):
            fields["name of the model"] = model.get_friendly_name()  # a body's own is not kept
            entries = flattened(model.get_rt_info())
            entries.pop("__weights_path", None)  # what 2025 writes into a model as it reads one: where its .bin lies
            fields |= {f"rt_info '{key}'": text for key, text in entries.items()}
        for key in self.entries:
            attached.pop(f"rt_info '{key}'", None)
        return ModelPart(None, "", raw), ModelPart(None, "", attached)

    def outputs(self, names: Names) -> list[tuple[str, ModelPart]]:
        rows = [described(result) for result in self.raw.get_results()]
        return [(f"{row['source']}:{row['port']}", _result(row, names)) for row in rows]

    def other_outputs(self) -> list[ModelPart]:
        known = {result.get_friendly_name() for result in self.raw.get_results()}
        rows = [described(result) for result in self.attached.get_results()]
        return [_result(row, {}) for row in rows if row["name"] in known or not row["name"].startswith(PREFIX)]

    def recorded_outputs(self, record: TailRecord) -> list[ModelPart]:
        try:
            return [_result(row, {}) for row in record.original["results"]]
        except (KeyError, TypeError) as error:
            where = f"{self.where}: the record '{METADATA_KEY}' has no legal results"
            raise MetadataError(where, found=str(error)) from error

    def counts(self) -> tuple[dict[str, int], int]:
        kinds = [node.get_type_name() for node in self.raw.get_ordered_ops()]
        results = kinds.count("Result")
        return {
            "operator": len(kinds) - results - kinds.count("Constant"),
            "constant": kinds.count("Constant"),
            "result": results,
            "rt_info value": len(flattened(self.raw.get_rt_info())),
        }, len(self._tail)


def _result(row: Mapping[str, Any], names: Names) -> ModelPart:
    """Return a result as a record keeps it."""
    tensor_names = sorted(names.get(name, name) for name in row["tensor_names"])
    fields = {"its value": f"{row['source']}:{row['port']}", "tensor names": tensor_names}
    return ModelPart(str(row["name"]), f"result '{row['name']}'", fields)


def _mark_changes(raw: Path, attached: Path) -> Iterator[Change]:
    """Yield the operators of the raw IR whose marks, or those of their ports, are others; in bodies too.

    These marks (their rt_info) stand in full in the .xml alone. OpenVINO's reader takes some that are no XML; they are
    refused here.
    """
    before, after = _marks(raw), _marks(attached)
    for name, marks in before.items():
        if after.get(name, marks) != marks:
            yield Change(f"'{name}': rt_info", shown(", ".join(marks)), shown(", ".join(after[name])))


def _marks(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    try:
        for _, layer in ElementTree.iterparse(path):
            if layer.tag == "layer":
                found[layer.get("name", "")] += _marks_of(layer)
                layer.clear()
    except ElementTree.ParseError as error:
        raise UnsupportedModelError(f"cannot read {path}: not XML", found=str(error)) from error
    return found


def _marks_of(layer: ElementTree.Element) -> Iterator[str]:
    places = {"": layer.findall("rt_info")}
    for side in ("input", "output"):
        for index, port in enumerate(layer.findall(f"{side}/port")):
            places[f"{side} {index}: "] = port.findall("rt_info")
    for place, infos in places.items():
        for mark in (mark for info in infos for mark in info.iter() if mark is not info):
            yield place + " ".join((mark.tag, *(f"{key}={value}" for key, value in sorted(mark.attrib.items()))))
