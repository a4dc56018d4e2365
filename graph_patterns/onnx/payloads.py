"""Tensor payloads: cut out of a serialised model, marked by placeholders, and put back into another."""

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Final

import onnx

from graph_patterns.onnx.source import CHUNK
from graph_patterns.onnx.walk import Edit, Payload, Walk
from graph_patterns.onnx.wire import (
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
