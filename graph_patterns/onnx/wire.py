"""The bytes of an ONNX file, read through small windows: positions, and the records of protobuf."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

# --- Bytes at positions, read without loading the rest: an open file or a message in memory, and copying out of
# either.

CHUNK: Final = 1024 * 1024


class ChangedFileError(Exception):
    """The file is no longer what it was when it was opened."""


class MemorySource:
    """A message in memory.

    Parameters
    ----------
    content
        The whole message.
    """

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
    """An open file; it is never mapped, so that one that shrinks meanwhile is an error and not a crash.

    Parameters
    ----------
    stream
        An unbuffered binary file; `close` closes it.
    """

    def __init__(self, stream: BinaryIO) -> None:
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
        """Write a stretch to an unbuffered file, inside the kernel where that is possible."""
        done = copy_in_kernel(self._stream.fileno(), target.fileno(), start, length)
        while done < length:
            part = self.read(start + done, min(CHUNK, length - done))
            write_all(target, part)
            done += len(part)

    def check_unchanged(self) -> None:
        """Raise ChangedFileError if the file was written since it was opened."""
        now = os.fstat(self._stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise ChangedFileError

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def special_kind(path: Path) -> str | None:
    """Return what a path is in place of a regular file, such as a pipe, whose opening waits for a writer.

    Raises
    ------
    OSError
        If it is not there, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")


def write_all(target: BinaryIO, content: bytes | memoryview) -> None:
    """Write every byte to an unbuffered file, which may take fewer at a time."""
    content = memoryview(content)
    while content:
        content = content[target.write(content) :]


def copy_in_kernel(source: int, target: int, start: int, length: int) -> int:
    """Copy with `copy_file_range` to the target's position and return how far it went; what is left has to be read.

    Parameters
    ----------
    source, target
        File descriptors.
    start, length
        The stretch of the source, in bytes.
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


# --- The protobuf wire format: the records of a message, read through small windows.
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


class Source(Protocol):
    """Bytes at positions: a file, or a message in memory."""

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes."""


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
    """Yield tag, start, start of the body and end of each record between two positions.

    Parameters
    ----------
    source
        Where the bytes are.
    start, end
        The body of a message.
    skip
        Records with a length of up to this many bytes are checked, but not yielded.

    Raises
    ------
    MalformedError
        If the bytes are no sequence of records that ends exactly at `end`.

    Notes
    -----
    Groups, which ONNX never had, are unknown fields to it: what they hold is checked and not yielded.
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
                raise MalformedError(f"a record that is none, or leads past the end of its message, at byte {position}")
            if length > skip and not groups:
                yield tag, position, body, body + length
            position = body + length
    except IndexError:
        raise MalformedError(f"a record that is cut off, at byte {position}") from None
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
