"""An ONNX file as a container: the model without its weights to edit, the weights streamed when it is written.

`load_skeleton` walks the file, leaves every tensor payload above 4 KiB where it is, and parses what remains, with a
placeholder in the `raw_data` of each such tensor. `OnnxFile.write` serialises the edited model and puts the original
payload bytes back. Tensors may be renamed, moved, copied and deleted in between; their values may be replaced.
"""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import onnx
from google.protobuf.message import DecodeError, EncodeError

from graph_patterns.errors import ModelFileError
from graph_patterns.onnx.payloads import Placeholders
from graph_patterns.onnx.source import CHUNK, ChangedFileError, FileSource, MemorySource, special_kind, write_all
from graph_patterns.onnx.validation import LARGEST, check_text, not_a_model, refuse_other_messages, too_large
from graph_patterns.onnx.walk import Edit, Payload, UnusualError
from graph_patterns.onnx.wire import MalformedError


class OnnxFile:
    """An ONNX model whose large payloads are still in its file.

    Use it as a context manager, or let it go: either closes the file.

    Parameters
    ----------
    path
        Where the file is; None for a model in memory.
    source
        Its bytes.

    Attributes
    ----------
    path
        As given.
    model
        The model to read and edit. A tensor with a payload above 4 KiB has a placeholder in `raw_data` instead;
        `full_tensor` gives the payload. A placeholder has a meaning in this object only.
    """

    def __init__(self, path: Path | None, source: FileSource | MemorySource) -> None:
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
        return sum(len(payload) for payload in self._placeholders.payloads)

    def write(self, path: Path) -> None:
        """Write the whole model, edits and payloads, to a path other than the one it was read from.

        A file that cannot be finished stays as far as it came: write to a temporary name.

        Raises
        ------
        ModelFileError
            If the model would be above 2 GiB, the file it was read from has changed, or the path cannot be written.
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
                        for start, end in part.spans:
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
            for start, end in payload.spans:
                for at in range(start, end, CHUNK):
                    yield self._source.read(at, min(CHUNK, end - at))
        except ChangedFileError:
            raise self._changed() from None

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
            return self._whole(size) if model is None else model
        except (MalformedError, DecodeError) as error:
            raise not_a_model(self._name, str(error), start=self._source.read(0, min(64, size))) from error
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
        check_text(skeleton)
        model: onnx.ModelProto = onnx.ModelProto.FromString(skeleton)
        return model if self._placeholders.survive(model) else None

    def _whole(self, size: int) -> onnx.ModelProto:
        self._placeholders = Placeholders(self._source)
        content = self._source.read(0, size)
        check_text(content)
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
        return model

    def _parts(self) -> Iterator[bytes | Payload]:
        try:
            skeleton = self.model.SerializeToString()
        except (EncodeError, ValueError) as error:  # which of the two depends on the version of protobuf
            raise too_large(f"cannot write {self._name}", None) from error
        source = MemorySource(skeleton)
        edits = self._placeholders.restorations(source, skeleton)
        size = len(skeleton) + sum(edit.growth for edit in edits)
        if size > LARGEST:
            raise too_large(f"cannot write {self._name}", size)
        return _spliced(source, len(skeleton), edits)

    def _joined(self, parts: Iterator[bytes | Payload]) -> bytes:
        return b"".join(part if isinstance(part, bytes) else self._read(part) for part in parts)

    def _read(self, payload: Payload) -> bytes:
        try:
            return b"".join(self._source.read(start, end - start) for start, end in payload.spans)
        except ChangedFileError:
            raise self._changed() from None

    def _changed(self) -> ModelFileError:
        return ModelFileError(
            f"cannot read {self._name}: it changed meanwhile", fix="run again when nothing writes to it"
        )


def _spliced(source: FileSource | MemorySource, size: int, edits: Sequence[Edit]) -> Iterator[bytes | Payload]:
    """Yield the parts of an edited message."""
    at = 0
    for edit in edits:
        if edit.start > at:
            yield source.read(at, edit.start - at)
        yield edit.insert
        at = edit.end
    if size > at:
        yield source.read(at, size - at)


def _unreadable(name: str, error: OSError) -> ModelFileError:
    return ModelFileError(f"cannot read {name}", found=error.strerror, needed="an ONNX file that can be read")


def load_skeleton(path: Path) -> OnnxFile:
    """Open an ONNX file without loading its weights.

    Raises
    ------
    ModelFileError
        If the path is no readable file, is above 2 GiB, or holds something else than a whole ONNX model.
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
