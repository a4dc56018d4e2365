"""The protobuf wire format of ONNX: records, the fields that lead to tensors, and edits with corrected lengths.

A record is a tag, for most types a length, and a body. `walk` descends along the fields that can lead to a TensorProto
and to nothing else, so a graph of many small nodes costs one step a node. It reads through small windows and believes
no length before it was held against the end of the enclosing message.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import onnx
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

VARINT, FIXED64, LENGTH, GROUP, FIXED32 = 0, 1, 2, 3, 5  # wire types
WINDOW: Final = 32 * 1024
LONGEST_HEADER: Final = 20  # a tag and a length or a number, ten bytes each at most
DEEPEST: Final = 100  # protobuf's own limit on nested messages
TENSOR: Final = "TensorProto"


class MalformedError(Exception):
    """Bytes that are no protobuf message."""


class UnusualError(Exception):
    """A legal message that cannot be edited record by record: it has to be parsed as a whole."""


class Source(Protocol):
    """Bytes at positions: a file, or a message in memory."""

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Where the payload fields of one tensor stand in a file, tags and lengths included.

    Parameters
    ----------
    spans
        Start and end of each stretch, in order.
    size
        Their length in bytes.
    """

    spans: tuple[tuple[int, int], ...]
    size: int

    def __len__(self) -> int:
        return self.size


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


def _varint(window: bytes, offset: int, longest: int) -> tuple[int, int]:
    value = 0
    for index in range(longest):
        byte = window[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, offset + index + 1
    raise MalformedError(f"a number of more than {longest} bytes")


def varint(value: int) -> bytes:
    """Return the shortest encoding of a number that is not negative."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def records(
    source: Source, start: int, end: int, *, skip: int = -1, group: int | None = None, levels: int = DEEPEST
) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, start, start of the body and end of each record between two positions.

    Parameters
    ----------
    source
        Where the bytes are.
    start, end
        The body of a message.
    skip
        Bodies with a length of up to this many bytes are not worth yielding.
    group
        The tag that ends the group which begins at `start`; it is yielded last.
    levels
        How many groups may still be nested.

    Raises
    ------
    MalformedError
        If the bytes are no sequence of records that ends exactly at `end`.
    """
    base, window = start, b""
    position = start
    try:
        while position < end:
            offset = position - base
            if offset + LONGEST_HEADER > len(window):
                base, window, offset = position, source.read(position, min(WINDOW, end - position)), 0
            tag = window[offset]
            offset += 1
            if tag > 0x7F:
                tag, offset = _varint(window, offset - 1, 5)
            if tag & 7 == LENGTH:  # nearly all records; the rest stands in _extent, out of the way
                stop = window[offset]
                offset += 1
                if stop > 0x7F:
                    stop, offset = _varint(window, offset - 1, 5)
                if stop <= skip and offset + stop <= end - base and tag > 7:
                    position = base + offset + stop
                    continue
                stop += offset
            elif tag & 7 == GROUP and levels:
                *_, last = records(source, base + offset, end, group=tag + 1, levels=levels - 1)
                stop = last[3] - base
            else:
                stop = offset if tag == group else _stop(tag, window, offset)
            if base + stop > end or tag < 8:
                raise MalformedError(f"a record that is none, or leads past the end of its message, at byte {position}")
            yield tag, position, base + offset, base + stop
            position = base + stop
            if tag == group:
                return
    except IndexError:
        raise MalformedError(f"a record that is cut off, at byte {position}") from None
    if group is not None:
        raise MalformedError(f"a group without an end, at byte {start}")


def _stop(tag: int, window: bytes, offset: int) -> int:
    """Return where the body of a number ends."""
    match tag & 7:
        case 0:
            return _varint(window, offset, 10)[1]
        case 1:
            return offset + 8
        case 5:
            return offset + 4
    raise MalformedError(f"the tag {tag}, which is not legal there")


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
    wanted
        Says by start and end of a body whether a message is worth descending into.
    visit
        Called with start and end of each tensor's body; returns edits inside it, in order.
    """

    source: Source
    wanted: Callable[[int, int], bool]
    visit: Callable[[int, int], Sequence[Edit]]

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
        merged = set()
        for tag, begin, body, stop in records(self.source, start, end):
            field = fields.get(tag)
            if field is None:
                continue
            if field.merged and tag in merged:
                raise UnusualError("a tensor in several parts")
            merged.add(tag)
            if self.wanted(body, stop):
                growth += self._nested(field.kind, (tag, begin, body, stop), found, levels)
        return growth

    def _nested(self, kind: str, record: tuple[int, int, int, int], found: list[Edit], levels: int) -> int:
        tag, begin, body, stop = record
        growth = self._message(kind, body, stop, found, levels - 1)
        if growth == 0:
            return 0
        header = Edit(begin, body, varint(tag) + varint(stop - body + growth))
        found.append(header)
        return growth + header.growth


def positions(haystack: bytes, needle: bytes) -> list[int]:
    """Return where a byte string occurs in another, in order."""
    found = []
    at = haystack.find(needle)
    while at >= 0:
        found.append(at)
        at = haystack.find(needle, at + 1)
    return found


def holds(marks: Sequence[int]) -> Callable[[int, int], bool]:
    """Return a test for whether a stretch holds at least one of the sorted positions."""

    def wanted(start: int, end: int) -> bool:
        at = bisect_left(marks, start)
        return at < len(marks) and marks[at] < end

    return wanted
