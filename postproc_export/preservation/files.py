"""Compare an attached file of either format with the raw one."""

from pathlib import Path

from postproc_export.errors import UsageError
from postproc_export.files.targets import is_onnx
from postproc_export.preservation.change import Preservation
from postproc_export.validation import check_file


def compare_files(raw: str | Path, attached: str | Path) -> Preservation:
    """Return what differs between a raw model file and the attached one besides the tail.

    Parameters
    ----------
    raw
        The file that was attached to, ``.onnx`` or ``.xml``.
    attached
        What `attach_postprocessing` made of it, in the same format.

    Raises
    ------
    FileError, UsageError, UnsupportedModelError, ModelFileError
        If a file cannot be read, or the formats differ.
    MetadataError
        If the attached file has a record that is not legal.

    Notes
    -----
    Weights are compared a piece at a time and are never loaded as a whole. Nodes, operators and constants of the tail
    are known by their names, which begin with ``postproc/``; what another tool renamed or merged counts as a change.
    """
    before, after = Path(raw), Path(attached)
    if is_onnx(before) != is_onnx(after):
        raise UsageError(
            f"{before} and {after} cannot be compared: they are of different formats",
            needed="the very file that was attached to",
        )
    check_file(before, what="the raw model")
    if is_onnx(before):
        from postproc_export.preservation.onnx_files import compare_onnx_files

        return compare_onnx_files(before, after)
    from postproc_export.preservation.openvino_files import compare_openvino_files

    return compare_openvino_files(before, after)
