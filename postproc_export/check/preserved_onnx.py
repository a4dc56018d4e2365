"""Compare an attached ONNX model with the raw one: every field but the tail, weights not loaded."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.unknown_fields import UnknownFieldSet

from graph_patterns.onnx.file import OnnxFile, external_files, load_skeleton
from graph_patterns.onnx.wire import CHUNK, RAW_DATA
from postproc_export.check.preserved import (
    NO_RECORD,
    Change,
    Key,
    Preservation,
    aligned,
    assumed,
    keyed,
    merged_onnx,
    moved,
    remaining,
    shown,
)
from postproc_export.formats.base import decoded_outputs, read_record, recorded_names
from postproc_export.formats.onnx_file import defined_names, value_names
from postproc_export.record import METADATA_KEY, TailRecord
from postproc_export.tail import INPUT_NAMES, PREFIX

# --- Two ONNX messages side by side: every field that differs, at any depth, names apart that were moved on purpose.
#
# Fields are taken from the messages' own descriptors, so that none is forgotten when ONNX gets a new one.

Names: TypeAlias = Mapping[str, str]
SamePayload: TypeAlias = Callable[[onnx.TensorProto, onnx.TensorProto], bool]

PAYLOADS: Final = frozenset(
    {"raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"}
)
_NO_NAMES: Final[Names] = {}
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two models are compared.

    Parameters
    ----------
    same_payload
        Whether two tensors hold the same values, which skeletons do not tell by themselves.
    """

    same_payload: SamePayload

    def changes(self, raw: Any, attached: Any, names: Names, where: str = "", place: str = "") -> Iterator[Change]:
        """Yield what differs between two messages of one kind.

        Parameters
        ----------
        raw, attached
            The messages.
        names
            Values that were renamed, where the messages stand: {in the raw model: in the attached one}.
        where
            What the messages are, for the changes.
        place
            The field that they stand in.
        """
        if raw == attached and not _mentions(raw, names):
            return
        kind = raw.DESCRIPTOR.name
        for field in raw.DESCRIPTOR.fields:
            if kind == "TensorProto" and field.name in PAYLOADS:
                continue
            left, right = _values(raw, field), _values(attached, field)
            if field.message_type is not None:
                yield from self._messages(left, right, field, _names_in(kind, field.name, names, raw), where)
            else:
                mapping = names if _is_name(kind, field.name, place) else _NO_NAMES
                yield from _scalars([mapping.get(item, item) for item in left], right, _inside(where, field.name))
        if kind == "TensorProto" and not self.same_payload(raw, attached):
            yield Change(_inside(where, "values"), None, None)
        if _unknown(raw) != _unknown(attached):
            yield Change(_inside(where, "fields that this version of ONNX does not know"), None, None)

    def _messages(self, left: list[Any], right: list[Any], field: Any, names: Names, where: str) -> Iterator[Change]:
        def title(item: Any) -> str:
            return _inside(where, _title(item, field))

        raw = keyed(left, lambda item: _key(item, field, names))
        attached = keyed(right, lambda item: _key(item, field, _NO_NAMES))
        yield from moved(raw, attached, title, _inside(where, f"the order of '{field.name}'"))
        for before, after in aligned(raw, attached):
            yield from self.changes(before, after, names, title(before), field.name)


@cache
def _repeated(descriptor: Any) -> frozenset[str]:
    """Return the repeated fields of a message; what a descriptor itself says of that depends on protobuf's version."""
    proto = DescriptorProto()
    descriptor.CopyToProto(proto)
    return frozenset(field.name for field in proto.field if field.label == FieldDescriptorProto.LABEL_REPEATED)


def _is_repeated(field: Any) -> bool:
    return field.name in _repeated(field.containing_type)


def _values(message: Any, field: Any) -> list[Any]:
    if _is_repeated(field):
        return list(getattr(message, field.name))
    return [getattr(message, field.name)] if message.HasField(field.name) else []


def _scalars(left: list[Any], right: list[Any], where: str) -> Iterator[Change]:
    if repr(left) == repr(right):  # so that NaN is NaN, and -0.0 is not 0.0
        return
    single = len(left) <= 1 and len(right) <= 1
    before, after = (shown(items[0] if single and items else items) if items else None for items in (left, right))
    yield Change(where, before, after)


def _is_name(kind: str, field: str, place: str) -> bool:
    if kind == "StringStringEntryProto":
        return field in _ENTRY_NAMES.get(place, ())
    return field in _NAME_FIELDS.get(kind, ())


def _names_in(kind: str, field: str, names: Names, message: Any) -> Names:
    """Return the renamings that reach into a field: not into functions, nor into names that are defined anew there."""
    if kind == "AttributeProto" and field not in ("g", "graphs"):
        return _NO_NAMES  # a tensor of an attribute has a name of its own, which is no value's
    if field in ("functions", "indices", "metadata_props"):
        return _NO_NAMES
    if kind == "TrainingInfoProto":
        own = set() if field == "initialization" else defined_names(message.algorithm)
        own |= defined_names(message.initialization) if field.startswith("initialization") else set()
        return {old: new for old, new in names.items() if old not in own}
    return names


def _key(item: Any, field: Any, names: Names) -> Any:
    """Return what tells the items of a list apart: what a node computes, else a name; None for the position alone."""
    match item.DESCRIPTOR.name:
        case "NodeProto":
            return tuple(names.get(name, name) for name in item.output) or (item.name, item.op_type)
        case "SparseTensorProto" if _is_repeated(field):
            return names.get(item.values.name, item.values.name)
        case "TensorAnnotation":
            return names.get(item.tensor_name, item.tensor_name)
        case "FunctionProto":
            return (item.domain, item.name, item.overload)
        case "OperatorSetIdProto":
            return str(item.domain)
        case "StringStringEntryProto":
            is_name = _is_name("StringStringEntryProto", "key", field.name)
            return names.get(item.key, item.key) if is_name else item.key
        case "ValueInfoProto" | "TensorProto" | "AttributeProto" if _is_repeated(field):
            return names.get(item.name, item.name)
    return None


def _title(item: Any, field: Any) -> str:
    noun = _TITLES.get(field.name, field.name)
    match item.DESCRIPTOR.name:
        case "NodeProto":
            named = f"'{item.name}'" if item.name else f"that computes '{', '.join(item.output)}'"
            return f"{item.op_type} node {named}"
        case "OperatorSetIdProto":
            return f"{noun} '{item.domain or 'ai.onnx'}'"
        case "TensorAnnotation":
            return f"{noun} '{item.tensor_name}'"
        case "StringStringEntryProto":
            return f"{noun} '{item.key}'"
        case "SparseTensorProto":
            return f"{noun} '{item.values.name}'"
        case "ValueInfoProto" | "TensorProto" | "AttributeProto" | "FunctionProto" if item.name:
            return f"{noun} '{item.name}'"
    return str(noun)


def _inside(where: str, what: str) -> str:
    return f"{where}: {what}" if where else what


def _mentions(message: Any, names: Names) -> bool:
    if not names:
        return False
    text = message.SerializeToString()
    return any(name.encode() in text for name in names)


def _unknown(message: Any) -> list[tuple[int, int, str]]:
    return [(item.field_number, item.wire_type, repr(item.data)) for item in UnknownFieldSet(message)]


# --- Compare an attached ONNX model with the raw one: everything but the tail, which is taken out by its prefix.

_UNNAMED: Final[Names] = {}


def compare_onnx_models(
    raw: onnx.ModelProto,
    attached: onnx.ModelProto,
    *,
    same_payload: SamePayload | None = None,
    where: str = "the attached model",
) -> Preservation:
    """Return what differs besides the tail.

    Parameters
    ----------
    raw, attached
        The models, which stay as they are; skeletons where `same_payload` is given.
    same_payload
        Whether two tensors hold the same values; default: whether their fields are equal.
    where
        The attached model, for errors.

    Raises
    ------
    MetadataError
        If the record of the attached model is not legal.
    """
    return _OnnxPair(raw, merged_onnx(attached, where=where), same_payload or _equal_payloads, where).compared()


class _OnnxPair:
    def __init__(self, raw: onnx.ModelProto, attached: onnx.ModelProto, same_payload: SamePayload, where: str) -> None:
        self._record = read_record(attached, where=where)
        self._where = where
        self._outputs = list(raw.graph.output)
        self._raw, self._body = _without_outputs(raw), _without_outputs(attached)
        tail = _take_out_tail(self._body, raw, self._record)
        self._tail = len(tail)
        self._others = [item for item in attached.graph.output if not any(item.name in node.output for node in tail)]
        self._names = self._renamed()
        self._comparison = Comparison(same_payload)

    def compared(self) -> Preservation:
        changes = list(self._comparison.changes(self._raw, self._body, self._names))
        if self._record is not None:
            changes += self._output_changes(self._record)
            changes += self._record_changes(self._record)
        graph = self._raw.graph
        return Preservation(
            compared={
                "node": len(graph.node),
                "initializer": len(graph.initializer) + len(graph.sparse_initializer),
                "function": len(self._raw.functions),
                "value_info": len(graph.value_info),
                "other metadata value": len(self._raw.metadata_props),
            },
            tail=self._tail,
            changes=tuple(changes),
            not_judged=tuple(self._not_judged()),
        )

    def _renamed(self) -> Names:
        if self._record is not None:
            return {old: new for new, old in recorded_names(self._record.original, where=self._where).items()}
        return assumed(value_names(self._raw), value_names(self._body))

    def _output_changes(self, record: TailRecord) -> Iterator[Change]:
        """The outputs that are not the tail's: which, how they are declared, in which order."""
        named = [(self._names.get(item.name, item.name), item) for item in self._outputs]
        expected = keyed(remaining(record, named), lambda item: self._names.get(item.name, item.name))
        yield from self._listed_changes(expected, keyed(self._others, _name), self._names)

    def _record_changes(self, record: TailRecord) -> Iterator[Change]:
        """What detaching would give back as outputs."""
        recorded = keyed(decoded_outputs(record.original, where=self._where), _name)
        yield from (
            replace(change, where=f"in the record: {change.where}")
            for change in self._listed_changes(keyed(self._outputs, _name), recorded, _UNNAMED)
        )

    def _listed_changes(self, raw: dict[Key, Any], attached: dict[Key, Any], names: Names) -> Iterator[Change]:
        yield from moved(raw, attached, _output_title, "the order of outputs")
        for key, item in raw.items():
            if key in attached:
                yield from self._comparison.changes(item, attached[key], names, _output_title(item), "output")

    def _not_judged(self) -> Iterator[str]:
        if self._record is None:
            yield NO_RECORD
            for old, new in self._names.items():
                yield f"whether '{new}' is '{old}' of the raw model: taken from the names, no record says so"


def _take_out_tail(model: onnx.ModelProto, raw: onnx.ModelProto, record: TailRecord | None) -> list[onnx.NodeProto]:
    """Take out what attaching added, in place, and return the nodes of the tail."""
    known = {node.name for node in raw.graph.node}  # the tail's nodes bear no name of these
    weights = {tensor.name for tensor in raw.graph.initializer}
    nodes = [
        index for index, node in enumerate(model.graph.node) if node.name.startswith(PREFIX) and node.name not in known
    ]
    tail = [onnx.NodeProto.FromString(model.graph.node[index].SerializeToString()) for index in nodes]
    _delete(model.graph.node, nodes)
    _delete(
        model.graph.initializer,
        [
            index
            for index, tensor in enumerate(model.graph.initializer)
            if tensor.name.startswith(PREFIX) and tensor.name not in weights
        ],
    )
    for items, before in ((model.graph.initializer, raw.graph.initializer), (model.graph.input, raw.graph.input)):
        added = (INPUT_NAMES if record is None else record.inputs) - {item.name for item in before}
        _delete(items, [index for index, item in enumerate(items) if item.name in added])
    entries = [index for index, item in enumerate(model.metadata_props) if item.key == METADATA_KEY]
    _delete(model.metadata_props, entries)
    if record is not None and "added_opset_import" in record.original:
        imported = ("", record.original["added_opset_import"])
        imports = enumerate(model.opset_import)
        _delete(model.opset_import, [index for index, item in imports if (item.domain, item.version) == imported])
    return tail


def _delete(items: Any, indices: list[int]) -> None:
    for index in reversed(indices):
        del items[index]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def _without_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    made = _copy(model)
    del made.graph.output[:]
    return made


def _equal_payloads(raw: onnx.TensorProto, attached: onnx.TensorProto) -> bool:
    return all(getattr(raw, field) == getattr(attached, field) for field in PAYLOADS)


def _name(item: onnx.ValueInfoProto) -> str:
    return str(item.name)


def _output_title(item: onnx.ValueInfoProto) -> str:
    return f"output '{item.name}'"


# --- Compare an attached ONNX file with the raw one, without loading the weights of either.

_RAW_DATA: Final = bytes([RAW_DATA])


def compare_onnx_files(raw: Path, attached: Path) -> Preservation:
    """Return what differs besides the tail: in the graph, in the weights, and in external data.

    Raises
    ------
    MetadataError
        If the attached file has a record that is not legal.
    ModelFileError
        If one of the files or its external data cannot be read.
    """
    with load_skeleton(raw) as original, load_skeleton(attached) as file:

        def same_payload(before: onnx.TensorProto, after: onnx.TensorProto) -> bool:
            return _same_payload(original, before, file, after)

        found = compare_onnx_models(original.model, file.model, same_payload=same_payload, where=str(attached))
        external = tuple(
            _external_changes(external_files(original.model, raw.parent), external_files(file.model, attached.parent))
        )
    return replace(found, changes=(*found.changes, *external))


def _same_payload(original: OnnxFile, before: onnx.TensorProto, file: OnnxFile, after: onnx.TensorProto) -> bool:
    if _digest(original, before) == _digest(file, after):
        return True
    if any(next(of.payload(tensor), b"")[:1] == _RAW_DATA for of, tensor in ((original, before), (file, after))):
        return False
    # Numbers in typed fields have more than one encoding; only the parser tells whether they are the same.
    left, right = original.full_tensor(before), file.full_tensor(after)
    return all(getattr(left, field) == getattr(right, field) for field in PAYLOADS)


def _digest(file: OnnxFile, tensor: onnx.TensorProto) -> bytes:
    digest = hashlib.blake2b()
    for piece in file.payload(tensor):
        digest.update(piece)
    return digest.digest()


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
