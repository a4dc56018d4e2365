"""The bytes of an ONNX file, read through small windows: the records of protobuf, and the tensors among them."""

import os
import re
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias

if TYPE_CHECKING:
    import onnx


CHUNK: Final = 1024 * 1024
BUFFER: Final = 512 * 1024  # of a copy: the fewest calls that stay in the processor's cache


class ChangedFileError(Exception):
    """The file is no longer what it was when it was opened."""


class MemorySource:
    """A message in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on."""
        return self._content[start : start + length]

    def copy(self, start: int, length: int, target: BinaryIO) -> None:
        """Write a stretch to an unbuffered file."""
        write_all(target, memoryview(self._content)[start : start + length])

    def check_unchanged(self) -> None:
        """Do nothing: memory does not change."""

    def close(self) -> None:
        """Do nothing: memory needs no closing."""


class FileSource:
    """An unbuffered binary file, which `close` closes.

    It is never mapped, so that one that shrinks meanwhile is an error and not a crash.
    """

    def __init__(self, stream: FileIO) -> None:
        self._stream = stream
        self._status = os.fstat(stream.fileno())
        self.size = self._status.st_size

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on."""
        self._stream.seek(start)
        parts = []
        while length:
            part = self._stream.read(length)
            if not part:
                raise ChangedFileError
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def copy(self, start: int, length: int, target: BinaryIO) -> None:
        """Write a stretch to an unbuffered file, inside the kernel where that is possible and quick.

        The kernel takes pages of many sizes, and 1.6 times as long where those of source and target do not coincide.
        """
        at, done = target.tell(), 0
        if (at - start) % BUFFER == 0:
            done = copy_in_kernel(self._stream.fileno(), target.fileno(), start, length)
        self._stream.seek(start + done)
        buffer = memoryview(bytearray(min(BUFFER, length - done)))
        while done < length:
            whole_pages = BUFFER - (at + done) % BUFFER
            size = self._stream.readinto(buffer[: min(whole_pages, length - done)])
            if not size:
                raise ChangedFileError
            write_all(target, buffer[:size])
            done += size

    def check_unchanged(self) -> None:
        """Raise ChangedFileError if the file was written since it was opened."""
        now = os.fstat(self._stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise ChangedFileError

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


Source: TypeAlias = MemorySource | FileSource


def special_kind(path: Path) -> str | None:
    """Return what a path is in place of a regular file, such as a pipe, whose opening waits for a writer.

    Raises OSError if it is not there, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")


_SIGNATURES: Final = {
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint",
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"\x80": "a pickle, such as an old PyTorch checkpoint",
    b"\x89HDF": "HDF5, such as a Keras model",
    b"<": "XML, such as an OpenVINO IR",
    b"{": "JSON",
}


def kind_of(start: bytes) -> str | None:
    """Return what a file is by its first bytes, some dozens of them; None where they do not tell."""
    if not start:
        return "an empty file"
    if start.startswith(b"PK\x03\x04"):
        first = start[30 : 30 + int.from_bytes(start[26:28], "little")]  # the name of its first file
        for end, kind in ((b".npy", "arrays of NumPy (.npz)"), (b"/data.pkl", "a PyTorch checkpoint")):
            if first.endswith(end):
                return kind
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    is_text = start.decode("ascii", "replace").translate(_BLANKS).isprintable()
    return f"text that begins with {start[:20].decode()!r}" if is_text else None


_BLANKS: Final = {ord(blank): " " for blank in "\t\n\r"} | {0xFFFD: "\0"}


def write_all(target: BinaryIO, content: bytes | memoryview) -> None:
    """Write every byte to an unbuffered file, which may take fewer at a time."""
    content = memoryview(content)
    while content:
        content = content[target.write(content) :]


def copy_in_kernel(source: int, target: int, start: int, length: int) -> int:
    """Copy a stretch of bytes between file descriptors with `copy_file_range`, to the target's position.

    Returns how far it went; what is left has to be read.
    """
    copy_range = getattr(os, "copy_file_range", None)
    done = 0
    while copy_range is not None and done < length:
        try:
            copied = copy_range(source, target, length - done, start + done)
        except OSError:
            break  # another file system, or one that cannot: a full disk shows again when writing
        if copied == 0:
            break
        done += copied
    return done


# The protobuf wire format: the records of a message, read through small windows.
#
# A record is a tag, for most types a length, and a body. No length is believed before it was held against the end of
# the message around it.

VARINT, FIXED64, LENGTH, GROUP, FIXED32 = 0, 1, 2, 3, 5  # wire types
_WIDTHS: Final = {FIXED64: 8, FIXED32: 4}
WINDOW: Final = 32 * 1024
LONGEST_HEADER: Final = 20  # a tag and a length or a number, ten bytes each at most
DEEPEST: Final = 100  # protobuf's own limit on nested messages


class MalformedError(Exception):
    """Bytes that are no protobuf message."""


class CutOffError(MalformedError):
    """Bytes that end within a protobuf message."""


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


def records(source: Source, start: int, end: int, *, skip: int = -1) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, start, start of the body and end of each record between two positions: the body of a message.

    Records with a length of up to `skip` bytes are checked, but not yielded, and so is what groups hold, which are
    unknown fields to ONNX. Raises MalformedError if the bytes are no sequence of records that ends exactly at `end`,
    and CutOffError if it is the last one of a whole message, from 0 on, that would end behind it.
    """
    base, window = start, b""
    position = start
    groups: list[int] = []  # the tags that will end them
    try:
        while position < end:
            offset = position - base
            if offset + LONGEST_HEADER > len(window):
                base, window, offset = position, source.read(position, min(WINDOW, end - position)), 0
            tag = window[offset]
            offset += 1
            if tag > 0x7F:
                tag, offset = _varint(window, offset - 1, 5)
            wire_type = tag & 7
            if wire_type == LENGTH:
                length = window[offset]
                offset += 1
                if length > 0x7F:
                    length, offset = _varint(window, offset - 1, 5)
            elif wire_type == VARINT:
                length = 1 if window[offset] < 0x80 else _varint(window, offset, 10)[1] - offset
            elif wire_type in _WIDTHS:
                length = _WIDTHS[wire_type]
            else:
                length = _open_or_close(tag, groups)
            body = base + offset
            if body + length > end or tag < 8:
                found = f"a record that is none, or leads past the end of its message, at byte {position}"
                raise MalformedError(found) if start or tag < 8 else CutOffError(found)
            if length > skip and not groups:
                yield tag, position, body, body + length
            position = body + length
    except IndexError:
        found = f"a record that is cut off, at byte {position}"
        raise (MalformedError(found) if start else CutOffError(found)) from None
    if groups:
        raise MalformedError(f"a group without an end, in the message at byte {start}")


def _open_or_close(tag: int, groups: list[int]) -> int:
    if tag & 7 == GROUP and len(groups) < DEEPEST:
        groups.append(tag + 1)
    elif groups and tag == groups[-1]:
        groups.pop()
    else:
        raise MalformedError(f"the tag {tag}, which is not legal there")
    return 0


def positions(haystack: bytes, needle: bytes) -> list[int]:
    """Return where a byte string occurs in another, in order."""
    found = []
    at = haystack.find(needle)
    while at >= 0:
        found.append(at)
        at = haystack.find(needle, at + 1)
    return found


# The tensors of a serialised model: found at any depth, cut out, marked by placeholders, put back.
#
# The search descends along the fields that can lead to a TensorProto and along no others, so a graph of many small
# nodes costs one step a node.

SMALL: Final = 4096  # bytes; a payload or a message up to this size stays where it is
RAW_DATA: Final = 9 << 3 | LENGTH
_TENSOR: Final = "TensorProto"
# Merging two graphs joins their lists; merging tensors, or what holds single ones, overwrites and mixes payloads.
_MIXING: Final = {_TENSOR, "SparseTensorProto"}
_PACKED_FLOATS, _PACKED_DOUBLES = 4 << 3 | LENGTH, 10 << 3 | LENGTH
_PACKED_WIDTHS: Final = {_PACKED_FLOATS: 4, _PACKED_DOUBLES: 8}
_PACKED_NUMBERS: Final = {number << 3 | LENGTH for number in (5, 7, 11)}  # int32_data, int64_data, uint64_data
_ONE_BY_ONE: Final = {4 << 3 | FIXED32, 10 << 3 | FIXED64, *(number << 3 | VARINT for number in (5, 7, 11))}
_STRING_DATA: Final = 6 << 3 | LENGTH
_TAGS: Final = {RAW_DATA, _STRING_DATA, *_PACKED_WIDTHS, *_PACKED_NUMBERS, *_ONE_BY_ONE}
_TOO_LONG: Final = re.compile(rb"[\x80-\xff]{10}")

Payload: TypeAlias = tuple[tuple[int, int], ...]
"""Start and end of each stretch of a file that holds payload fields of one tensor, tags and lengths included."""
Edit: TypeAlias = tuple[int, int, bytes | Payload]
"""Start and end of some bytes, and what stands there instead."""


class UnusualError(Exception):
    """A legal message that cannot be edited record by record: it has to be parsed as a whole."""


def length_of(content: bytes | Payload) -> int:
    """Return how many bytes an insertion has."""
    return len(content) if isinstance(content, bytes) else sum(end - start for start, end in content)


def growth_of(edit: Edit) -> int:
    """Return by how many bytes an edit lengthens its message."""
    start, end, insert = edit
    return length_of(insert) - (end - start)


@cache
def _schema() -> tuple[Mapping[str, Mapping[int, str]], Mapping[str, frozenset[int]]]:
    """Read from onnx's own descriptors which fields lead to tensors: {message: {tag: kind of message}}.

    And of these the ones of which protobuf would merge the tensors of two occurrences: {message: tags}.
    """
    import onnx

    messages = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    fields = {
        name: [(field, field.message_type.name) for field in message.fields if field.message_type is not None]
        for name, message in messages.items()
    }
    leading = {_TENSOR}
    while grown := {name for name in fields if any(kind in leading for _, kind in fields[name])} - leading:
        leading |= grown
    kinds: dict[str, dict[int, str]] = {}
    merged: dict[str, frozenset[int]] = {}
    for name in leading - {_TENSOR}:
        found = [(field, kind, field.number << 3 | LENGTH) for field, kind in fields[name] if kind in leading]
        kinds[name] = {tag: kind for _, kind, tag in found}
        merged[name] = frozenset(tag for field, kind, tag in found if kind in _MIXING and field.has_presence)
    return kinds, merged


class Walk:
    """A visit to the tensors of a serialised model.

    `visit` is called with start and end of each tensor's body and returns edits inside it, in order. Messages of up to
    `skip` bytes are passed over, and of `marks`, sorted positions, each message has to hold one; None for all.
    """

    def __init__(
        self,
        source: Source,
        visit: Callable[[int, int], Sequence[Edit]],
        *,
        skip: int = -1,
        marks: Sequence[int] | None = None,
    ) -> None:
        self._source, self._visit, self._skip, self._marks = source, visit, skip, marks
        self._kinds, self._merged = _schema()
        self._found: list[Edit] = []

    def edits(self, end: int) -> list[Edit]:
        """Return the edits of all tensors and of the lengths around them, in order."""
        self._message("ModelProto", 0, end, DEEPEST)
        return sorted(self._found, key=lambda edit: edit[0])

    def _message(self, kind: str, start: int, end: int, levels: int) -> int:
        """Collect the edits inside a message and return its growth."""
        if levels == 0:
            raise MalformedError(f"messages nested more than {DEEPEST} deep, at byte {start}")
        if kind == _TENSOR:
            edits = self._visit(start, end)
            self._found += edits
            return sum(map(growth_of, edits))
        growth = 0
        kinds, merged = self._kinds[kind], self._merged[kind]
        seen = set()
        for tag, begin, body, stop in records(self._source, start, end, skip=-1 if merged else self._skip):
            if tag not in kinds:
                continue
            if tag in merged and tag in seen:
                raise UnusualError("a tensor in several parts")
            seen.add(tag)
            if stop - body <= self._skip:
                continue
            if self._marks is not None:
                at = bisect_left(self._marks, body)
                if at == len(self._marks) or self._marks[at] >= stop:
                    continue
            inner = self._message(kinds[tag], body, stop, levels - 1)
            if inner:
                header = (begin, body, varint(tag) + varint(stop - body + inner))
                self._found.append(header)
                growth += inner + growth_of(header)
        return growth


class Placeholders:
    """The payloads taken out of one serialised model and the marks that stand for them.

    A mark is 16 random bytes, drawn anew for each model, and the payload's number.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._magic = os.urandom(16)
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
        self.payloads.append(tuple(spans))
        return [
            (*spans[0], varint(RAW_DATA) + varint(len(mark)) + mark),
            *((begin, stop, b"") for begin, stop in spans[1:]),
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

    def survive(self, model: "onnx.ModelProto") -> bool:
        """Whether the parsed skeleton holds each placeholder exactly once."""
        if not self.payloads:
            return True
        serialised = model.SerializeToString()
        found = [serialised[at + 16 : at + 20] for at in positions(serialised, self._magic)]
        return sorted(found) == sorted(index.to_bytes(4, "little") for index in range(len(self.payloads)))

    def restorations(self, skeleton: Source, serialised: bytes) -> list[Edit]:
        """Return the edits that put the payloads back into a serialised, edited skeleton."""
        edits = self._replaced(skeleton, serialised, lambda payload: payload)
        restored = sum(isinstance(insert, tuple) for _, _, insert in edits)
        marked = len(positions(serialised, self._magic)) if self.payloads else 0
        assert restored == marked, "a placeholder was moved to a place that is not a tensor's raw_data"
        return edits

    def references(self, skeleton: Source, serialised: bytes) -> list[Edit]:
        """Return the edits that put references to external data there instead, which nobody has to have at hand."""
        import onnx

        entry = onnx.StringStringEntryProto(key="location", value="weights")
        outside = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL, external_data=[entry])
        content = outside.SerializeToString()
        return self._replaced(skeleton, serialised, lambda _: content)

    def _replaced(
        self, skeleton: Source, serialised: bytes, insert: Callable[[Payload], bytes | Payload]
    ) -> list[Edit]:
        if not self.payloads:
            return []

        def replace(start: int, end: int) -> Sequence[Edit]:
            return [
                (begin, stop, insert(payload))
                for tag, begin, body, stop in records(skeleton, start, end)
                if tag == RAW_DATA and (payload := self.find(serialised[body:stop])) is not None
            ]

        return Walk(skeleton, replace, marks=positions(serialised, self._magic)).edits(len(serialised))

    def find(self, raw_data: bytes) -> Payload | None:
        """Return the payload that a tensor's `raw_data` stands for; None if that is the tensor's own."""
        if len(raw_data) != 20 or raw_data[:16] != self._magic:
            return None
        return self.payloads[int.from_bytes(raw_data[16:], "little")]
