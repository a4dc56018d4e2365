"""Which file a rewritten model goes to: by default beside the one that was read, with a mark in its name."""

from pathlib import Path
from typing import Final

from postproc_export.errors import UsageError

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
        )
    return source.suffix == ".onnx"


def default_target(source: Path, output: str | Path | None, *, in_place: bool, mark: str) -> Path:
    """Return the file to write: what was asked for, the source itself, or ``<name>.<mark>.<suffix>`` beside it.

    Raises
    ------
    UsageError
        If the source is no model file, or the output is of the other format.
    """
    is_onnx(source)
    if output is None:
        return source if in_place else source.with_suffix(f".{mark}{source.suffix}")
    target = Path(output)
    if target.suffix != source.suffix:
        raise UsageError(
            f"cannot write {FORMATS[source.suffix]} to {target}",
            found=f"the suffix '{target.suffix}'",
            needed=f"'{source.suffix}'",
            fix="keep the format, and convert the file afterwards",
        )
    return target
