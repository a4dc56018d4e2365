"""Rewrite an ONNX file: the graph is edited without its weights, which are streamed from file to file."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx

from graph_patterns.errors import ModelFileError
from graph_patterns.onnx.container import load_skeleton
from graph_patterns.onnx.external import external_files
from graph_patterns.onnx.soundness import Soundness
from graph_patterns.onnx.view import default_opset
from postproc_export.files.staging import claimed
from postproc_export.files.writing import publishing

Result = TypeVar("Result")


def rewrite_onnx_file(
    source: Path,
    target: Path,
    edit: Callable[[onnx.ModelProto], Result],
    *,
    in_place: bool = False,
    link_weights: bool = False,
    is_checked: bool = True,
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
    is_checked
        Refuse a model that is less sound than the source; False for a file that nobody else gets to see.

    Raises
    ------
    ModelFileError, FileError
        If the source cannot be read, refers to files that it must not refer to, the target cannot be written, or the
        edited model is not as sound as the source.
    """
    with claimed([target]), load_skeleton(source) as file:
        weights = external_files(file.model, source.parent)
        before = Soundness.of(file) if is_checked else None
        opset = default_opset(file.model)
        result = edit(file.model)
        if not result:
            return result
        if before is not None:
            before.refuse_worse(Soundness.of(file, opset=opset), where=str(target))
        with publishing([target], inputs=[source, *weights.values()], in_place=in_place) as publication:
            publication.bring_along(weights, link=link_weights)
            try:
                file.write(publication.temporary(target))
            except ModelFileError as error:
                if isinstance(error.__cause__, OSError):  # it names a temporary file
                    raise error.__cause__ from None
                raise
    return result
