"""Compare an attached IR with the raw one; weights are mapped and compared a piece at a time."""

from dataclasses import replace
from pathlib import Path

from postproc_export.preservation.change import Preservation
from postproc_export.preservation.openvino_marks import mark_changes
from postproc_export.preservation.openvino_models import compare_openvino_models
from postproc_export.rewrite.openvino_file import read_ir
from postproc_export.runtimes.openvino import openvino_core


def compare_openvino_files(raw: Path, attached: Path) -> Preservation:
    """Return what differs besides the tail.

    Raises
    ------
    FileError, UnsupportedModelError
        If one of the files cannot be read.
    MetadataError
        If the attached file has a record that is not legal.
    MissingDependencyError
        If OpenVINO is not installed.
    """
    core = openvino_core(purpose="comparing an OpenVINO IR")
    found = compare_openvino_models(read_ir(core, raw), read_ir(core, attached), where=str(attached))
    return replace(found, changes=(*found.changes, *mark_changes(raw, attached)))
