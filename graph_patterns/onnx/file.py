"""An ONNX file as a container: the model without its weights to edit, the weights streamed when it is written.

`load_skeleton` walks the file, leaves every tensor payload above 4 KiB where it is, and parses what remains, with a
placeholder in the `raw_data` of each such tensor. `OnnxFile.write` serialises the edited model and puts the original
payload bytes back. Tensors may be renamed, moved, copied and deleted in between; their values may be replaced.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any, Final, Self

import onnx
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, EncodeError
from google.protobuf.message_factory import GetMessageClass

from graph_patterns.expr import ModelFileError
from graph_patterns.onnx.wire import (
    CHUNK,
    LENGTH,
    RAW_DATA,
    ChangedFileError,
    CutOffError,
    Edit,
    FileSource,
    MalformedError,
    MemorySource,
    Payload,
    Placeholders,
    Source,
    UnusualError,
    Walk,
    growth_of,
    kind_of,
    length_of,
    positions,
    records,
    special_kind,
    varint,
    write_all,
)

_PACKED: Final[Mapping[int, int]] = {onnx.TensorProto.FLOAT: 4 << 3 | LENGTH, onnx.TensorProto.DOUBLE: 10 << 3 | LENGTH}
LARGEST: Final = 2**31 - 1  # bytes; protobuf's limit for a message
_IR_VERSION: Final = varint(1 << 3)
_NEEDED: Final = "a serialised onnx.ModelProto with a graph"


def check_text(serialised: bytes) -> None:
    """Raise DecodeError unless the names and other texts of a serialised model are UTF-8.

    onnx's own classes hand out other names as `bytes`, which fail wherever they meet a `str`.
    """
    _strict_model_class().FromString(serialised)


_PROTO3: Final = varint(12 << 3 | LENGTH) + b"\x06proto3"  # FileDescriptorProto.syntax: what stands last counts


@cache
def _strict_model_class() -> Any:
    """Make a twin of ModelProto that checks texts: the same schema declared as proto3."""
    pool = DescriptorPool()
    pool.AddSerializedFile(onnx.ModelProto.DESCRIPTOR.file.serialized_pb + _PROTO3)
    return GetMessageClass(pool.FindMessageTypeByName(onnx.ModelProto.DESCRIPTOR.full_name))


def refuse_other_messages(model: onnx.ModelProto, *, where: str, start: bytes) -> None:
    """Refuse what protobuf can parse, as it can many files, but what holds no model.

    `where` names the file in the message, `start` is its first bytes.
    """
    if not model.HasField("graph"):
        raise not_a_model(where, "no graph in it", start=start)
    if not (model.HasField("ir_version") or model.opset_import or model.graph.node):
        raise not_a_model(where, "neither an IR version, nor an operator set, nor a node in it", start=start)


def not_a_model(where: str, reason: str, *, start: bytes) -> ModelFileError:
    """Explain a file that is no ONNX model; its first bytes may tell what it is."""
    return ModelFileError(
        f"cannot read {where}: it is no ONNX model, or a damaged one",
        found=kind_of(start) or reason,
        needed=_NEEDED,
        fix="export or copy the model again, or give another file",
    )


def too_large(what: str, size: int | None) -> ModelFileError:
    """Explain that one file cannot hold a model of this size in bytes, where that is known."""
    return ModelFileError(
        f"{what}: a single ONNX file cannot be above 2 GiB",
        found=None if size is None else f"{size:,} bytes",
        needed=f"at most {LARGEST:,} bytes, protobuf's limit",
        fix="store the weights beside the model, as external data: onnx.save(model, path, save_as_external_data=True)",
    )


_EXTERNAL: Final = varint(14 << 3) + varint(onnx.TensorProto.EXTERNAL)  # data_location, as protobuf serialises it


def external_data_locations(model: onnx.ModelProto) -> tuple[tuple[str, str, int], ...]:
    """Return name, location and end of the external data of all tensors of a model, at any depth.

    The name is empty where a tensor has none, as in attributes; the location is relative to the model's folder. The
    end is the byte where the data ends, or where it starts if the model gives no length. Raises ModelFileError if an
    offset or a length is no number.
    """
    serialised = model.SerializeToString()
    marks = positions(serialised, _EXTERNAL)
    found: list[tuple[str, str, int]] = []

    def visit(start: int, end: int) -> Sequence[Edit]:
        tensor = onnx.TensorProto.FromString(serialised[start:end])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            end = sum(_external_bytes(tensor.name, key, entries.get(key, "")) for key in ("offset", "length"))
            found.append((tensor.name, entries.get("location", ""), end))
        return ()

    if marks:
        Walk(MemorySource(serialised), visit, marks=marks).edits(len(serialised))
    return tuple(found)


def external_files(model: onnx.ModelProto, folder: Path) -> dict[Path, Path]:
    """Return the files that hold a model's external data: {path relative to the model's folder: file}.

    Raises ModelFileError if a location leads out of the folder, by its text or by a link, or to no regular file, or if
    the file is too short for the tensor.
    """
    return {
        Path(location): _checked_file(tensor, location, end, folder)
        for tensor, location, end in external_data_locations(model)
    }


def _external_bytes(tensor: str, key: str, text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelFileError(
            f"{_title(tensor)} has external data with the {key} {text[:40]!r}", needed="a number of bytes"
        )
    return int(text or 0)


def _title(tensor: str) -> str:
    return f"the tensor '{tensor}'" if tensor else "a tensor without a name"


def _checked_file(tensor: str, location: str, end: int, folder: Path) -> Path:
    def refused(reason: str) -> ModelFileError:
        return ModelFileError(
            f"{_title(tensor)} has its data in {location!r}, which is refused",
            found=reason,
            needed="a regular file in the model's folder or below it, long enough for the tensor",
            fix="copy the weights, as files and not as links, to where the model looks for them, or export it again",
        )

    # any system that the model may be used on counts
    for path in (PurePosixPath(location), PureWindowsPath(location)):
        if path.anchor:
            raise refused("an absolute path")
        if ".." in path.parts:
            raise refused("a path with '..' in it")
    try:
        file = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links; ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise refused(f"a file that cannot be found: {reason}") from error
    if not file.is_relative_to(folder.resolve()):
        raise refused(f"a link that leads out of the model's folder, to {file}")
    if not file.is_file():
        raise refused("no regular file")
    size = file.stat().st_size
    if size < end:
        raise refused(f"a file of {size:,} bytes, but the tensor ends at {end:,}")
    return file


class OnnxFile:
    """An ONNX model whose large payloads are still in its file; `path` is None for a model in memory.

    In `model`, which is there to be read and edited, a tensor with a payload above 4 KiB has a placeholder in
    `raw_data` instead, which has a meaning in this object only; `full_tensor` gives the payload. Use it as a context
    manager, or let it go: either closes the file.
    """

    def __init__(self, path: Path | None, source: Source) -> None:
        self.path = path
        self._source = source
        self._placeholders = Placeholders(source)
        self._finalizer = weakref.finalize(self, source.close)
        try:
            self.model = self._parse()
            refuse_other_messages(self.model, where=self._name, start=self._source.read(0, min(64, self._source.size)))
        except BaseException:
            self.close()
            raise

    @property
    def payload_bytes(self) -> int:
        """How many bytes of payloads were left in the file."""
        return sum(map(length_of, self._placeholders.payloads))

    def write(self, path: Path) -> None:
        """Write the whole model, edits and payloads, to a path other than the one it was read from.

        A file that cannot be finished stays as far as it came: write to a temporary name. Raises ModelFileError if the
        model would be above 2 GiB, the file it was read from has changed, or the path cannot be written.
        """
        if self.path is not None and path.exists() and path.samefile(self.path):
            raise ModelFileError(
                f"cannot write {path} while its weights are read from it", fix="write another file and move it there"
            )
        parts = list(self._parts())
        try:
            with path.open("wb", buffering=0) as target:
                for part in parts:
                    if isinstance(part, bytes):
                        write_all(target, part)
                    else:
                        for start, end in part:
                            self._source.copy(start, end - start, target)
            self._source.check_unchanged()
        except ChangedFileError:
            raise self._changed() from None
        except OSError as error:
            raise ModelFileError(f"cannot write {path}", found=error.strerror) from error

    def to_bytes(self) -> bytes:
        """Return the whole model, edits and payloads, as one serialised message."""
        return self._joined(self._parts())

    def without_payloads(self) -> bytes:
        """Return the edited model with references to external data in place of the payloads, as a checker reads it."""
        skeleton = self.model.SerializeToString()
        source = MemorySource(skeleton)
        return self._joined(_spliced(source, len(skeleton), self._placeholders.references(source, skeleton)))

    def full_tensor(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return a copy of a tensor of the model with its payload instead of a placeholder."""
        full = onnx.TensorProto()
        full.CopyFrom(tensor)
        payload = self._placeholders.find(full.raw_data)
        if payload is not None:
            full.ClearField("raw_data")
            full.MergeFromString(self._read(payload))
        return full

    def payload(self, tensor: onnx.TensorProto) -> Iterator[bytes]:
        """Yield the serialised fields that hold a tensor's values, a piece at a time where they are in the file."""
        payload = self._placeholders.find(tensor.raw_data)
        if payload is None:
            own = onnx.TensorProto()
            own.CopyFrom(tensor)
            for field in own.DESCRIPTOR.fields:
                if not field.name.endswith("_data") or field.name == "external_data":
                    own.ClearField(field.name)
            yield own.SerializeToString()
            return
        try:
            for start, end in payload:
                for at in range(start, end, CHUNK):
                    yield self._source.read(at, min(CHUNK, end - at))
        except ChangedFileError:
            raise self._changed() from None

    def stretch(self, tensor: onnx.TensorProto) -> tuple[int, int] | None:
        """Return start and end of a tensor's payload in the file, where its values stand as they do in memory.

        None where the payload is in the model itself, is in several pieces, or is of numbers of varying length.
        """
        payload = self._placeholders.find(tensor.raw_data)
        if payload is None or len(payload) > 1:
            return None
        found = list(records(self._source, *payload[0]))
        plain = {RAW_DATA, _PACKED.get(tensor.data_type)}
        return found[0][2:] if len(found) == 1 and found[0][0] in plain else None

    def read(self, start: int, length: int) -> bytes:
        """Return some bytes of the file."""
        return self._read(((start, start + length),))

    def close(self) -> None:
        """Close the file; the model stays readable, its payloads do not."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return "the model" if self.path is None else str(self.path)

    def _parse(self) -> onnx.ModelProto:
        size = self._source.size
        if size > LARGEST:
            raise too_large(f"cannot read {self._name}", size)
        try:
            model = self._skeleton(size)
            if model is None:
                self._placeholders = Placeholders(self._source)
                model = _parsed(self._source.read(0, size))
            return model
        except (MalformedError, DecodeError) as error:
            start = self._source.read(0, min(64, size))
            # every writer begins with the version of the format
            is_cut = isinstance(error, CutOffError) and start.startswith(_IR_VERSION)
            reason = f"it is cut off after {size:,} bytes" if is_cut else str(error)
            raise not_a_model(self._name, reason, start=start) from error
        except ChangedFileError:
            raise self._changed() from None
        except OSError as error:
            raise _unreadable(self._name, error) from error

    def _skeleton(self, size: int) -> onnx.ModelProto | None:
        """Parse what is left without the payloads; None if that would not give the same model."""
        try:
            skeleton = self._joined(_spliced(self._source, size, self._placeholders.cuts(size)))
        except UnusualError:
            return None
        model = _parsed(skeleton)
        return model if self._placeholders.survive(model) else None

    def _parts(self) -> Iterator[bytes | Payload]:
        try:
            skeleton = self.model.SerializeToString()
        except (EncodeError, ValueError) as error:  # which of the two depends on the version of protobuf
            raise too_large(f"cannot write {self._name}", None) from error
        source = MemorySource(skeleton)
        edits = self._placeholders.restorations(source, skeleton)
        size = len(skeleton) + sum(map(growth_of, edits))
        if size > LARGEST:
            raise too_large(f"cannot write {self._name}", size)
        return _spliced(source, len(skeleton), edits)

    def _joined(self, parts: Iterator[bytes | Payload]) -> bytes:
        return b"".join(part if isinstance(part, bytes) else self._read(part) for part in parts)

    def _read(self, payload: Payload) -> bytes:
        try:
            return b"".join(self._source.read(start, end - start) for start, end in payload)
        except ChangedFileError:
            raise self._changed() from None

    def _changed(self) -> ModelFileError:
        return ModelFileError(
            f"cannot read {self._name}: it changed meanwhile", fix="run again when nothing writes to it"
        )


def _spliced(source: Source, size: int, edits: Sequence[Edit]) -> Iterator[bytes | Payload]:
    """Yield the parts of an edited message."""
    at = 0
    for start, end, insert in edits:
        if start > at:
            yield source.read(at, start - at)
        yield insert
        at = end
    if size > at:
        yield source.read(at, size - at)


def _parsed(serialised: bytes) -> onnx.ModelProto:
    check_text(serialised)
    model: onnx.ModelProto = onnx.ModelProto.FromString(serialised)
    return model


def _unreadable(name: str, error: OSError) -> ModelFileError:
    return ModelFileError(f"cannot read {name}", found=error.strerror, needed="an ONNX file that can be read")


def load_skeleton(path: Path) -> OnnxFile:
    """Open an ONNX file without loading its weights.

    Raises ModelFileError if the path is no readable file, is above 2 GiB, or holds something else than a whole model.
    """
    try:
        kind = special_kind(path)
        if kind is not None:
            raise ModelFileError(f"cannot read {path}", found=kind, needed="an ONNX file")
        stream = path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(str(path), error) from error
    return OnnxFile(path, FileSource(stream))


def load_skeleton_from_bytes(model: bytes) -> OnnxFile:
    """Read a serialised model in memory in the same way."""
    return OnnxFile(None, MemorySource(model))


def full_model(file: OnnxFile) -> onnx.ModelProto:
    """Return the whole model with every payload in memory."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(file.to_bytes())
    return model
