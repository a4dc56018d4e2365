"""The protobuf wire format: the records of a message, read through small windows.

A record is a tag, for most types a length, and a body. No length is believed before it was held against the end of the
message around it.
"""

from collections.abc import Iterator
from typing import Final, Protocol

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
