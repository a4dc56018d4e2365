"""Two ONNX messages side by side: every field that differs, at any depth, names apart that were moved on purpose.

Fields are taken from the messages' own descriptors, so that none is forgotten when ONNX gets a new one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import onnx
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.unknown_fields import UnknownFieldSet

from postproc_export.graphs.onnx.names import defined_names
from postproc_export.preservation.alignment import aligned, keyed, moved
from postproc_export.preservation.change import Change, shown

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
