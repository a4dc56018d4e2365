"""The model formats: what is put on models and taken off again, in memory and in files."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from postproc_export.files import check_suffix

if TYPE_CHECKING:
    from postproc_export.formats.base import Format

_CLASSES: Final = {
    ".onnx": ("postproc_export.formats.onnx", "OnnxFormat"),
    ".xml": ("postproc_export.formats.openvino", "OpenVinoFormat"),
}


def format_of(path: Path) -> "Format":
    """Return the format of a model file, by its suffix.

    Raises
    ------
    UsageError
        If it is that of no format.
    """
    check_suffix(path)
    module, name = _CLASSES[path.suffix]
    made: Format = getattr(import_module(module), name)()
    return made
