"""Find the tensors in a serialised model, at any depth, and edit them with corrected lengths around them.

`Walk` descends along the fields that can lead to a TensorProto and along no others, so a graph of many small nodes
costs one step a node.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from graph_patterns.onnx.wire import DEEPEST, LENGTH, MalformedError, Source, records, varint

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
