"""Which file a rewritten model goes to: by default beside the one that was read, with a mark in its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from postproc_export.errors import UsageError
from postproc_export.files.checking import refuse_inputs

FORMATS: Final = {".onnx": "an ONNX model", ".xml": "an OpenVINO IR"}


def is_onnx(source: Path) -> bool:
    """Whether a model file is an ONNX model; else it is an OpenVINO IR.

    Raises
    ------
    UsageError
        If its suffix is neither's.
    """
    if source.suffix not in FORMATS:
        raise UsageError(
            f"{source} is not a model that can be read or rewritten",
            found=f"the suffix '{source.suffix}'",
            needed=" or ".join(f"{suffix} ({what})" for suffix, what in FORMATS.items()),
            fix="give the file that the export wrote",
        )
    return source.suffix == ".onnx"


def default_target(
    source: Path, output: str | Path | None, *, in_place: bool, mark: str, read: Sequence[object] = ()
) -> Path:
    """Return the file to write: what was asked for, the source itself, or ``<name>.<mark>.<suffix>`` beside it.

    Parameters
    ----------
    source, output, in_place
        As the caller was given them.
    mark
        What the default name says of the file.
    read
        What is read besides the source, such as statistics: its paths are never to be written, in place or not.

    Raises
    ------
    UsageError
        If the source is no model file, or the output is of the other format.
    FileError
        If one of the files to be written is read besides the source.
    """
    is_onnx(source)
    default = source if in_place else source.with_suffix(f".{mark}{source.suffix}")
    target = default if output is None else _asked(source, Path(output))
    written = [target] if target.suffix == ".onnx" else [target, target.with_suffix(".bin")]
    files = [Path(each) for each in read if isinstance(each, str | Path)]
    refuse_inputs(written, files, fix="choose another path")
    return target


def _asked(source: Path, target: Path) -> Path:
    if target.suffix != source.suffix:
        raise UsageError(
            f"cannot write {FORMATS[source.suffix]} to {target}",
            found=f"the suffix '{target.suffix}'",
            needed=f"'{source.suffix}'",
            fix="keep the format, and convert the file afterwards",
        )
    return target
