"""The tensors of a serialised model: found at any depth, cut out, marked by placeholders, put back."""

import re
import secrets
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from graph_patterns.onnx.wire import (
    CHUNK,
    DEEPEST,
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    MalformedError,
    Source,
    positions,
    records,
    varint,
)

# --- Find the tensors in a serialised model, at any depth, and edit them with corrected lengths around them.
#
# `Walk` descends along the fields that can lead to a TensorProto and along no others, so a graph of many small nodes
# costs one step a node.

TENSOR: Final = "TensorProto"


class UnusualError(Exception):
    """A legal message that cannot be edited record by record: it has to be parsed as a whole."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Where the payload fields of one tensor stand in a file, tags and lengths included.

    Parameters
    ----------
    spans
        Start and end of each stretch, in order.
    """

    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, slots=True)
class Edit:
    """`insert` stands where the bytes from `start` to `end` stood."""

    start: int
    end: int
    insert: bytes | Payload

    @property
    def growth(self) -> int:
        """By how many bytes the edit lengthens its message."""
        return len(self.insert) - (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Field:
    """A message field that can lead to tensors; `merged` if protobuf would merge the tensors of two occurrences."""

    kind: str
    merged: bool


def _schema() -> Mapping[str, Mapping[int, Field]]:
    """Read from onnx's own descriptors which fields lead to tensors: {message: {tag: field}}."""
    file = FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(file)
    messages = {message.name: message.field for message in file.message_type}
    leading = {TENSOR}
    while grown := {name for name in messages if any(_kind(field) in leading for field in messages[name])} - leading:
        leading |= grown
    return {
        name: {
            field.number << 3 | LENGTH: Field(_kind(field), merged=_kind(field) in _MIXING and not _repeated(field))
            for field in messages[name]
            if _kind(field) in leading
        }
        for name in leading - {TENSOR}
    }


# Merging two graphs joins their lists; merging tensors, or what holds single ones, overwrites and mixes payloads.
_MIXING: Final = {TENSOR, "SparseTensorProto"}


def _kind(field: FieldDescriptorProto) -> str:
    return str(field.type_name).rpartition(".")[2]


def _repeated(field: FieldDescriptorProto) -> bool:
    return bool(field.label == FieldDescriptorProto.LABEL_REPEATED)


SCHEMA: Final = _schema()


@dataclass(frozen=True, slots=True)
class Walk:
    """Visit the tensors of a serialised model.

    Parameters
    ----------
    source
        Where the bytes are.
    visit
        Called with start and end of each tensor's body; returns edits inside it, in order.
    skip
        Do not descend into messages of up to this many bytes.
    marks
        Descend only into messages that hold one of these sorted positions; None for all.
    """

    source: Source
    visit: Callable[[int, int], Sequence[Edit]]
    skip: int = -1
    marks: Sequence[int] | None = None

    def edits(self, end: int) -> list[Edit]:
        """Return the edits of all tensors and of the lengths around them, in order."""
        found: list[Edit] = []
        self._message("ModelProto", 0, end, found, DEEPEST)
        return sorted(found, key=lambda edit: edit.start)

    def _message(self, kind: str, start: int, end: int, found: list[Edit], levels: int) -> int:
        if levels == 0:
            raise MalformedError(f"messages nested more than {DEEPEST} deep, at byte {start}")
        if kind == TENSOR:
            edits = self.visit(start, end)
            found += edits
            return sum(edit.growth for edit in edits)
        growth = 0
        fields = SCHEMA[kind]
        seen = set()
        merging = any(field.merged for field in fields.values())
        for tag, begin, body, stop in records(self.source, start, end, skip=-1 if merging else self.skip):
            field = fields.get(tag)
            if field is None:
                continue
            if field.merged and tag in seen:
                raise UnusualError("a tensor in several parts")
            seen.add(tag)
            if stop - body > self.skip and self._marked(body, stop):
                growth += self._nested(field.kind, (tag, begin, body, stop), found, levels)
        return growth

    def _marked(self, start: int, end: int) -> bool:
        if self.marks is None:
            return True
        at = bisect_left(self.marks, start)
        return at < len(self.marks) and self.marks[at] < end

    def _nested(self, kind: str, record: tuple[int, int, int, int], found: list[Edit], levels: int) -> int:
        tag, begin, body, stop = record
        growth = self._message(kind, body, stop, found, levels - 1)
        if growth == 0:
            return 0
        header = Edit(begin, body, varint(tag) + varint(stop - body + growth))
        found.append(header)
        return growth + header.growth


# --- Tensor payloads: cut out of a serialised model, marked by placeholders, and put back into another.

SMALL: Final = 4096  # bytes; a payload or a message up to this size stays where it is
RAW_DATA: Final = 9 << 3 | LENGTH
_PACKED_FLOATS, _PACKED_DOUBLES = 4 << 3 | LENGTH, 10 << 3 | LENGTH
_PACKED_WIDTHS: Final = {_PACKED_FLOATS: 4, _PACKED_DOUBLES: 8}
_PACKED_NUMBERS: Final = {number << 3 | LENGTH for number in (5, 7, 11)}  # int32_data, int64_data, uint64_data
_ONE_BY_ONE: Final = {4 << 3 | FIXED32, 10 << 3 | FIXED64, *(number << 3 | VARINT for number in (5, 7, 11))}
_STRING_DATA: Final = 6 << 3 | LENGTH
_TAGS: Final = {RAW_DATA, _STRING_DATA, *_PACKED_WIDTHS, *_PACKED_NUMBERS, *_ONE_BY_ONE}
_OUTSIDE: Final = onnx.TensorProto(
    data_location=onnx.TensorProto.EXTERNAL,
    external_data=[onnx.StringStringEntryProto(key="location", value="weights")],
).SerializeToString()
_TOO_LONG: Final = re.compile(rb"[\x80-\xff]{10}")


class Placeholders:
    """The payloads taken out of one model and the marks that stand for them.

    A mark is 16 random bytes, drawn anew for each model, and the payload's number.

    Parameters
    ----------
    source
        The serialised model.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._magic = secrets.token_bytes(16)
        self.payloads: list[Payload] = []

    def cuts(self, end: int) -> list[Edit]:
        """Return the edits that turn the serialised model into its skeleton."""
        return Walk(self._source, self._cut, skip=SMALL).edits(end)

    def _cut(self, start: int, end: int) -> Sequence[Edit]:
        spans: list[tuple[int, int]] = []
        payload_size = 0
        for tag, begin, body, stop in records(self._source, start, end):
            if tag in _TAGS:
                self._check(tag, body, stop)
                payload_size += stop - body
                if spans and spans[-1][1] == begin:
                    spans[-1] = (spans[-1][0], stop)
                else:
                    spans.append((begin, stop))
        if payload_size <= SMALL:
            return ()
        mark = self._magic + len(self.payloads).to_bytes(4, "little")
        self.payloads.append(Payload(tuple(spans)))
        return [
            Edit(*spans[0], varint(RAW_DATA) + varint(len(mark)) + mark),
            *(Edit(begin, stop, b"") for begin, stop in spans[1:]),
        ]

    def _check(self, tag: int, start: int, end: int) -> None:
        """Refuse what protobuf would refuse in a payload that it will not get to see."""
        if (end - start) % _PACKED_WIDTHS.get(tag, 1):
            raise MalformedError(f"packed numbers that end in the middle of one, at byte {start}")
        if tag not in _PACKED_NUMBERS:
            return
        tail = b""
        for at in range(start, end, CHUNK):
            chunk = tail + self._source.read(at, min(CHUNK, end - at))
            if _TOO_LONG.search(chunk):
                raise MalformedError(f"packed numbers of more than 10 bytes, after byte {at}")
            tail = chunk[-10:]
        if tail and tail[-1] > 0x7F:
            raise MalformedError(f"packed numbers that end in the middle of one, at byte {start}")

    def survive(self, model: onnx.ModelProto) -> bool:
        """Whether the parsed skeleton holds each placeholder exactly once."""
        if not self.payloads:
            return True
        serialised = model.SerializeToString()
        found = [serialised[at + 16 : at + 20] for at in positions(serialised, self._magic)]
        return sorted(found) == sorted(index.to_bytes(4, "little") for index in range(len(self.payloads)))

    def restorations(self, skeleton: Source, serialised: bytes) -> list[Edit]:
        """Return the edits that put the payloads back into a serialised, edited skeleton."""
        edits = self._replaced(skeleton, serialised, lambda payload: payload)
        restored = sum(isinstance(edit.insert, Payload) for edit in edits)
        assert restored == self._count(serialised), "a placeholder was moved to a place that is not a tensor's raw_data"
        return edits

    def references(self, skeleton: Source, serialised: bytes) -> list[Edit]:
        """Return the edits that put references to external data there instead, which nobody has to have at hand."""
        return self._replaced(skeleton, serialised, lambda _: _OUTSIDE)

    def _count(self, serialised: bytes) -> int:
        return len(positions(serialised, self._magic)) if self.payloads else 0

    def _replaced(
        self, skeleton: Source, serialised: bytes, insert: Callable[[Payload], bytes | Payload]
    ) -> list[Edit]:
        if not self.payloads:
            return []

        def replace(start: int, end: int) -> Sequence[Edit]:
            return [
                Edit(begin, stop, insert(payload))
                for tag, begin, body, stop in records(skeleton, start, end)
                if tag == RAW_DATA and (payload := self.find(serialised[body:stop])) is not None
            ]

        return Walk(skeleton, replace, marks=positions(serialised, self._magic)).edits(len(serialised))

    def find(self, raw_data: bytes) -> Payload | None:
        """Return the payload that a tensor's `raw_data` stands for; None if that is the tensor's own."""
        if len(raw_data) != 20 or raw_data[:16] != self._magic:
            return None
        return self.payloads[int.from_bytes(raw_data[16:], "little")]
