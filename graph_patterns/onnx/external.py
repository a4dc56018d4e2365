"""External data: which files a model's tensors lie in, and whether these may be touched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

import onnx

from graph_patterns.errors import ModelFileError
from graph_patterns.onnx.source import MemorySource
from graph_patterns.onnx.walk import Edit, Walk
from graph_patterns.onnx.wire import positions, varint

_EXTERNAL: Final = varint(14 << 3) + varint(onnx.TensorProto.EXTERNAL)  # data_location, as protobuf serialises it


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where the payload of one tensor lies.

    Parameters
    ----------
    tensor
        The tensor's name; empty where it has none, as in attributes.
    location
        The file, relative to the model's folder.
    offset
        Where in the file the payload begins, in bytes.
    length
        Its length in bytes; None where the model does not say.
    """

    tensor: str
    location: str
    offset: int
    length: int | None


def external_data_locations(model: onnx.ModelProto) -> tuple[ExternalData, ...]:
    """Return the external data of all tensors of a model, at any depth.

    Raises
    ------
    ModelFileError
        If an offset or a length is no number.
    """
    serialised = model.SerializeToString()
    marks = positions(serialised, _EXTERNAL)
    found: list[ExternalData] = []

    def visit(start: int, end: int) -> Sequence[Edit]:
        tensor = onnx.TensorProto.FromString(serialised[start:end])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found.append(_reference(tensor))
        return ()

    if marks:
        Walk(MemorySource(serialised), visit, marks=marks).edits(len(serialised))
    return tuple(found)


def external_files(model: onnx.ModelProto, folder: Path) -> dict[Path, Path]:
    """Return the files that hold a model's external data: {path relative to the model's folder: file}.

    Parameters
    ----------
    model
        The model, with or without its payloads.
    folder
        The folder that the model was read from; locations are relative to it.

    Raises
    ------
    ModelFileError
        If a location leads out of the folder, by its text or by a link, or to no regular file, or if the file is too
        short for the tensor.
    """
    files: dict[Path, Path] = {}
    for data in external_data_locations(model):
        files[Path(data.location)] = _checked_file(data, folder)
    return files


def _reference(tensor: onnx.TensorProto) -> ExternalData:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise ModelFileError(
                f"{_title(tensor.name)} has external data with the {key} {text[:40]!r}", needed="a number of bytes"
            )
        numbers[key] = int(text) if text else None
    return ExternalData(tensor.name, entries.get("location", ""), numbers["offset"] or 0, numbers["length"])


def _title(tensor: str) -> str:
    return f"the tensor '{tensor}'" if tensor else "a tensor without a name"


def _checked_file(data: ExternalData, folder: Path) -> Path:
    reason = next(_objections(data.location), None)
    if reason is not None:
        raise _refused(data, reason)
    try:
        file = (folder / data.location).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links; ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _refused(data, f"a file that cannot be found: {reason}") from error
    if not file.is_relative_to(folder.resolve()):
        raise _refused(data, f"a link that leads out of the model's folder, to {file}")
    if not file.is_file():
        raise _refused(data, "no regular file")
    size = file.stat().st_size
    if size < data.offset + (data.length or 0):
        raise _refused(data, f"a file of {size:,} bytes, but the tensor ends at {data.offset + (data.length or 0):,}")
    return file


def _objections(location: str) -> Iterator[str]:
    """Yield what is wrong with a location as text, on any system that the model may be used on."""
    for flavour in (PurePosixPath, PureWindowsPath):
        path = flavour(location)
        if path.anchor:
            yield "an absolute path"
        if ".." in path.parts:
            yield "a path with '..' in it"


def _refused(data: ExternalData, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{_title(data.tensor)} has its data in {data.location!r}, which is refused",
        found=reason,
        needed="a regular file in the model's folder or below it, long enough for the tensor",
        fix="copy the weights, as files and not as links, to where the model looks for them, or export it again",
    )
