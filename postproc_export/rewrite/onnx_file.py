"""Rewrite an ONNX file: the graph is edited without its weights, which are streamed from file to file."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx

from graph_patterns.onnx.container import load_skeleton
from graph_patterns.onnx.external import external_files
from postproc_export.files.writing import publishing

Result = TypeVar("Result")


def rewrite_onnx_file(
    source: Path,
    target: Path,
    edit: Callable[[onnx.ModelProto], Result],
    *,
    in_place: bool = False,
    link_weights: bool = False,
) -> Result:
    """Edit the model of a file and write it to another, whole or not at all; external data comes along.

    Parameters
    ----------
    source, target
        The file to read and the one to write.
    edit
        Changes the model in place; large payloads are placeholders in it. Nothing is written where it returns
        something falsy.
    in_place
        Allow the target to be the source.
    link_weights
        Hard-link external data instead of copying it.

    Raises
    ------
    ModelFileError, FileError
        If the source cannot be read, refers to files that it must not refer to, or the target cannot be written.
    """
    with load_skeleton(source) as file:
        weights = external_files(file.model, source.parent)
        result = edit(file.model)
        if not result:
            return result
        with publishing([target], inputs=[source, *weights.values()], in_place=in_place) as publication:
            publication.bring_along(weights, link=link_weights)
            file.write(publication.temporary(target))
    return result
